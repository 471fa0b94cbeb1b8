package haproxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Certificate is one certificate file, for the status page.
type Certificate struct {
	File     string    `json:"file"`              // the operator's; "" for one that we made
	Names    []string  `json:"names,omitempty"`   // that it is for
	NotAfter time.Time `json:"notAfter,omitzero"` // of what HAProxy serves; zero: it serves none
	OCSP     bool      `json:"ocsp"`              // with a stapled response
	Problem  string    `json:"problem,omitempty"` // why the file is not used as it stands; "" when it is
}

// certState is what the Proxy knows of certificates. Its fields belong to the loop, and
// store to the background while Proxy.busy is set.
type certState struct {
	store *certStore
	view  *certView              // of the last look; nil: none yet
	have  map[string]*storedCert // what the worker has; nil: not known
	due   bool                   // the files, or the worker, are to be looked at

	missing []string // sources that listeners were left out for
	retry   bool     // the timer runs
	clock   bool
	said    map[string]string // problems as they were logged
	failure string            // as it was logged
	status  []Certificate
	files   []string
}

const (
	// certRetry is for a worker that did not answer, or in which somebody else changes a
	// certificate.
	certRetry = 2 * time.Second
	// certClock is how often the files are looked at although nobody says that they changed:
	// certificates become valid, and OCSP responses expire.
	certClock = 15 * time.Minute
)

func newCertStore(o *Options) *certStore {
	s := &certStore{dir: o.CertStore, selfSigned: o.SelfSigned, now: time.Now}
	if s.dir == "" {
		s.dir = filepath.Join(filepath.Dir(o.ConfigFile), "bridged-certs")
	}
	if abs, err := filepath.Abs(s.dir); err == nil {
		s.dir = abs
	}
	if o.CertDir != "" {
		s.sources = filepath.Clean(o.CertDir)
	}
	return s
}

// Certificates looks at the certificate files again and brings what is new and good into
// HAProxy, by runtime commands where these can and else by a reload. Reading, copying and
// the commands happen in the background, on a connection of their own: HAProxy may take
// seconds for a certificate with many names, and changes of servers must not wait for that.
// It returns at once; call it when files changed.
func (p *Proxy) Certificates(context.Context) {
	p.certs.due = true
	p.schedule()
}

// CertificateFiles lists what to watch: the directory, and single files that binds name.
func (p *Proxy) CertificateFiles() []string { return p.certs.files }

// namedCerts lists the single files that sections name which are wanted or loaded.
func (p *Proxy) namedCerts() []string {
	var sections Config
	sections.Frontends, sections.Backends = make(map[string]*Section), make(map[string]*Backend)
	add := func(kind, name string, s *Section) {
		if s != nil && namesCert(s) {
			sections.Frontends[kind+name] = s
		}
	}
	for name, st := range p.frontends {
		add("want ", name, st.want)
		add("have ", name, st.loaded)
	}
	for name, bs := range p.backends {
		if bs.want != nil {
			add("want backend ", name, &bs.want.Section)
		}
		if bs.loaded != nil {
			add("have backend ", name, &bs.loaded.Section)
		}
	}
	return p.certs.store.named(&sections)
}

// lookAtCerts starts a look when one is due and nothing else works on the files.
func (p *Proxy) lookAtCerts() {
	if !p.certs.due || p.busy {
		return
	}
	p.certs.due = false
	singles := p.namedCerts()
	if !p.synced && p.certs.view == nil {
		singles = nil // not known yet: those of before, see certStore.before
	}
	store, have, synced := p.certs.store, maps.Clone(p.certs.have), p.synced
	if store.sources == "" && len(singles) == 0 && p.certs.view == nil && (synced || !store.exists()) {
		return // nobody speaks TLS
	}
	pid := 0
	if p.conn != nil {
		pid = p.info.Pid
	}
	p.busy = true
	p.bg(func(ctx context.Context) func(context.Context) {
		if !synced {
			singles = store.before(singles)
		}
		view, err := store.refresh(singles)
		l := &certLook{view: view, have: have, err: err, done: make(map[certAction]int)}
		if pid != 0 {
			l.push(ctx, p.opts.Socket, pid, store)
		}
		if synced && l.err == nil {
			store.sweep(l.view)
		}
		return func(ctx context.Context) { p.looked(ctx, l) }
	})
}

