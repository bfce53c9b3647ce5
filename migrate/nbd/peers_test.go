package nbd_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The peers of the interoperability tests are the programs that others use.
// Each test starts its own, on unix sockets or loopback, and ends them.

// tool finds a program. Without it the test is skipped, unless the laboratory
// is required.
func tool(t testing.TB, name string) string {
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("VMFERRY_LAB") == "required" {
			t.Fatalf("%s is missing; internal/lab/install.sh installs it", name)
		}
		t.Skipf("%s is missing; make test or internal/lab/install.sh installs it", name)
	}
	return path
}

// tools are needed by a test that starts them later.
func tools(t testing.TB, names ...string) {
	for _, name := range names {
		tool(t, name)
	}
}

// output runs a program to its end, which must be a success.
func output(t testing.TB, name string, args ...string) string {
	out, err := attempt(t, name, args...)
	require.NoError(t, err, "%s %q: %s", name, args, out)
	return out
}

// attempt runs a program to its end.
func attempt(t testing.TB, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, tool(t, name), args...)
	endWithUs(c)
	out, err := c.CombinedOutput()
	return string(out), err
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// daemon starts a server and waits until address accepts connections. It is
// ended with the test.
func daemon(t testing.TB, network, address, name string, args ...string) *os.Process {
	c := exec.Command(tool(t, name), args...)
	endWithUs(c)
	var said safeBuffer
	c.Stdout, c.Stderr = &said, &said
	require.NoError(t, c.Start())
	gone := make(chan struct{})
	go func() { c.Wait(); close(gone) }()
	t.Cleanup(func() {
		c.Process.Kill()
		<-gone
		if t.Failed() && said.String() != "" {
			t.Logf("%s said: %s", name, said.String())
		}
	})
	for end := time.Now().Add(20 * time.Second); ; {
		if conn, err := net.Dial(network, address); err == nil {
			conn.Close()
			return c.Process
		}
		select {
		case <-gone:
			t.Fatalf("%s %q ended: %s", name, args, said.String())
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not listen on %s: %s", name, address, said.String())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// unixURI is the address of an export on a unix socket.
func unixURI(path, export string) string {
	return (&url.URL{Scheme: "nbd+unix", Path: "/" + export, RawQuery: "socket=" + url.QueryEscape(path), OmitHost: false, Host: ""}).String()
}

// freePort is a port on loopback that was free just now.
func freePort(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// authority makes certificates for tests, in the layout of directories that
// QEMU, nbdkit and libnbd read.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t testing.TB) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{t, cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// issue makes a certificate, and a directory with it as role-cert.pem,
// role-key.pem and ca-cert.pem. A server's is for 127.0.0.1.
func (a *authority) issue(role, name string) (tls.Certificate, string) {
	t := a.t
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if role == "server" {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
		template.DNSNames = []string{"localhost"}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	require.NoError(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	dir := t.TempDir()
	for file, content := range map[string][]byte{"ca-cert.pem": a.pem, role + "-cert.pem": certPEM, role + "-key.pem": keyPEM} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), content, 0o600))
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	require.NoError(t, err)
	return pair, dir
}
