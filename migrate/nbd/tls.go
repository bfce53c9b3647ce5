package nbd

import (
	"crypto/tls"
	"fmt"
	"net"

	"github.com/vmferry/vmferry/share"
)

// The rules of transport: plaintext stays on this machine; everything else is
// TLS 1.3 with both sides verified, upgraded to by STARTTLS before anything
// else is said, and never fallen back from.

// onThisMachine reports whether addr cannot be reached from a network.
func onThisMachine(addr net.Addr) bool {
	switch a := addr.(type) {
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	case *net.UnixAddr:
		return true
	}
	return addr != nil && addr.Network() == "pipe" // net.Pipe
}

// clientTLS is config with the rules applied.
func clientTLS(config *tls.Config, name string) (*tls.Config, error) {
	if config == nil {
		config = &tls.Config{}
	}
	c := config.Clone()
	if c.InsecureSkipVerify && c.VerifyConnection == nil && c.VerifyPeerCertificate == nil {
		return nil, fmt.Errorf("nbd: InsecureSkipVerify without a VerifyConnection of your own leaves the server unverified: %w", share.ErrInvalid)
	}
	c.MinVersion = max(c.MinVersion, tls.VersionTLS13)
	if c.ServerName == "" {
		c.ServerName = name
	}
	if c.ServerName == "" && !c.InsecureSkipVerify {
		return nil, fmt.Errorf("nbd: the server's name to verify is unknown; set ServerName or tls-hostname: %w", share.ErrInvalid)
	}
	return c, nil
}

// serverTLS is config with the rules applied.
func serverTLS(config *tls.Config, anonymous bool) (*tls.Config, error) {
	c := config.Clone()
	c.MinVersion = max(c.MinVersion, tls.VersionTLS13)
	if len(c.Certificates) == 0 && c.GetCertificate == nil && c.GetConfigForClient == nil {
		return nil, fmt.Errorf("nbd: the TLS configuration has no certificate: %w", share.ErrInvalid)
	}
	if anonymous || c.GetConfigForClient != nil {
		return c, nil
	}
	if c.ClientAuth < tls.RequireAndVerifyClientCert {
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	if c.ClientCAs == nil {
		return nil, fmt.Errorf("nbd: the TLS configuration has no ClientCAs to verify clients with; InsecureAnyClient does without: %w", share.ErrInvalid)
	}
	return c, nil
}
