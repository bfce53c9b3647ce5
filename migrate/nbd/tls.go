package nbd

import (
	"crypto/tls"
	"fmt"

	"github.com/vmferry/vmferry/internal/secure"
	"github.com/vmferry/vmferry/share"
)

// clientTLS is config with the rules of package secure applied. TLS is upgraded
// to by STARTTLS before anything else is said.
func clientTLS(config *tls.Config, name string) (*tls.Config, error) {
	c, err := secure.ClientTLS(config, name)
	if err != nil {
		return nil, fmt.Errorf("nbd: %w: %w", share.ErrInvalid, err)
	}
	return c, nil
}

// serverTLS is config with the rules of package secure applied.
func serverTLS(config *tls.Config, anonymous bool) (*tls.Config, error) {
	c, err := secure.ServerTLS(config, anonymous)
	if err != nil {
		return nil, fmt.Errorf("nbd: %w: %w", share.ErrInvalid, err)
	}
	return c, nil
}
