package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Transport is how changes are heard of.
type Transport string

const (
	// TransportAuto reads the event stream where Marathon has one (0.9 and newer), and
	// falls back to callbacks (when Options.Callback says where) or to polling.
	TransportAuto     Transport = "auto"
	TransportSSE      Transport = "sse"
	TransportCallback Transport = "callback"
	TransportPoll     Transport = "poll"
)

// Options say which Marathon to watch and how. The zero value of everything but
// URLs is the documented default.
type Options struct {
	// URLs are the members of one Marathon cluster, such as http://m1:8080. A path is
	// put in front of every call (https://dcos.example/service/marathon); user and
	// password in it serve as basic authentication for that member.
	URLs []string

	// Source names this Marathon where several are watched: it stands in App.Source
	// and Key.Source. "" for the only one.
	Source string

	Transport Transport // "" is TransportAuto
	Callback  CallbackOptions
	Auth      AuthOptions
	TLS       TLSOptions

	// Resync bounds the time between two readings of the whole picture that nothing
	// asked for; 0 is 5 minutes. Lost events are looked for much sooner, as often as
	// Marathon answers cheaply.
	Resync time.Duration

	// StateDir keeps the last health verdicts and resolved addresses over a restart;
	// "" keeps them in memory only. What is in it may be lost without harm.
	StateDir string

	// Resolver looks up agent host names; nil is net.DefaultResolver.
	Resolver Resolver

	// Dial opens every connection to Marathon; nil is a net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil gives metrics that nobody sees
}

// CallbackOptions are for Marathon 0.8, which has no event stream and POSTs its
// events to whoever subscribed.
type CallbackOptions struct {
	// Listen is the address of the listener, host:port; "" turns callbacks off.
	Listen string
	// URL is how Marathon reaches that listener, such as http://node7:9378; "" is
	// http:// and the address it listens on. A random path is added to it.
	URL string
	// From are addresses that Marathon may post from besides those of its members and
	// of its leader, for hosts that have several.
	From []netip.Prefix
}

// AuthOptions name files that hold secrets. They are read again when they change.
// At most one may be set.
type AuthOptions struct {
	BasicFile string // one line, user:password
	TokenFile string // one line, sent as "Authorization: token=…"
	DCOSFile  string // DC/OS service account, JSON with uid, private_key and login_endpoint
}

// TLSOptions are PEM files, read again when they change.
type TLSOptions struct {
	CAFile   string // in place of the system's authorities
	CertFile string // client certificate, with KeyFile
	KeyFile  string
	Insecure bool // accept any server certificate
}

// Resolver looks up the addresses of a host name; *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

const defaultResync = 5 * time.Minute

func (o *Options) validate() error {
	var errs []error
	if len(o.URLs) == 0 {
		errs = append(errs, errors.New("urls: want at least one Marathon, such as http://marathon.mesos:8080"))
	}
	for i, u := range o.URLs {
		if _, err := parseURL(u); err != nil {
			errs = append(errs, fmt.Errorf("urls[%d]: %w", i, err))
		}
	}
	switch o.Transport {
	case "", TransportAuto, TransportSSE, TransportPoll:
	case TransportCallback:
		if o.Callback.Listen == "" {
			errs = append(errs, errors.New("transport: callback needs callback.listen, the address that Marathon posts events to"))
		}
	default:
		errs = append(errs, fmt.Errorf("transport: want auto, sse, callback or poll, have %q", o.Transport))
	}
	if o.Resync < 0 {
		errs = append(errs, fmt.Errorf("resync: want a positive duration, have %v", o.Resync))
	}
	var auth []string
	for _, a := range []struct{ name, file string }{
		{"basic_file", o.Auth.BasicFile}, {"token_file", o.Auth.TokenFile}, {"dcos_file", o.Auth.DCOSFile},
	} {
		if a.file != "" {
			auth = append(auth, a.name)
		}
	}
	if len(auth) > 1 {
		errs = append(errs, fmt.Errorf("auth: want one of %s, not several", strings.Join(auth, ", ")))
	}
	if (o.TLS.CertFile == "") != (o.TLS.KeyFile == "") {
		errs = append(errs, errors.New("tls: cert_file and key_file go together"))
	}
	return errors.Join(errs...)
}

// parseURL reads the URL of one Marathon. A bare host:port means http, as in the
// marathons file of haproxy-marathon-bridge.
func parseURL(s string) (*url.URL, error) {
	if !strings.Contains(s, "://") {
		s = "http://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		// The cause repeats the whole text, which may hold a password.
		return nil, errors.New("not a URL; want http://host:port")
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("%s: want http or https", u.Redacted())
	case u.Hostname() == "":
		return nil, fmt.Errorf("%s: no host; want http://host:port", u.Redacted())
	case u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("%s: want no query and no fragment", u.Redacted())
	}
	u.Path = strings.TrimRight(u.Path, "/")
	return u, nil
}
