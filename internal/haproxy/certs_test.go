package haproxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/crypto/ocsp"

	"bridged/internal/haproxy/haproxytest"
)

// authority issues certificates for tests.
type authority struct {
	t      testing.TB
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t, serial: 1}
	a.key = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	a.cert = must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key))))
	return a
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// issue makes a PEM file for name with key, certificate and issuer; changes alter the template.
func (a *authority) issue(name string, changes ...func(*x509.Certificate)) (text []byte, leaf *x509.Certificate) {
	a.serial++
	template := &x509.Certificate{SerialNumber: big.NewInt(a.serial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(12 * time.Hour)}
	for _, change := range changes {
		change(template)
	}
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	der := must(x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key))
	text = append(encodeKey(key), encodeCert(der)...)
	return append(text, encodeCert(a.cert.Raw)...), must(x509.ParseCertificate(der))
}

func encodeKey(key any) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(key))})
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// staple makes an OCSP response for leaf.
func (a *authority) staple(leaf *x509.Certificate, at, until time.Time) []byte {
	return must(ocsp.CreateResponse(a.cert, a.cert, ocsp.Response{Status: ocsp.Good, SerialNumber: leaf.SerialNumber,
		ThisUpdate: at, NextUpdate: until}, a.key))
}

func TestParseCertificate(t *testing.T) {
	a := newAuthority(t)
	good, _ := a.issue("good.test")
	other, _ := a.issue("other.test")
	key, rest, _ := strings.Cut(string(good), "-----BEGIN CERTIFICATE-----")
	rest = "-----BEGIN CERTIFICATE-----" + rest
	otherKey, _, _ := strings.Cut(string(other), "-----BEGIN CERTIFICATE-----")
	small := must(rsa.GenerateKey(rand.Reader, 1024))
	smallDER := must(x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(9)}, a.cert, small.Public(), a.key))
	for _, test := range []struct{ name, text, want string }{
		{"good", string(good), ""},
		{"certificate-first-with-comments", "# from the authority\n\n" + rest + "\n\n" + key, ""},
		{"empty", "", "no certificate"},
		{"cut-short", string(good[:len(good)/3]), "no certificate"},
		{"no-key", rest, "no private key"},
		{"key-of-another", otherKey + rest, "not that of the first"},
		{"two-keys", otherKey + string(good), "more than one"},
		{"chain-of-another", key + rest + string(encodeCert(must(parseCertificate(other)).leaf.Raw)), "did not issue"},
		{"small-rsa-key", string(encodeKey(small)) + string(encodeCert(smallDER)), "1024 bits"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := parseCertificate([]byte(test.text))
			switch {
			case test.want == "" && err != nil:
				t.Fatal(err)
			case test.want == "" && strings.Contains(string(c.pem), "\n\n"):
				t.Fatal("an empty line would end the payload")
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Fatalf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

// tlsDriver is a driver with a TLS frontend on a certificate directory.
type tlsDriver struct {
	*driver
	*authority
	dir  string
	port uint16
}

func newTLSDriver(t testing.TB, bin haproxytest.Binary, names ...string) *tlsDriver {
	t.Helper()
	hap := haproxytest.Start(t, haproxytest.Options{Binary: bin})
	r := &tlsDriver{authority: newAuthority(t), dir: filepath.Join(hap.Dir, "certificates"), port: haproxytest.FreePorts(t, 1)[0],
		driver: &driver{t: t, hap: hap, global: &Global{Socket: hap.DirectSocket, MaxConn: 1000, CheckInterval: "10s", OldWorkers: 4}}}
	if err := os.Mkdir(r.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		text, _ := r.issue(name)
		r.write(name+".pem", text)
	}
	r.opts = Options{ConfigFile: hap.ConfigFile, Socket: hap.Socket, MasterSocket: hap.MasterSocket, Binary: bin.Path,
		SaveDelay: time.Millisecond, Drain: 30 * time.Second, Logger: testLog(t), CertDir: r.dir}
	r.open()
	return r
}

func (r *tlsDriver) frontend(options string) *Section {
	return &Section{Kind: KindFrontend, Name: "tls", Mode: HTTP, Binds: []Bind{{Addr: "127.0.0.1", Port: r.port, Options: options}},
		Lines: []string{"monitor-uri /"}}
}

// serve lets HAProxy listen, and waits until it does.
func (r *tlsDriver) serve(options string) {
	r.driver.t.Helper()
	r.apply(Change{Global: r.global, Frontends: map[string]*Section{"tls": r.frontend(options)}})
	r.look()
}

// look has the certificate files looked at, and waits until all of it is done.
func (r *tlsDriver) look() {
	r.driver.t.Helper()
	r.Certificates(r.driver.t.Context())
	r.until("certificates are as they shall be", func() bool {
		return r.Status().Matches && !r.busy && !r.certs.due && !r.certs.retry && !r.unsaved
	})
}

// write replaces a file as tools do.
func (r *tlsDriver) write(name string, text []byte) {
	r.driver.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.WriteFile(path+"~", text, 0o600); err != nil {
		r.driver.t.Fatal(err)
	}
	if err := os.Rename(path+"~", path); err != nil {
		r.driver.t.Fatal(err)
	}
}

// handshake says which certificate HAProxy shows for a name.
func handshake(port uint16, name string) (state tls.ConnectionState, err error) {
	d := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 20 * time.Second}, Config: &tls.Config{ServerName: name, InsecureSkipVerify: true}}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return state, err
	}
	defer c.Close()
	return c.(*tls.Conn).ConnectionState(), nil
}

