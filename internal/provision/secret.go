package provision

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// ErrNoSecret says that the blueprint gives no value for a secret.
var ErrNoSecret = errors.New("no such secret in the blueprint")

// Value is plain text or a reference to it: {env: NAME}, {file: path} or
// {exec: [command, arg…]}. A reference is resolved when the value is used.
type Value struct {
	Text string
	Env  string
	File string
	Exec []string
}

func (v Value) set() bool { return v.Text != "" || v.ref() }

func (v Value) ref() bool { return v.Env != "" || v.File != "" || len(v.Exec) > 0 }

// String names where a value comes from, never the value of a reference.
func (v Value) String() string {
	switch {
	case v.Env != "":
		return "{env: " + v.Env + "}"
	case v.File != "":
		return "{file: " + v.File + "}"
	case len(v.Exec) > 0:
		return "{exec: [" + v.Exec[0] + ", …]}"
	}
	return v.Text
}

// Secret is none, derived from the cluster's key, or a reference.
type Secret struct {
	Derive     bool
	Value      Value
	Generation int // grows by one with every rotate; part of the hash of nodes that use it
}

func (s Secret) set() bool { return s.Derive || s.Value.set() }

// NamedSecret is a secret with its blueprint key.
type NamedSecret struct {
	Name   string
	Secret Secret
}

// byName lists all secrets that guests may use, given or not.
func (s *Secrets) byName() []NamedSecret {
	return []NamedSecret{
		{"haproxyStats", s.HAProxyStats}, {"mesosCredential", s.MesosCredential}, {"marathonAuth", s.MarathonAuth},
		{"zookeeperAuth", s.ZooKeeperAuth}, {"caCert", s.CACert}, {"caKey", s.CAKey},
	}
}

// Names lists the secrets that the blueprint gives, and can rotate.
func (s *Secrets) Names() []string {
	var names []string
	for _, e := range s.byName() {
		if e.Secret.set() {
			names = append(names, e.Name)
		}
	}
	return names
}

// secret finds what a guest may ask for by name: a key of spec.secrets, or
// access.sshKeys[i] or access.realm.password below spec.
func (c *Cluster) secret(name string) (Secret, error) {
	for _, e := range c.Spec.Secrets.byName() {
		if e.Name == name && e.Secret.set() {
			return e.Secret, nil
		}
	}
	if v := c.Spec.Access.Realm.Password; name == "access.realm.password" && v.set() {
		return Secret{Value: v}, nil
	}
	for i, v := range c.Spec.Access.SSHKeys {
		if name == fmt.Sprintf("access.sshKeys[%d]", i) {
			return Secret{Value: v}, nil
		}
	}
	return Secret{}, fmt.Errorf("%s: %w", name, ErrNoSecret)
}

// Placeholder is the SecretFunc for hashes and for rendering without secrets:
// it names the secret and its generation, and needs no environment.
func (c *Cluster) Placeholder(name string) (string, error) {
	s, err := c.secret(name)
	if err != nil {
		return "", err
	}
	if s.Value.Text != "" {
		return s.Value.Text, nil // a public key; Validate refuses literal secrets
	}
	return fmt.Sprintf("<secret:%s#%d>", name, s.Generation), nil
}

// Resolver resolves references, each once. It may be used concurrently.
type Resolver struct {
	Dir string // of the blueprint: relative file references start there

	mu    sync.Mutex
	cache map[string]string // guarded by mu
}

// execTimeout bounds a command that prints a secret; it may ask a remote vault.
const execTimeout = 30 * time.Second

// Resolve gives the value behind v. Errors name the reference, never the value.
func (r *Resolver) Resolve(ctx context.Context, v Value) (string, error) {
	if !v.ref() {
		return v.Text, nil
	}
	key := fmt.Sprintf("%q", []any{v.Env, v.File, v.Exec})
	r.mu.Lock()
	defer r.mu.Unlock()
	if value, ok := r.cache[key]; ok {
		return value, nil
	}
	value, err := r.read(ctx, v)
	if err != nil {
		return "", fmt.Errorf("%s: %w", v, err)
	}
	if r.cache == nil {
		r.cache = map[string]string{}
	}
	r.cache[key] = value
	return value, nil
}

func (r *Resolver) read(ctx context.Context, v Value) (string, error) {
	switch {
	case v.Env != "":
		value, ok := os.LookupEnv(v.Env)
		if !ok || value == "" {
			return "", fmt.Errorf("the environment variable %s is not set; export it, or write another reference", v.Env)
		}
		return value, nil
	case v.File != "":
		text, err := os.ReadFile(r.path(v.File))
		if err != nil {
			return "", err
		}
		return strings.TrimRight(string(text), "\r\n"), nil
	}
	ctx, cancel := context.WithTimeout(ctx, execTimeout)
	defer cancel()
	var out, complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, v.Exec[0], v.Exec[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		last, _, _ := strings.Cut(strings.TrimSpace(complaint.String()), "\n")
		return "", fmt.Errorf("%w: %.200s", err, last)
	}
	return strings.TrimRight(out.String(), "\r\n"), nil
}

func (r *Resolver) path(file string) string {
	if rest, ok := strings.CutPrefix(file, "~/"); ok {
		if home, err := os.UserHomeDir(); err == nil {
			return filepath.Join(home, rest)
		}
	}
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(r.Dir, file)
}

// Secrets is the SecretFunc with real values.
func (r *Resolver) Secrets(ctx context.Context, c *Cluster) SecretFunc {
	return func(name string) (string, error) {
		s, err := c.secret(name)
		if err != nil {
			return "", err
		}
		if !s.Derive {
			value, err := r.Resolve(ctx, s.Value)
			if err != nil {
				return "", fmt.Errorf("secret %s: %w", name, err)
			}
			return value, nil
		}
		key, err := r.Resolve(ctx, c.Spec.Secrets.Key)
		if err != nil {
			return "", fmt.Errorf("spec.secrets.key: %w", err)
		}
		return derive(key, c.Metadata.Name, name, s.Generation)
	}
}

// derive makes a secret of 24 URL-safe letters from the operator's key, so
// that nothing has to be remembered (HKDF, RFC 5869, with SHA-256).
func derive(key, cluster, name string, generation int) (string, error) {
	const minimum = 16
	if len(key) < minimum {
		return "", fmt.Errorf("spec.secrets.key: want at least %d bytes; make one with `openssl rand -base64 32`", minimum)
	}
	raw, err := hkdf.Key(sha256.New, []byte(key), []byte("clusterctl/"+cluster), fmt.Sprintf("%s#%d", name, generation), 18)
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(raw), nil
}