// certLook is what a look found and did.
type certLook struct {
	view    *certView
	have    map[string]*storedCert
	done    map[certAction]int
	refused []*certError
	reload  bool  // something is left that only a reload can bring
	retry   bool  // something else was in the way
	err     error // of the store, or of the connection
}

// push brings the view to the worker pid.
func (l *certLook) push(ctx context.Context, socket string, pid int, store *certStore) {
	failed := func(err error) {
		l.have, l.retry, l.err = nil, true, errors.Join(l.err, err)
	}
	c, err := dial(ctx, socket)
	if err != nil {
		failed(err)
		return
	}
	defer c.close()
	info, err := c.info(ctx)
	if err == nil && info.Pid != pid {
		err = errWorkerGone
	}
	if err != nil {
		failed(err)
		return
	}
	cs := &certSession{conn: c, store: store, have: l.have, done: l.done}
	err = cs.push(ctx, l.view)
	l.have = cs.have
	for _, e := range certErrors(err) {
		refusal, ok := errors.AsType[*certError](e)
		if !ok {
			failed(e)
			continue
		}
		l.refused = append(l.refused, refusal)
		if !refusal.content {
			l.reload = true
			continue
		}
		view, err := store.undo(l.view, refusal.copy, l.have[refusal.copy], "HAProxy refused it: "+refusal.reply)
		l.view, l.err = view, errors.Join(l.err, err)
	}
}