// shows fails the test unless HAProxy shows want for a name.
func (r *tlsDriver) shows(name string, want *x509.Certificate) {
	r.driver.t.Helper()
	state, err := handshake(r.port, name)
	if err != nil {
		r.driver.t.Fatalf("%s: %v", name, err)
	}
	if got := state.PeerCertificates[0]; !got.Equal(want) {
		r.driver.t.Fatalf("%s: certificate of %s number %v, want %s number %v", name, got.Subject, got.SerialNumber, want.Subject, want.SerialNumber)
	}
}

func TestCertificateReplacedUnderLoad(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newTLSDriver(t, bin, "a.test", "b.test")
		r.serve("ssl crt " + r.dir)
		reloads := r.hap.Reloads(t)

		stop, failures := make(chan struct{}), atomic.Int64{}
		var shook atomic.Int64
		var clients sync.WaitGroup
		for range 3 {
			clients.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					state, err := handshake(r.port, "b.test")
					if err != nil || state.PeerCertificates[0].DNSNames[0] != "b.test" {
						failures.Add(1)
						t.Errorf("handshake: %v %v", err, state.PeerCertificates)
						return
					}
					shook.Add(1)
				}
			})
		}
		var last *x509.Certificate
		for range 5 {
			var text []byte
			text, last = r.issue("b.test")
			r.write("b.test.pem", text)
			r.look()
			r.shows("b.test", last)
			// Some load on each of them.
			for seen := shook.Load(); shook.Load() < seen+5 && failures.Load() == 0; {
				r.shows("b.test", last)
			}
		}
		close(stop)
		clients.Wait()
		if got := r.hap.Reloads(t); got != reloads {
			t.Fatalf("%d reloads for replaced certificates", got-reloads)
		}
		if got := testutil.ToFloat64(r.m.certUpdates.WithLabelValues("update", "ok")); got != 5 {
			t.Fatalf("%v updates counted, want 5", got)
		}
		if got := testutil.ToFloat64(r.m.certExpiry.WithLabelValues(filepath.Join(r.dir, "b.test.pem"))); got != float64(last.NotAfter.Unix()) {
			t.Fatalf("expiry %v, want %v", got, last.NotAfter.Unix())
		}
		// Anybody's reload keeps it.
		r.hap.Reload(t)
		r.shows("b.test", last)
	})
}

