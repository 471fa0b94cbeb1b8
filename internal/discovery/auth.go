package discovery

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
)

// credentials gives the Authorization header of requests to Marathon. It may be used
// from several goroutines. Secrets are never part of an error.
type credentials interface {
	// header is the value of Authorization, "" for none.
	header(ctx context.Context) (string, error)
	// refused says that Marathon answered 401 to value: get another one.
	refused(value string)
}

// newCredentials reads nothing yet. login makes the requests of a DC/OS login.
func newCredentials(o AuthOptions, login *http.Client) credentials {
	switch {
	case o.BasicFile != "":
		return &fileCredentials{path: o.BasicFile, format: basicHeader}
	case o.TokenFile != "":
		return &fileCredentials{path: o.TokenFile, format: tokenHeader}
	case o.DCOSFile != "":
		return &dcosCredentials{file: secretFile{path: o.DCOSFile}, client: login, now: time.Now}
	}
	return noCredentials{}
}

type noCredentials struct{}

func (noCredentials) header(context.Context) (string, error) { return "", nil }
func (noCredentials) refused(string)                         {}

// maxSecret bounds a file of secrets.
const maxSecret = 64 << 10

// secretFile is a file that is read again when it changes.
type secretFile struct {
	path    string
	stamp   string
	content []byte
}

// read returns the content and whether it is new since the last call.
func (f *secretFile) read() (content []byte, fresh bool, err error) {
	info, err := os.Stat(f.path)
	if err != nil {
		return nil, false, err
	}
	stamp := fmt.Sprint(info.ModTime().UnixNano(), info.Size())
	if f.stamp == stamp && f.content != nil {
		return f.content, false, nil
	}
	if info.Size() > maxSecret {
		return nil, false, fmt.Errorf("%s: want at most %d bytes, have %d", f.path, maxSecret, info.Size())
	}
	content, err = os.ReadFile(f.path)
	if err != nil {
		return nil, false, err
	}
	content = bytes.TrimSpace(content)
	fresh = f.content == nil || !bytes.Equal(content, f.content)
	f.content, f.stamp = content, stamp
	return content, fresh, nil
}

// fileCredentials are one line of a file.
type fileCredentials struct {
	path   string
	format func(line string) (string, error)

	mu   sync.Mutex
	file secretFile
}

func (c *fileCredentials) header(context.Context) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.file.path = c.path
	content, _, err := c.file.read()
	if err != nil {
		return "", fmt.Errorf("credentials: %w", err)
	}
	if strings.ContainsAny(string(content), "\r\n") || len(content) == 0 {
		return "", fmt.Errorf("credentials: %s: want one line", c.path)
	}
	h, err := c.format(string(content))
	if err != nil {
		return "", fmt.Errorf("credentials: %s: %w", c.path, err)
	}
	return h, nil
}

func (c *fileCredentials) refused(string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.file.stamp = "" // read it again, whatever its time says
}

func basicHeader(line string) (string, error) {
	if !strings.Contains(line, ":") {
		return "", errors.New("want user:password")
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(line)), nil
}

func tokenHeader(line string) (string, error) { return "token=" + line, nil }

// dcosCredentials logs in with a DC/OS service account: an RS256 token signed by the
// account's key is exchanged for one that Marathon's Admin Router accepts (DC/OS
// documentation, "Service account authentication").
type dcosCredentials struct {
	client *http.Client
	now    func() time.Time

	mu    sync.Mutex // held while logging in, so that there is one login at a time
	file  secretFile
	token string
	until time.Time // when to get the next one
}

const (
	loginTimeout = 10 * time.Second
	loginProof   = time.Minute     // life of what we sign
	tokenLife    = time.Hour       // what we ask for
	tokenEarly   = 5 * time.Minute // before its end it is renewed
)

type serviceAccount struct {
	UID           string `json:"uid"`
	PrivateKey    string `json:"private_key"`
	LoginEndpoint string `json:"login_endpoint"`
	Scheme        string `json:"scheme"`
}