// certErrors takes joined errors apart.
func certErrors(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// looked takes in how a look ended.
func (p *Proxy) looked(_ context.Context, l *certLook) {
	p.busy = false
	p.certs.have = l.have
	p.sawCerts(l.view)
	for action, n := range l.done {
		p.m.certUpdates.WithLabelValues(string(action), "ok").Add(float64(n))
	}
	if len(l.done) > 0 {
		p.log.Info("certificates changed in HAProxy without a reload", "added", l.done[certAdd], "updated", l.done[certUpdate],
			"ocsp", l.done[certOCSP], "deleted", l.done[certDelete])
	}
	for _, e := range l.refused {
		p.m.certUpdates.WithLabelValues(string(e.action), "refused").Inc()
		if e.content {
			p.log.Error("HAProxy does not take a certificate, it keeps the old one", "err", e)
		} else {
			p.log.Info("a certificate needs a reload", "err", e)
		}
	}
	failure := ""
	if l.err != nil && !errors.Is(l.err, errWorkerGone) {
		failure = l.err.Error()
	}
	switch {
	case failure == p.certs.failure:
	case failure != "":
		p.log.Warn("certificates not brought to HAProxy, trying again", "err", failure)
	default:
		p.log.Info("certificates are brought to HAProxy again")
	}
	p.certs.failure = failure
	if l.retry || l.err != nil {
		p.after(certRetry, &p.certs.retry, p.Certificates)
	}
	healed := slices.ContainsFunc(p.certs.missing, func(source string) bool { return p.certs.store.has(l.view, source) })
	if p.known && (l.reload || healed) {
		p.fresh = true
		p.mark(part{partCerts, ""}, ReasonCertificate)
	}
	p.schedule()
}

// fitCerts takes the operator's files over and leaves out of s.config what they cannot
// serve: one certificate, the listener where it has no other. It runs in the background.
func (p *Proxy) fitCerts(s *snapshot, w *loadedWorker) (*Config, []Rejected) {
	store := p.certs.store
	view, err := store.refresh(s.singles)
	if err != nil {
		p.log.Warn("certificates not stored", "err", err)
	}
	w.certs = view
	config, rejected, missing := store.fit(s.config, view)
	w.missing = missing
	return config, rejected
}

// fit leaves out of cfg what v lacks. It returns why, per section, and the sources.
func (s *certStore) fit(cfg *Config, v *certView) (out *Config, rejected []Rejected, missing []string) {
	fitted := func(section *Section) *Section {
		var lacks []string
		var binds []Bind
		for _, b := range section.Binds {
			options := crtWords(b.Options, func(path string) string {
				if (s.single(path) || filepath.Clean(path) == s.sources) && !s.has(v, path) {
					lacks = append(lacks, filepath.Clean(path))
					return ""
				}
				return "crt " + path
			})
			if len(lacks) > 0 && options != b.Options && !hasOption(options, "crt") && !hasOption(options, "crt-list") {
				continue // TLS without a certificate: better no listener than one without TLS
			}
			b.Options = options
			binds = append(binds, b)
		}
		if len(lacks) == 0 {
			return nil
		}
		var details []string
		for _, source := range lacks {
			details = append(details, fmt.Sprintf("certificate %s: %s", source, v.problems[source]))
		}
		rejected = append(rejected, Rejected{Owner: section.Owner, Section: section.Name, Reason: Refused, Detail: strings.Join(details, "; ")})
		missing = append(missing, lacks...)
		next := *section
		next.Binds = binds
		return &next
	}
	out = cfg
	own := func() {
		if out == cfg {
			c := *cfg
			c.Frontends, c.Backends = maps.Clone(cfg.Frontends), maps.Clone(cfg.Backends)
			out = &c
		}
	}
	for _, name := range naming(cfg.Frontends, func(f *Section) *Section { return f }) {
		if f := fitted(cfg.Frontends[name]); f != nil {
			own()
			out.Frontends[name] = f
		}
	}
	for _, name := range naming(cfg.Backends, func(b *Backend) *Section { return &b.Section }) {
		if f := fitted(&cfg.Backends[name].Section); f != nil {
			own()
			b := *cfg.Backends[name]
			b.Section = *f
			out.Backends[name] = &b
		}
	}
	return out, rejected, missing
}

// naming lists, sorted, the sections that name certificates: few, where there are many.
func naming[T any](all map[string]T, section func(T) *Section) (names []string) {
	for name, s := range all {
		if namesCert(section(s)) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func namesCert(s *Section) bool {
	return slices.ContainsFunc(s.Binds, func(b Bind) bool { return strings.Contains(b.Options, "crt ") })
}

// has reports whether v has what `crt source` asks for.
func (s *certStore) has(v *certView, source string) bool {
	if filepath.Clean(source) == s.sources {
		return len(v.list) > 0
	}
	return v.certs[s.copyOf(source)] != nil
}

// has is what a worker has that loaded v from disk.
func (v *certView) has() map[string]*storedCert {
	if v == nil {
		return nil
	}
	return maps.Clone(v.certs)
}

// sawCerts notes what a look found: status, metrics, what to watch, and the log.
func (p *Proxy) sawCerts(v *certView) {
	p.certs.view = v
	p.certs.status, p.certs.files = nil, slices.Clone(v.singles)
	if p.certs.store.sources != "" {
		p.certs.files = append(p.certs.files, p.certs.store.sources)
	}
	for _, path := range v.singles {
		p.certs.files = append(p.certs.files, path+ocspSuffix)
	}
	p.m.certExpiry.Reset()
	told := make(map[string]bool)
	for _, c := range v.certs {
		told[c.source] = true
		p.certs.status = append(p.certs.status, Certificate{File: c.source, Names: c.cert.names(), NotAfter: c.cert.leaf.NotAfter,
			OCSP: c.ocsp != nil, Problem: v.problems[c.source]})
	}
	for source, problem := range v.problems {
		if !told[source] {
			p.certs.status = append(p.certs.status, Certificate{File: source, Problem: problem})
		}
		if p.certs.said[source] != problem {
			p.log.Warn("certificate file not used as it stands", "file", source, "problem", problem)
		}
	}
	p.certs.said = v.problems
	slices.SortFunc(p.certs.status, func(a, b Certificate) int { return strings.Compare(a.File, b.File) })
	p.m.certRejected.Set(float64(len(v.problems)))
	for i, c := range p.certs.status {
		if !c.NotAfter.IsZero() && i < maxCertificates {
			p.m.certExpiry.WithLabelValues(c.File).Set(float64(c.NotAfter.Unix()))
		}
	}
	if len(v.certs)+len(v.problems) > 0 {
		p.after(certClock, &p.certs.clock, p.Certificates)
	}
}
