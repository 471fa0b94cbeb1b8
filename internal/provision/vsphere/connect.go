package vsphere

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"bridged/internal/provision"
)

// Options says which vCenter and which cluster. References are resolved by the caller.
type Options struct {
	Cluster *provision.Cluster // read only

	Server   string // host[:port] or URL
	User     string
	Password string
	Token    string // SAML bearer token, in place of a password

	Insecure   bool   // any certificate is believed
	Thumbprint string // SHA-256 or SHA-1 of the only certificate that is believed
	CAFile     string // PEM; "": the system's roots

	Log *slog.Logger // nil: nothing is logged

	// LeaseTTL is how long a lease outlives its holder; default 60 s.
	LeaseTTL time.Duration
	// Wrap goes between the session's handling and the wire; nil: nothing does.
	Wrap func(soap.RoundTripper) soap.RoundTripper
}

// Provider is a signed-in vCenter and one cluster in it.
type Provider struct {
	cluster *provision.Cluster
	spec    *provision.VSphere
	log     *slog.Logger
	ttl     time.Duration

	session *session
	client  *vim25.Client
	poll    *poller
	slots   *slots
	about   string // host of the server, for people

	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	mu    sync.Mutex                              // guards what follows
	place *place                                  // names resolved by the last Inventory
	made  map[string]types.ManagedObjectReference // VMs by name, as created or seen
	load  map[string]int                          // VMs by host, on top of those in place
	used  map[string]int64                        // MiB by datastore that clones of this run will fill
	whole bool                                    // the server does not know keys in property paths
	held  *heldLease                              // nil: none
}

// Connect signs in. The error says what is wrong with address, certificate or
// credentials and what to do about it.
func Connect(ctx context.Context, opt Options) (*Provider, error) {
	if opt.Cluster == nil {
		return nil, errors.New("vsphere: no cluster given")
	}
	if opt.Server == "" {
		return nil, errors.New("no vCenter given: set spec.provider.vsphere.server, --server or GOVC_URL")
	}
	u, err := soap.ParseURL(opt.Server)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("vCenter address %q is not a host name or URL", opt.Server)
	}
	if u.User != nil {
		if name := u.User.Username(); opt.User == "" && name != "" {
			opt.User = name
			opt.Password, _ = u.User.Password()
		}
		u.User = nil
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.LeaseTTL == 0 {
		opt.LeaseTTL = time.Minute
	}

	wire := soap.NewClient(u, opt.Insecure || opt.Thumbprint != "")
	wire.UserAgent = "clusterctl"
	shown := new(shownCertificate)
	if err := trust(wire, opt, shown); err != nil {
		return nil, err
	}
	s := &session{
		wire: wire, user: opt.User, password: opt.Password, token: opt.Token,
		every: interval(opt.Cluster.Spec.Limits.APIPerSecond), log: opt.Log,
	}
	s.next = wire
	if opt.Wrap != nil {
		s.next = opt.Wrap(wire)
	}
	s.raw, err = newVimClient(ctx, wire)
	if err != nil {
		return nil, explainConnect(u, shown, err)
	}
	if err := s.login(ctx); err != nil {
		return nil, explainConnect(u, shown, err)
	}
	client := *s.raw
	client.RoundTripper = s

	p := &Provider{
		cluster: opt.Cluster, spec: &opt.Cluster.Spec.Provider.VSphere, log: opt.Log, ttl: opt.LeaseTTL,
		session: s, client: &client, about: u.Hostname(),
		slots: newSlots(opt.Cluster.Spec.Limits),
		made:  map[string]types.ManagedObjectReference{}, load: map[string]int{}, used: map[string]int64{},
	}
	p.ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
	p.poll = newPoller(p)
	return p, nil
}

// newVimClient reads the service content, through which everything else is found.
func newVimClient(ctx context.Context, wire *soap.Client) (*vim25.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	client, err := vim25.NewClient(ctx, wire)
	if err != nil {
		return nil, err
	}
	if !client.IsVC() {
		return nil, fmt.Errorf("%s is not a vCenter; an ESXi host cannot clone", client.ServiceContent.About.FullName)
	}
	return client, nil
}

