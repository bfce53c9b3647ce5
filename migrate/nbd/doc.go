// Package nbd is an NBD client and server in pure Go over [share.Device].
package nbd