func TestCertificateAddedAndDeletedAtRunTime(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newTLSDriver(t, bin, "a.test")
		r.serve("ssl crt " + r.dir)
		fallback := must(handshake(r.port, "new.test")).PeerCertificates[0]
		reloads := r.hap.Reloads(t)

		text, leaf := r.issue("new.test")
		r.write("new.test.pem", text)
		r.look()
		r.shows("new.test", leaf)

		r.hap.Reload(t) // somebody else's
		r.until("the new worker is known", func() bool { return r.Status().Pid == r.hap.Pid(t) && !r.busy && !r.certs.due })
		r.shows("new.test", leaf)

		if err := os.Remove(filepath.Join(r.dir, "new.test.pem")); err != nil {
			t.Fatal(err)
		}
		r.look()
		r.shows("new.test", fallback)
		if got := r.hap.Reloads(t); got != reloads+1 { // the one of somebody else
			t.Fatalf("%d reloads, want none of ours", got-reloads-1)
		}
		// A certificate is free to come back.
		r.write("new.test.pem", text)
		r.look()
		r.shows("new.test", leaf)

		// The default one of the listener cannot go at run time.
		if err := os.Remove(filepath.Join(r.dir, "a.test.pem")); err != nil {
			t.Fatal(err)
		}
		r.look()
		r.shows("a.test", leaf)
		if got := r.hap.Reloads(t); got != reloads+2 {
			t.Fatalf("%d reloads for the default certificate, want 1", got-reloads-1)
		}
	})
}

func TestBrokenCertificateKeepsTheOld(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newTLSDriver(t, bin, "a.test", "b.test")
		r.serve("ssl crt " + r.dir)
		was := must(handshake(r.port, "b.test")).PeerCertificates[0]
		reloads := r.hap.Reloads(t)
		expired, _ := r.issue("b.test", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
		whole, _ := r.issue("b.test")
		for name, text := range map[string][]byte{"cut short": whole[:len(whole)/2], "expired": expired, "empty": nil, "nonsense": []byte("x\n\nshow info\n")} {
			r.write("b.test.pem", text)
			other, leaf := r.issue("a.test")
			r.write("a.test.pem", other)
			r.look()
			r.shows("b.test", was)
			r.shows("a.test", leaf)
			if got := testutil.ToFloat64(r.m.certRejected); got != 1 {
				t.Fatalf("%s: %v files rejected, want 1", name, got)
			}
		}
		if got := r.hap.Reloads(t); got != reloads {
			t.Fatalf("%d reloads", got-reloads)
		}
		r.hap.Reload(t) // somebody else's does not meet the broken file either
		r.shows("b.test", was)

		// Neither does a bridge that starts anew.
		r.Close()
		r.open()
		r.serve("ssl crt " + r.dir)
		r.shows("b.test", was)
		text, leaf := r.issue("b.test")
		r.write("b.test.pem", text)
		r.look()
		r.shows("b.test", leaf)
	})
}

func TestCertificateOfOneListener(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newTLSDriver(t, bin, "a.test")
		single, port := filepath.Join(r.hap.Dir, "app.pem"), haproxytest.FreePorts(t, 1)[0]
		app := &Backend{Section: Section{Kind: KindBackend, Name: "app", Mode: HTTP, Owner: "/app", Lines: []string{"monitor-uri /"},
			Binds: []Bind{{Addr: "127.0.0.1", Port: port, Options: "ssl crt " + single}}}}
		r.apply(Change{Global: r.global, Frontends: map[string]*Section{"tls": r.frontend("ssl crt " + r.dir)}, Backends: map[string]*Backend{"app": app}})
		r.look()
		// Its certificate is not there: it alone is not served.
		r.shows("a.test", must(handshake(r.port, "a.test")).PeerCertificates[0])
		rejected := r.Status().Rejected
		if len(rejected) != 1 || rejected[0].Owner != "/app" || !strings.Contains(rejected[0].Detail, single) {
			t.Fatalf("rejected: %+v", rejected)
		}
		if _, err := handshake(port, "app.test"); err == nil {
			t.Fatal("a listener without its certificate")
		}
		// It comes, and then another one.
		for range 2 {
			text, leaf := r.issue("app.test")
			if err := os.WriteFile(single, text, 0o600); err != nil {
				t.Fatal(err)
			}
			r.look()
			state, err := handshake(port, "app.test")
			if err != nil || !state.PeerCertificates[0].Equal(leaf) {
				t.Fatalf("%v %v; %+v", err, state.PeerCertificates, r.Status())
			}
		}
		if rejected := r.Status().Rejected; len(rejected) > 0 {
			t.Fatalf("rejected: %+v", rejected)
		}
		if got := testutil.ToFloat64(r.m.certUpdates.WithLabelValues("update", "ok")); got != 1 {
			t.Fatalf("%v updates without a reload, want 1", got)
		}
	})
}

