package bridge_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"bridged/internal/haproxy/haproxytest"
)

// certificate makes a PEM file that HAProxy can serve for name.
func certificate(t *testing.T, name string, serial int64) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})...)
}

// Files in the certificate directory go live because they are there: renewed, added, and
// not when they are broken, without a reload.
func TestCertificateDirectoryIsWatched(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		dir, port := t.TempDir(), haproxytest.FreePorts(t, 1)[0]
		write := func(name string, text []byte) {
			t.Helper()
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path+".new", text, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		}
		serves := func(name string, serial int64) {
			t.Helper()
			haproxytest.Eventually(t, fmt.Sprintf("certificate %d of %s", serial, name), func() error {
				c, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port), &tls.Config{ServerName: name, InsecureSkipVerify: true})
				if err != nil {
					return err
				}
				defer c.Close()
				if got := c.ConnectionState().PeerCertificates[0].SerialNumber.Int64(); got != serial {
					return fmt.Errorf("certificate %d", got)
				}
				return nil
			})
		}
		link := filepath.Join("/tmp", filepath.Base(t.TempDir())+fmt.Sprint(port)) // names of subtests are no paths for a bind
		if err := os.Symlink(dir, link); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(link) })
		write("a.pem", certificate(t, "a.test", 1))
		r := newRig(t, rigOptions{binary: bin, keys: fmt.Sprintf("tls: {dir: %s}\nhttp: {bind: [\"127.0.0.1:%d ssl crt %s\"]}\n", link, port, link)})
		r.start()
		r.ready(http.StatusOK)
		serves("a.test", 1)
		reloads := r.hap.Reloads(t)
		write("a.pem", certificate(t, "a.test", 2))
		serves("a.test", 2)
		write("b.pem", certificate(t, "b.test", 3))
		serves("b.test", 3)
		write("a.pem", []byte("half of a fi"))
		haproxytest.Eventually(t, "the broken file is reported", func() error {
			for _, c := range r.state().HAProxy.Certificates {
				if c.Problem != "" && filepath.Base(c.File) == "a.pem" {
					return nil
				}
			}
			return fmt.Errorf("not in %+v", r.state().HAProxy.Certificates)
		})
		serves("a.test", 2)
		if n := r.hap.Reloads(t) - reloads; n != 0 {
			t.Errorf("%d reloads for certificates", n)
		}
	})
}
