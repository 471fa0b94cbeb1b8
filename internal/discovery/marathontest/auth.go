package marathontest

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// DCOS plays the login service of DC/OS: POST /acs/api/v1/auth/login with a
// JWT signed by a service account's key gives a token that Marathon accepts.
type DCOS struct {
	// Accounts are the public keys of the service accounts, by uid.
	Accounts map[string]*rsa.PublicKey
	// Life of a token, default five days. A login's own "exp" can only shorten it.
	Life time.Duration

	mu     sync.Mutex // guards what follows
	tokens map[string]time.Time
	logins int
}

// Logins is how many logins succeeded.
func (d *DCOS) Logins() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.logins
}

// Revoke makes all tokens invalid that were given so far.
func (d *DCOS) Revoke() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.tokens)
}

func (d *DCOS) accepts(token string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	until, ok := d.tokens[token]
	return ok && time.Now().Before(until)
}

// verify checks a service login token: RS256, uid and exp as claims.
func (d *DCOS) verify(uid, token string) error {
	key := d.Accounts[uid]
	if key == nil {
		return fmt.Errorf("no service account %q", uid)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return errors.New("the login token is no JWT")
	}
	var decoded [3][]byte
	for i, p := range parts {
		b, err := base64.RawURLEncoding.DecodeString(p)
		if err != nil {
			return fmt.Errorf("part %d of the login token: %w", i, err)
		}
		decoded[i] = b
	}
	var head struct{ Alg string }
	var claims struct {
		UID string
		Exp int64
	}
	if err := errors.Join(json.Unmarshal(decoded[0], &head), json.Unmarshal(decoded[1], &claims)); err != nil {
		return fmt.Errorf("login token: %w", err)
	}
	if head.Alg != "RS256" {
		return fmt.Errorf("login token: algorithm %q, want RS256", head.Alg)
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], decoded[2]); err != nil {
		return fmt.Errorf("login token: %w", err)
	}
	if claims.UID != uid {
		return fmt.Errorf("login token of %q used by %q", claims.UID, uid)
	}
	if claims.Exp <= time.Now().Unix() {
		return errors.New("the login token has expired or has no exp")
	}
	return nil
}

func (c *Cluster) login(r *http.Request) answer {
	d := c.opts.DCOS
	if d == nil || r.Method != http.MethodPost {
		return messageAnswer(http.StatusNotFound, "no login here")
	}
	var ask struct {
		UID   string `json:"uid"`
		Token string `json:"token"`
		Exp   int64  `json:"exp"`
	}
	if err := decodeBody(r, &ask); err != nil {
		return messageAnswer(http.StatusBadRequest, err.Error())
	}
	if err := d.verify(ask.UID, ask.Token); err != nil {
		return jsonAnswer(http.StatusUnauthorized, loginError(err))
	}
	life := d.Life
	if life == 0 {
		life = 5 * 24 * time.Hour
	}
	until := time.Now().Add(life)
	if asked := time.Unix(ask.Exp, 0); ask.Exp > 0 && asked.Before(until) {
		until = asked
	}
	c.lock()
	token := c.uuid()
	c.unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tokens == nil {
		d.tokens = make(map[string]time.Time)
	}
	d.tokens[token] = until
	d.logins++
	a := jsonAnswer(http.StatusOK, member("token", appendQuoted(nil, token)))
	a.header = http.Header{"Set-Cookie": {"dcos-acs-auth-cookie=" + token + "; Path=/; HttpOnly"}}
	return a
}

func loginError(err error) []byte {
	o := newObject(128)
	o.str("title", "Unauthorized")
	o.str("description", err.Error())
	o.str("code", "ERR_INVALID_CREDENTIALS")
	return o.end()
}

// authenticate returns the refusal of a request without valid credentials, nil if it may pass.
func (c *Cluster) authenticate(r *http.Request) *answer {
	basic := c.opts.BasicUser != "" && c.opts.BasicPassword != ""
	tokens := len(c.opts.Tokens) > 0 || c.opts.DCOS != nil
	if !basic && !tokens {
		return nil
	}
	if user, password, ok := r.BasicAuth(); ok && basic && same(user, c.opts.BasicUser) && same(password, c.opts.BasicPassword) {
		return nil
	}
	if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "token="); ok && tokens {
		if slices.Contains(c.opts.Tokens, token) || c.opts.DCOS != nil && c.opts.DCOS.accepts(token) {
			return nil
		}
	}
	a := messageAnswer(http.StatusUnauthorized, "Invalid username or password.")
	if basic {
		a.header = http.Header{"Www-Authenticate": {`Basic realm="Mesosphere"`}}
	}
	return &a
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