func (c *dcosCredentials) header(ctx context.Context) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	content, fresh, err := c.file.read()
	if err != nil {
		return "", fmt.Errorf("credentials: %w", err)
	}
	if c.token == "" || fresh || c.now().After(c.until) {
		token, until, err := c.login(ctx, content)
		if err != nil {
			if c.token != "" && !fresh {
				c.until = c.now().Add(time.Minute) // the old one may be good for some more minutes
				return c.token, nil
			}
			return "", fmt.Errorf("credentials: %s: %w", c.file.path, err)
		}
		c.token, c.until = "token="+token, until
	}
	return c.token, nil
}

func (c *dcosCredentials) refused(value string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.token == value {
		c.token = ""
	}
}

func (c *dcosCredentials) login(ctx context.Context, content []byte) (string, time.Time, error) {
	var account serviceAccount
	if err := json.Unmarshal(content, &account); err != nil {
		return "", time.Time{}, errors.New("not the JSON of a service account; want uid, private_key and login_endpoint")
	}
	if account.Scheme != "" && account.Scheme != "RS256" {
		return "", time.Time{}, fmt.Errorf("scheme: want RS256, have %q", clip(account.Scheme))
	}
	endpoint, err := url.Parse(account.LoginEndpoint)
	if err != nil || endpoint.Scheme != "https" && endpoint.Scheme != "http" || endpoint.Host == "" {
		return "", time.Time{}, errors.New("login_endpoint: want a URL such as https://leader.mesos/acs/api/v1/auth/login")
	}
	now := c.now()
	proof, err := signRS256(account.PrivateKey, map[string]any{"uid": account.UID, "exp": now.Add(loginProof).Unix()})
	if err != nil {
		return "", time.Time{}, err
	}
	body, err := json.Marshal(map[string]any{"uid": account.UID, "token": proof, "exp": now.Add(tokenLife).Unix()})
	if err != nil {
		return "", time.Time{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint.String(), bytes.NewReader(body))
	if err != nil {
		return "", time.Time{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := c.client.Do(req)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("login: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return "", time.Time{}, fmt.Errorf("login at %s: %s", endpoint.Redacted(), res.Status)
	}
	var answer struct {
		Token string `json:"token"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxSecret)).Decode(&answer); err != nil || answer.Token == "" || !plain(answer.Token) {
		return "", time.Time{}, fmt.Errorf("login at %s: no token in the answer", endpoint.Redacted())
	}
	return answer.Token, renewal(answer.Token, now), nil
}

// renewal is when to replace a token: some minutes before its own end, if it tells one.
func renewal(token string, now time.Time) time.Time {
	until := now.Add(tokenLife)
	if parts := strings.Split(token, "."); len(parts) == 3 {
		if claims, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil {
			var c struct {
				Exp int64 `json:"exp"`
			}
			if json.Unmarshal(claims, &c) == nil && c.Exp > 0 {
				until = time.Unix(c.Exp, 0)
			}
		}
	}
	life := until.Sub(now)
	return now.Add(max(life-tokenEarly, life/2))
}

// signRS256 makes a JSON Web Token (RFC 7515, RFC 7519).
func signRS256(keyPEM string, claims map[string]any) (string, error) {
	block, _ := pem.Decode([]byte(keyPEM))
	if block == nil {
		return "", errors.New("private_key: not PEM")
	}
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return "", errors.New("private_key: not an RSA key in PKCS #1 or PKCS #8")
		}
		var ok bool
		if key, ok = parsed.(*rsa.PrivateKey); !ok {
			return "", errors.New("private_key: not an RSA key")
		}
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	enc := base64.RawURLEncoding
	text := enc.EncodeToString([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + enc.EncodeToString(payload)
	sum := sha256.Sum256([]byte(text))
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		return "", fmt.Errorf("sign login: %w", err)
	}
	return text + "." + enc.EncodeToString(sig), nil
}