// Close ends the session. Errors of the sign-off do not matter to anybody: the
// server ends idle sessions by itself.
func (p *Provider) Close(ctx context.Context) error {
	p.cancel()
	p.poll.wait()
	p.session.logout(ctx)
	p.session.wire.CloseIdleConnections()
	return nil
}

// shownCertificate is the certificate that the server presented last.
type shownCertificate struct {
	mu   sync.Mutex
	leaf *x509.Certificate // guarded by mu
}

func (s *shownCertificate) set(c *x509.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaf = c
}

func (s *shownCertificate) thumbprint() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaf == nil {
		return ""
	}
	return soap.ThumbprintSHA256(s.leaf)
}

var errThumbprint = errors.New("the server shows another certificate than the pinned one")

// trust sets up which certificate is believed. A thumbprint is a pin: no other
// certificate will do, whoever signed it.
func trust(wire *soap.Client, opt Options, shown *shownCertificate) error {
	config := wire.DefaultTransport().TLSClientConfig
	config.MinVersion = tls.VersionTLS12
	if opt.CAFile != "" {
		pem, err := os.ReadFile(opt.CAFile)
		if err != nil {
			return fmt.Errorf("spec.provider.vsphere.tls.caFile: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("spec.provider.vsphere.tls.caFile: no certificate in %s; want PEM", opt.CAFile)
		}
	}
	pin := hexDigits(opt.Thumbprint)
	if opt.Thumbprint != "" && len(pin) != 2*sha1.Size && len(pin) != 2*sha256.Size {
		return fmt.Errorf("spec.provider.vsphere.tls.thumbprint: want 20 or 32 octets in hex, have %q", opt.Thumbprint)
	}
	// Called before the chain is looked at, so that a refusal can name what was shown.
	config.VerifyPeerCertificate = func(raw [][]byte, _ [][]*x509.Certificate) error {
		if len(raw) == 0 || pin == "" {
			return nil
		}
		s1, s256 := sha1.Sum(raw[0]), sha256.Sum256(raw[0])
		if pin != fmt.Sprintf("%x", s1) && pin != fmt.Sprintf("%x", s256) {
			if leaf, err := x509.ParseCertificate(raw[0]); err == nil {
				shown.set(leaf)
			}
			return errThumbprint
		}
		return nil
	}
	return nil
}

func hexDigits(s string) string {
	return strings.ToLower(strings.NewReplacer(":", "", " ", "", "-", "").Replace(s))
}

// explainConnect says what an operator can do about a failed sign-in.
func explainConnect(u *url.URL, shown *shownCertificate, err error) error {
	where := "vCenter " + u.Host
	var (
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
		verify   *tls.CertificateVerificationError
		dns      *net.DNSError
		op       *net.OpError
	)
	if errors.As(err, &verify) && len(verify.UnverifiedCertificates) > 0 {
		shown.set(verify.UnverifiedCertificates[0])
	}
	switch {
	case fault.Is(err, &types.InvalidLogin{}):
		return fmt.Errorf("%s: user name or password is wrong; check spec.provider.vsphere.auth, --user or GOVC_USERNAME and GOVC_PASSWORD: %w", where, err)
	case fault.Is(err, &types.NoPermission{}):
		return fmt.Errorf("%s: the user may not sign in; ask for a role on the vCenter: %w", where, err)
	case errors.Is(err, errThumbprint):
		return fmt.Errorf("%s: %w: it shows %s; if that is right, put it into spec.provider.vsphere.tls.thumbprint", where, errThumbprint, shown.thumbprint())
	case errors.As(err, &unknown), errors.As(err, &hostname), errors.As(err, &invalid):
		return fmt.Errorf("%s: its certificate is not trusted (SHA-256 %s); set spec.provider.vsphere.tls.thumbprint to that or tls.caFile to the vCenter's CA: %w", where, shown.thumbprint(), err)
	case errors.As(err, &dns):
		return fmt.Errorf("%s: the name does not resolve; check spec.provider.vsphere.server: %w", where, err)
	case errors.As(err, &op) && op.Op == "dial":
		return fmt.Errorf("%s: no connection; check the address, and that its port can be reached from here: %w", where, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: no answer within %v: %w", where, connectTimeout, err)
	}
	return fmt.Errorf("%s: %w", where, err)
}
