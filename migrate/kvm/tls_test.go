package kvm_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/internal/lab"
	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/migrate/kvm"
	"github.com/vmferry/vmferry/share"
)

const labPKI = "/etc/libvirt/pki"

// authority signs the certificates of hosts.
type authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t}
	a.key, a.cert = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "lab CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

func (a *authority) sign(template *x509.Certificate) (*ecdsa.PrivateKey, *x509.Certificate) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62))
	require.NoError(a.t, err)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, with := a.cert, a.key
	if parent == nil {
		parent, with = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, with)
	require.NoError(a.t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(a.t, err)
	return key, cert
}

// equip gives a host certificates of this authority, trusting another.
func (a *authority) equip(h *lab.Host, trusted *authority) {
	dir := h.OutsidePath(labPKI)
	require.NoError(a.t, os.MkdirAll(dir, 0o755))
	write := func(name, kind string, der []byte) {
		require.NoError(a.t, os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	write("ca-cert.pem", "CERTIFICATE", trusted.cert.Raw)
	for name, usage := range map[string]x509.ExtKeyUsage{"server": x509.ExtKeyUsageServerAuth, "client": x509.ExtKeyUsageClientAuth} {
		key, cert := a.sign(&x509.Certificate{
			Subject: pkix.Name{CommonName: h.Name()}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
			ExtKeyUsage: []x509.ExtKeyUsage{usage}, DNSNames: []string{h.Name()}, IPAddresses: []net.IP{net.ParseIP(h.Addr())},
		})
		write(name+"-cert.pem", "CERTIFICATE", cert.Raw)
		der, err := x509.MarshalPKCS8PrivateKey(key)
		require.NoError(a.t, err)
		write(name+"-key.pem", "PRIVATE KEY", der)
	}
}

func TestTLS(t *testing.T) {
	lab.Require(t)
	l := lab.Start(t, nil)
	r := &rig{T: t, lab: l}
	ca := newAuthority(t)
	for i, h := range l.Hosts() {
		ca.equip(h, ca)
		conf, err := os.OpenFile(h.OutsidePath("/etc/libvirt/qemu.conf"), os.O_APPEND|os.O_WRONLY, 0)
		require.NoError(t, err)
		fmt.Fprintf(conf, "default_tls_x509_cert_dir = %q\ndefault_tls_x509_verify = 1\n", labPKI)
		require.NoError(t, conf.Close())
		require.NoError(t, h.KillLibvirtd(r.ctx()))
		require.NoError(t, h.StartLibvirtd(r.ctx()))
		r.hosts[i] = r.connect(i)
	}
	g := r.start(0, worker())
	try := func(from int, o *kvm.MigrateOptions) (migrate.Result, error) {
		job, err := kvm.Migrate(r.ctx(), r.guest(from, g), r.hosts[1-from], o)
		require.NoError(t, err)
		return job.Wait(r.ctx())
	}
	res, err := try(0, nil)
	require.NoError(t, err)
	t.Logf("total %v, downtime %v", res.Total.Round(time.Millisecond), res.Downtime.Round(time.Millisecond))
	r.runsOn(1, g)
	require.NoError(t, os.Remove(l.Host(0).OutsidePath(g.Disks[0].Path)))
	was := r.before(g, 1)

	// Certificates of somebody else, at the destination or at the source; and
	// a name that is not the one in the certificate.
	other := newAuthority(t)
	for name, c := range map[string]func() *kvm.MigrateOptions{
		"the destination's certificate": func() *kvm.MigrateOptions { other.equip(l.Host(0), other); return nil },
		"the source's certificate":      func() *kvm.MigrateOptions { other.equip(l.Host(1), other); return nil },
		"the name":                      func() *kvm.MigrateOptions { return &kvm.MigrateOptions{TLSName: "elsewhere.example"} },
	} {
		ca.equip(l.Host(0), ca)
		ca.equip(l.Host(1), ca)
		res, err = try(1, c())
		t.Logf("%s: %v: %v", name, res.Phase, err)
		require.ErrorIs(t, err, share.ErrDenied, name)
		require.Equal(t, migrate.PhaseFailed, res.Phase, name)
		now := r.before(g, 1)
		require.Equal(t, was, now, name)
		r.nothingOn(0)
	}
	r.runsOn(1, g)
}
