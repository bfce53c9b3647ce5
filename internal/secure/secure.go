// Package secure holds the rules of transport for all that crosses a network:
// plaintext stays on this machine; everything else is TLS 1.3 with both sides
// verified, and never fallen back from.
package secure

import (
	"crypto/tls"
	"errors"
	"net"
)

// Errors of configurations that would leave a side unverified. Callers add who
// they are and wrap their own kind.
var (
	ErrUnverifiedServer = errors.New("InsecureSkipVerify without a VerifyConnection of your own leaves the server unverified")
	ErrNoServerName     = errors.New("the server's name to verify is unknown; set ServerName")
	ErrNoCertificate    = errors.New("the TLS configuration has no certificate")
	ErrNoClientCAs      = errors.New("the TLS configuration has no ClientCAs to verify clients with")
)

// OnThisMachine reports whether addr cannot be reached from a network.
func OnThisMachine(addr net.Addr) bool {
	switch a := addr.(type) {
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	case *net.UnixAddr:
		return true
	}
	return addr != nil && addr.Network() == "pipe" // net.Pipe
}

// ClientTLS is config with the rules applied: TLS 1.3 or later, and the server
// verified against name unless the configuration has another one.
func ClientTLS(config *tls.Config, name string) (*tls.Config, error) {
	if config == nil {
		config = &tls.Config{}
	}
	c := config.Clone()
	if c.InsecureSkipVerify && c.VerifyConnection == nil && c.VerifyPeerCertificate == nil {
		return nil, ErrUnverifiedServer
	}
	c.MinVersion = max(c.MinVersion, tls.VersionTLS13)
	if c.ServerName == "" {
		c.ServerName = name
	}
	if c.ServerName == "" && !c.InsecureSkipVerify {
		return nil, ErrNoServerName
	}
	return c, nil
}

// ServerTLS is config with the rules applied: TLS 1.3 or later, and every
// client with a certificate that ClientCAs verify, unless anyClient.
func ServerTLS(config *tls.Config, anyClient bool) (*tls.Config, error) {
	c := config.Clone()
	c.MinVersion = max(c.MinVersion, tls.VersionTLS13)
	if len(c.Certificates) == 0 && c.GetCertificate == nil && c.GetConfigForClient == nil {
		return nil, ErrNoCertificate
	}
	if anyClient || c.GetConfigForClient != nil {
		return c, nil
	}
	c.ClientAuth = max(c.ClientAuth, tls.RequireAndVerifyClientCert)
	if c.ClientCAs == nil {
		return nil, ErrNoClientCAs
	}
	return c, nil
}
