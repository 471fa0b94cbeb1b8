package discovery

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bridged/internal/discovery/marathontest"
)

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// rewrite changes a file so that its size or time differs, as an operator's edit would.
func rewrite(t *testing.T, path, text string, at time.Time) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o600))
	must(t, os.Chtimes(path, at, at))
}

func TestBasicFileIsReadAgain(t *testing.T) {
	path := writeFile(t, "basic", "bridge:old\n")
	bubble(t, marathontest.Options{BasicUser: "bridge", BasicPassword: "new"}, Options{Auth: AuthOptions{BasicFile: path}}, func(w *world) {
		must(t, w.cluster.Deploy(web(2)))
		w.settle(20 * time.Second)
		s := w.watcher.Status()
		if s.Connected || !strings.Contains(s.Err, "401") || !strings.Contains(s.Err, "marathon.auth") || strings.Contains(s.Err, "old") {
			t.Fatalf("with a wrong password: %+v", s)
		}
		rewrite(t, path, "bridge:new\n", time.Unix(1, 0))
		w.settle(10 * time.Second)
		w.matches("with the right password")
	})
}

func TestTokenFile(t *testing.T) {
	path := writeFile(t, "token", "sesame\n")
	bubble(t, marathontest.Options{Tokens: []string{"sesame"}, BasePath: "/service/marathon"}, Options{Auth: AuthOptions{TokenFile: path}}, func(w *world) {
		must(t, w.cluster.Deploy(web(2)))
		w.settle(5 * time.Second)
		w.matches("with a token, below a path")
	})
}

func serviceAccountFile(t *testing.T, endpoint string) (string, *rsa.PublicKey) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	pemKey := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	account, err := json.Marshal(map[string]string{"uid": "bridge", "private_key": string(pemKey), "login_endpoint": endpoint, "scheme": "RS256"})
	must(t, err)
	return writeFile(t, "account.json", string(account)), &key.PublicKey
}

func TestServiceAccountLogsInAndRenews(t *testing.T) {
	path, public := serviceAccountFile(t, "http://192.0.2.1:8080/acs/api/v1/auth/login")
	dcos := &marathontest.DCOS{Accounts: map[string]*rsa.PublicKey{"bridge": public}}
	bubble(t, marathontest.Options{DCOS: dcos}, Options{Auth: AuthOptions{DCOSFile: path}}, func(w *world) {
		must(t, w.cluster.Deploy(web(2)))
		w.settle(5 * time.Second)
		w.matches("logged in")
		if n := dcos.Logins(); n != 1 {
			t.Errorf("%d logins, want one", n)
		}
		dcos.Revoke()
		w.settle(10 * time.Second)
		if n := dcos.Logins(); n != 2 {
			t.Errorf("%d logins after the token was revoked, want two", n)
		}
		// A token is replaced before its end.
		w.settle(3 * time.Hour)
		if n := dcos.Logins(); n < 4 || n > 8 {
			t.Errorf("%d logins after three hours", n)
		}
		if !w.connected() {
			t.Errorf("status: %+v", w.watcher.Status())
		}
	})
}

func TestOwnAuthorityAndClientCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, err := marathontest.NewAuthority()
		must(t, err)
		server, err := ca.Certificate("192.0.2.1")
		must(t, err)
		user, err := ca.Certificate("bridge")
		must(t, err)
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(ca.PEM())
		key, err := x509.MarshalPKCS8PrivateKey(user.PrivateKey)
		must(t, err)
		files := TLSOptions{
			CAFile:   writeFile(t, "ca.pem", string(ca.PEM())),
			CertFile: writeFile(t, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: user.Certificate[0]}))),
			KeyFile:  writeFile(t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))),
		}
		mo := marathontest.Options{TLS: &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}}
		w := newWorld(t, mo, Options{TLS: files})
		defer w.cluster.Close()
		must(t, w.cluster.Deploy(web(2)))
		w.run()
		defer w.stop()
		w.settle(5 * time.Second)
		w.matches("with certificates")
	})
}

func TestBadSecretsAreNamedNotShown(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"two-lines": {"bridge:secret\nmore\n", "want one line"},
		"no-colon":  {"secret\n", "want user:password"},
		"empty":     {"", "want one line"},
	} {
		t.Run(name, func(t *testing.T) {
			path := writeFile(t, "basic", c.text)
			_, err := newCredentials(AuthOptions{BasicFile: path}, nil).header(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "secret") {
				t.Errorf("have %v, want %q with the path and no secret", err, c.want)
			}
		})
	}
	for name, c := range map[string]struct{ text, want string }{
		"no-json":  {"x", "not the JSON of a service account"},
		"no-key":   {`{"uid":"u","login_endpoint":"http://192.0.2.1/","private_key":"secret"}`, "private_key: not PEM"},
		"no-login": {`{"uid":"u","private_key":"secret"}`, "login_endpoint"},
		"scheme":   {`{"uid":"u","scheme":"HS256","private_key":"secret"}`, "scheme"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newCredentials(AuthOptions{DCOSFile: writeFile(t, "account", c.text)}, nil).header(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("have %v, want %q", err, c.want)
			}
		})
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for name, c := range map[string]struct {
		o    Options
		want []string
	}{
		"nothing":   {Options{}, []string{"urls"}},
		"bad-urls":  {Options{URLs: []string{"ftp://x", "http://", "http://a:b@h/?q", "%%"}}, []string{"urls[0]", "urls[1]", "urls[2]", "urls[3]"}},
		"transport": {Options{URLs: []string{"m1:8080"}, Transport: "pigeon"}, []string{"transport", "pigeon"}},
		"callback":  {Options{URLs: []string{"m1:8080"}, Transport: TransportCallback}, []string{"callback.listen"}},
		"two-auths": {Options{URLs: []string{"m1:8080"}, Auth: AuthOptions{BasicFile: "a", TokenFile: "b"}}, []string{"basic_file", "token_file"}},
		"half-tls":  {Options{URLs: []string{"m1:8080"}, TLS: TLSOptions{CertFile: "a"}}, []string{"cert_file", "key_file"}},
		"no-ca":     {Options{URLs: []string{"m1:8080"}, TLS: TLSOptions{CAFile: "/nowhere/ca.pem"}}, []string{"ca_file", "/nowhere/ca.pem"}},
		"resync":    {Options{URLs: []string{"m1:8080"}, Resync: -1}, []string{"resync"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewWatcher(c.o)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("have %v, want it to name %s", err, want)
				}
			}
			if strings.Contains(err.Error(), "a:b@") {
				t.Errorf("a password is shown: %v", err)
			}
		})
	}
}