func TestStapledResponse(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newTLSDriver(t, bin, "a.test")
		r.serve("ssl crt " + r.dir)
		reloads := r.hap.Reloads(t)
		text, leaf := r.issue("b.test")
		stapled := func(want []byte) {
			t.Helper()
			r.look()
			state, err := handshake(r.port, "b.test")
			if err != nil || string(state.OCSPResponse) != string(want) {
				t.Fatalf("stapled %d bytes, want %d; %v", len(state.OCSPResponse), len(want), err)
			}
		}
		now := time.Now().Truncate(time.Minute)
		first, second := r.staple(leaf, now.Add(-time.Hour), now.Add(time.Hour)), r.staple(leaf, now.Add(-time.Minute), now.Add(2*time.Hour))
		r.write("b.test.pem"+ocspSuffix, first)
		r.write("b.test.pem", text)
		stapled(first)
		r.write("b.test.pem"+ocspSuffix, second)
		stapled(second)
		if got := testutil.ToFloat64(r.m.certUpdates.WithLabelValues("ocsp", "ok")); got != 1 {
			t.Fatalf("%v updates of responses, want 1", got)
		}
		// An old one is not taken, and not in the way of a reload.
		r.write("b.test.pem"+ocspSuffix, r.staple(leaf, now.Add(-2*time.Hour), now.Add(-time.Hour)))
		r.look()
		if got := r.hap.Reloads(t); got != reloads {
			t.Fatalf("%d reloads", got-reloads)
		}
		r.hap.Reload(t)
		r.shows("b.test", leaf)
	})
}

func TestSelfSignedOnlyWhenAsked(t *testing.T) {
	r := newTLSDriver(t, haproxytest.Default(t))
	r.serve("ssl crt " + r.dir)
	if _, err := handshake(r.port, "any.test"); err == nil {
		t.Fatal("TLS without a certificate")
	}
	if rejected := r.Status().Rejected; len(rejected) != 1 || !strings.Contains(rejected[0].Detail, r.dir) {
		t.Fatalf("rejected: %+v", rejected)
	}
	r.Close()
	r.opts.SelfSigned = true
	r.open()
	r.serve("ssl crt " + r.dir)
	if state, err := handshake(r.port, "any.test"); err != nil || state.PeerCertificates[0].Subject.CommonName != "bridged self-signed" {
		t.Fatal(err, state.PeerCertificates)
	}
	// It gives way to a real one.
	text, leaf := r.issue("a.test")
	r.write("a.test.pem", text)
	r.look()
	r.shows("any.test", leaf)
}

func TestInterruptedCertificateTransaction(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newTLSDriver(t, bin, "a.test", "b.test")
		r.serve("ssl crt " + r.dir)
		// One that was killed between set and commit has left this.
		c, err := dial(t.Context(), r.hap.DirectSocket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.close()
		wrong, _ := r.issue("wrong.test")
		open := filepath.Join(r.certs.store.dir, certSNI, "a.test.pem")
		if _, err := c.payload(t.Context(), "set ssl cert "+open+" <<", strings.TrimSpace(string(must(parseCertificate(wrong)).pem))); err != nil {
			t.Fatal(err)
		}
		was := must(handshake(r.port, "a.test")).PeerCertificates[0]
		text, leaf := r.issue("b.test")
		r.write("b.test.pem", text)
		r.look()
		r.shows("b.test", leaf)
		r.shows("a.test", was)
	})
}

func TestPayloadsAreNotInErrors(t *testing.T) {
	c := &conn{dead: true}
	if _, err := c.payload(t.Context(), "set ssl cert /x <<", "SECRET"); !errors.Is(err, errLost) || strings.Contains(err.Error(), "SECRET") {
		t.Fatal(err)
	}
}
