package haproxy

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// certStore keeps validated copies of certificates, which are what HAProxy loads. Operators
// and their tools write where they like and as they like: a file that is half written, broken
// or gone changes nothing in the store, so that a reload by whomever never meets it.
//
//	<dir>/list           the crt-list that stands for Options.CertDir in a bind
//	<dir>/sni/NAME.pem   copies of the files of Options.CertDir
//	<dir>/path/…         copies of single files that binds name, under their own path
//	….pem.ocsp           OCSP responses, where HAProxy looks for them
//
// Its methods run in the background, one at a time (Proxy.busy); what they return is not
// modified any more.
type certStore struct {
	dir        string // absolute
	sources    string // Options.CertDir; "": none
	selfSigned bool
	now        func() time.Time

	last    *certView
	refused map[[sha256.Size]byte]string // what HAProxy did not take: contents and its words
}

const (
	maxCertFile     = 256 << 10 // bytes; a long chain has 20 KB
	maxCertificates = 1000      // files of one directory, and series of a metric
	certLists       = "list"
	certSNI         = "sni"
	certPaths       = "path"
	ocspSuffix      = ".ocsp"
	certSuffix      = ".pem"
)

// selfSignedName is the certificate that is made where there is none, if that is wanted.
const selfSignedName = "bridged-self-signed" + certSuffix

// defaultCertName is served to clients that ask for no name that any certificate has.
const defaultCertName = "default" + certSuffix

// storedCert is one certificate in the store.
type storedCert struct {
	source string // the operator's file, "" for one of ours
	copy   string // what HAProxy loads
	cert   *certificate
	ocsp   []byte            // DER; nil: none
	fresh  time.Time         // until when ocsp may be stapled
	sum    [sha256.Size]byte // of all that HAProxy gets
}

// certView is what the store holds at one moment.
type certView struct {
	certs    map[string]*storedCert // by copy
	list     []string               // copies in the order of the crt-list; the first is the default
	problems map[string]string      // by source: why it is not used as it stands there
	singles  []string               // single files that binds name, sorted
}

// certPath matches paths that stand in a bind and in commands as they are.
var certPath = regexp.MustCompile(`^/[A-Za-z0-9/._@+-]+$`)

// certName matches files of the directory. They are labels of a metric, too.
var certName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._@+-]{0,120}\.pem$`)

// listPath is the crt-list file.
func (s *certStore) listPath() string { return filepath.Join(s.dir, certLists) }

// copyOf is where the copy of a single file is.
func (s *certStore) copyOf(source string) string { return filepath.Join(s.dir, certPaths, source) }

// single reports whether a bind's `crt PATH` is a single file that the store looks after. All
// else (directories, other names) is HAProxy's own business.
func (s *certStore) single(path string) bool {
	return strings.HasSuffix(path, certSuffix) && certPath.MatchString(path) && path == filepath.Clean(path)
}

// crtWords calls see for each `crt PATH` among options and puts its answer in their place;
// "" leaves both words out.
func crtWords(options string, see func(path string) string) string {
	if !strings.Contains(options, "crt ") {
		return options
	}
	in, out := strings.Fields(options), []string(nil)
	for i := 0; i < len(in); i++ {
		if in[i] != "crt" || i+1 == len(in) {
			out = append(out, in[i])
			continue
		}
		i++
		if now := see(in[i]); now != "" {
			out = append(out, now)
		}
	}
	return strings.Join(out, " ")
}

// rewrite makes options of a bind name the store's files. It depends on nothing that
// changes, so that one configuration always gives one text.
func (s *certStore) rewrite(options string) string {
	return crtWords(options, func(path string) string {
		switch {
		case s.sources != "" && filepath.Clean(path) == s.sources:
			return "crt-list " + s.listPath()
		case s.single(path):
			return "crt " + s.copyOf(path)
		}
		return "crt " + path
	})
}

// named lists the single files that the binds of cfg name.
func (s *certStore) named(configs ...*Config) []string {
	found := make(map[string]bool)
	see := func(binds []Bind) {
		for _, b := range binds {
			crtWords(b.Options, func(path string) string {
				if s.single(path) {
					found[path] = true
				}
				return ""
			})
		}
	}
	for _, c := range configs {
		for _, f := range c.Frontends {
			see(f.Binds)
		}
		for _, b := range c.Backends {
			see(b.Binds)
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// refresh looks at the operator's files and takes over what is new and good. Single files
// are kept as long as they are among singles. An error is about the store itself: then the
// view is that of what could be stored.
func (s *certStore) refresh(singles []string) (*certView, error) {
	v := &certView{certs: make(map[string]*storedCert), problems: make(map[string]string), singles: singles}
	if s.last == nil {
		s.last = &certView{certs: s.recall()}
	}
	var failures []error
	take := func(source, copy string) bool {
		c, err := s.take(source, copy, v.problems)
		if err != nil {
			failures = append(failures, err)
		}
		if c != nil {
			v.certs[copy] = c
		}
		return c != nil
	}
	if s.sources != "" {
		for _, name := range s.names(v.problems) {
			if copy := filepath.Join(s.dir, certSNI, name); take(filepath.Join(s.sources, name), copy) {
				v.list = append(v.list, copy)
			}
		}
		if len(v.list) == 0 {
			failures = append(failures, s.without(v))
		}
	}
	for _, path := range singles {
		take(path, s.copyOf(path))
	}
	failures = append(failures, s.writeList(v.list))
	s.last = v
	return v, errors.Join(failures...)
}

// exists reports whether an earlier process has used the store.
func (s *certStore) exists() bool {
	_, err := os.Stat(s.dir)
	return err == nil
}

// before adds the single files whose copies an earlier process has left: HAProxy runs with
// them while it is not known yet what is wanted.
func (s *certStore) before(singles []string) []string {
	root := filepath.Join(s.dir, certPaths)
	_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && s.single(strings.TrimPrefix(path, root)) {
			singles = append(singles, strings.TrimPrefix(path, root))
		}
		return nil
	})
	slices.Sort(singles)
	return slices.Compact(singles)
}

// names lists the files of the directory, the default first. A directory that cannot be
// read is a mount that is gone, and no reason to give up certificates.
func (s *certStore) names(problems map[string]string) []string {
	entries, err := os.ReadDir(s.sources)
	if err != nil {
		problems[s.sources] = fmt.Sprintf("%v; what was read before is kept", reasonOf(err))
		var names []string
		for copy := range s.last.certs {
			if filepath.Dir(copy) == filepath.Join(s.dir, certSNI) && filepath.Base(copy) != selfSignedName {
				names = append(names, filepath.Base(copy))
			}
		}
		slices.SortFunc(names, defaultFirst)
		return names
	}
	var names []string
	for _, e := range entries {
		name := e.Name()
		if e.IsDir() || !strings.HasSuffix(name, certSuffix) || strings.HasPrefix(name, ".") {
			continue // other files and editors' leftovers are nobody's fault
		}
		if !certName.MatchString(name) || name == selfSignedName {
			problems[filepath.Join(s.sources, name)] = "want a name of letters, digits and ._@+- before .pem"
			continue
		}
		if len(names) == maxCertificates {
			problems[s.sources] = fmt.Sprintf("more than %d certificates; the rest is not served", maxCertificates)
			break
		}
		names = append(names, name)
	}
	slices.SortFunc(names, defaultFirst)
	return names
}

func defaultFirst(a, b string) int {
	rank := func(name string) int {
		if name == defaultCertName {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a, b))
}

// reasonOf strips what a file error repeats.
func reasonOf(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

// take brings one source into the store: as it stands there now, else as it was when it was
// last good. Nil when it never was.
func (s *certStore) take(source, copy string, problems map[string]string) (*storedCert, error) {
	old := s.last.certs[copy]
	if old != nil && old.source != source {
		c := *old
		c.source = source
		old = &c
	}
	next, err := s.read(source, copy, problems)
	if err == nil && (old == nil || next.sum != old.sum) {
		// One that has expired while it was served is still better than none; a new one is not.
		err = next.cert.current(s.now())
	}
	if err != nil {
		problems[source] = reasonOf(err).Error()
		if old == nil {
			return nil, nil
		}
		return s.kept(old), nil
	}
	if old == nil || next.sum != old.sum || !s.stands(next) {
		if err := s.store(next, source); err != nil {
			return old, err
		}
	}
	return next, nil
}

// kept is old without an OCSP response that nobody may see any more.
func (s *certStore) kept(old *storedCert) *storedCert {
	if old.ocsp == nil || old.fresh.IsZero() || s.now().Before(old.fresh) {
		return old
	}
	c := *old
	c.ocsp = nil
	c.seal()
	if err := os.Remove(c.copy + ocspSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return old
	}
	return &c
}

// read reads and judges a source with its OCSP response.
func (s *certStore) read(source, copy string, problems map[string]string) (*storedCert, error) {
	text, err := readBounded(source)
	if err != nil {
		return nil, err
	}
	c := &storedCert{source: source, copy: copy}
	if c.cert, err = parseCertificate(text); err != nil {
		return nil, err
	}
	switch der, err := readBounded(source + ocspSuffix); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		problems[source+ocspSuffix] = reasonOf(err).Error()
	case len(bytes.TrimSpace(der)) == 0: // how tools ask HAProxy for an update later on
	default:
		until, err := c.cert.checkOCSP(der, s.now())
		if err != nil {
			problems[source+ocspSuffix] = "not stapled: " + err.Error()
			break
		}
		c.ocsp, c.fresh = der, until
	}
	c.seal()
	if why := s.refused[c.sum]; why != "" {
		return nil, errors.New(why)
	}
	return c, nil
}

func (c *storedCert) seal() {
	h := sha256.New()
	fmt.Fprintf(h, "%d\n", len(c.cert.pem))
	h.Write(c.cert.pem)
	h.Write(c.ocsp)
	h.Sum(c.sum[:0])
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	text, err := io.ReadAll(io.LimitReader(f, maxCertFile+1))
	if err == nil && len(text) > maxCertFile {
		err = fmt.Errorf("larger than %d KB, no certificate is", maxCertFile>>10)
	}
	return text, err
}

// without finds certificates where the directory has none: those of before, as no listener
// can do without any, else one of ours if that is wanted.
func (s *certStore) without(v *certView) error {
	for copy, c := range s.last.certs {
		if filepath.Dir(copy) == filepath.Join(s.dir, certSNI) && filepath.Base(copy) != selfSignedName {
			v.certs[copy] = s.kept(c)
			v.list = append(v.list, copy)
		}
	}
	if len(v.list) > 0 {
		slices.SortFunc(v.list, func(a, b string) int { return defaultFirst(filepath.Base(a), filepath.Base(b)) })
		if v.problems[s.sources] == "" {
			v.problems[s.sources] = "no certificate in it that can be used; what was read before is kept"
		}
		return nil
	}
	if !s.selfSigned {
		v.problems[s.sources] = "no certificate in it that can be used; no TLS listener that needs it can start"
		return nil
	}
	copy := filepath.Join(s.dir, certSNI, selfSignedName)
	if c := s.last.certs[copy]; c != nil && c.cert.leaf.NotAfter.Sub(s.now()) > selfSignedLife/3 {
		v.certs[copy], v.list = c, []string{copy}
		return nil
	}
	names := []string{"localhost"}
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	text, err := selfSigned(names, s.now())
	if err != nil {
		return fmt.Errorf("make a self-signed certificate: %w", err)
	}
	c := &storedCert{copy: copy}
	if c.cert, err = parseCertificate(text); err != nil {
		return fmt.Errorf("make a self-signed certificate: %w", err)
	}
	c.seal()
	if err := s.store(c, ""); err != nil {
		return err
	}
	v.certs[copy], v.list = c, []string{copy}
	return nil
}

// recall reads the copies of an earlier process: what HAProxy has, should their sources have
// become unusable since.
func (s *certStore) recall() map[string]*storedCert {
	certs := make(map[string]*storedCert)
	_ = filepath.WalkDir(s.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, certSuffix) || strings.HasPrefix(e.Name(), tempPrefix) {
			return nil // what cannot be read is not there
		}
		if c, err := s.read(path, path, map[string]string{}); err == nil {
			c.source = ""
			certs[path] = c
		}
		return nil
	})
	return certs
}

// stands reports whether the copy is on disk. Somebody may have emptied the store.
func (s *certStore) stands(c *storedCert) bool {
	st, err := os.Stat(c.copy)
	return err == nil && st.Mode().IsRegular()
}

// store writes the copy of c with the mode and owner of the file at like. The OCSP response
// goes with it: an old one is taken away before the certificate changes, a new one comes after,
// so that HAProxy never finds one beside a certificate that it is not for.
func (s *certStore) store(c *storedCert, like string) error {
	if err := os.MkdirAll(filepath.Dir(c.copy), 0o755); err != nil {
		return &SaveError{Path: c.copy, Err: err}
	}
	if err := os.Remove(c.copy + ocspSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &SaveError{Path: c.copy, Err: err}
	}
	if err := replaceSecret(c.copy, append(slices.Clip(c.cert.pem), '\n'), like); err != nil {
		return &SaveError{Path: c.copy, Err: err}
	}
	if c.ocsp != nil {
		if err := replaceSecret(c.copy+ocspSuffix, c.ocsp, like); err != nil {
			return &SaveError{Path: c.copy, Err: err}
		}
	}
	return nil
}

// writeList writes the crt-list when it is not as it shall be.
func (s *certStore) writeList(list []string) error {
	if s.sources == "" {
		return nil
	}
	var text bytes.Buffer
	for _, copy := range list {
		text.WriteString(copy + "\n")
	}
	if have, err := os.ReadFile(s.listPath()); err == nil && bytes.Equal(have, text.Bytes()) || err != nil && len(list) == 0 {
		return nil
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return &SaveError{Path: s.listPath(), Err: err}
	}
	if err := replaceWith(s.listPath(), text.Bytes(), func(f *os.File) error { return f.Chmod(0o644) }); err != nil {
		return &SaveError{Path: s.listPath(), Err: err}
	}
	return nil
}

// undo puts the last good copy of a certificate back that HAProxy does not take, or takes
// it out of the view that has it. It returns the view without it.
func (s *certStore) undo(v *certView, copy string, good *storedCert, why string) (*certView, error) {
	next := &certView{certs: maps.Clone(v.certs), list: v.list, problems: maps.Clone(v.problems), singles: v.singles}
	if c := v.certs[copy]; c != nil {
		next.problems[cmp.Or(c.source, copy)] = why
		if s.refused == nil || len(s.refused) >= maxCertificates {
			s.refused = make(map[[sha256.Size]byte]string)
		}
		s.refused[c.sum] = why
	}
	s.last = next
	if good != nil {
		next.certs[copy] = good
		return next, s.store(good, cmp.Or(v.certs[copy].source, good.source))
	}
	delete(next.certs, copy)
	next.list = slices.DeleteFunc(slices.Clone(v.list), func(c string) bool { return c == copy })
	return next, s.writeList(next.list)
}

// sweep removes copies that v does not have. Workers need no file that they have loaded.
func (s *certStore) sweep(v *certView) {
	_ = filepath.WalkDir(s.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || path == s.listPath() {
			return nil
		}
		if c := v.certs[strings.TrimSuffix(path, ocspSuffix)]; c == nil {
			_ = os.Remove(path) // what stays is in nobody's way
		}
		return nil
	})
}

// replaceSecret puts text at path in one step, readable for whom the file at like is; "": for
// us alone.
func replaceSecret(path string, text []byte, like string) error {
	return replaceWith(path, text, func(f *os.File) error {
		if like == "" {
			return nil
		}
		return takeAfter(f, like)
	})
}

// replaceWith puts text at path in one step: temporary file of mode 0600 in the same
// directory, made as prepare wants it before anything is in it, fsync, rename, fsync of the
// directory.
func replaceWith(path string, text []byte, prepare func(*os.File) error) (err error) {
	temp, err := os.CreateTemp(filepath.Dir(path), tempPrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			temp.Close()
			os.Remove(temp.Name())
		}
	}()
	if err := prepare(temp); err != nil {
		return err
	}
	if _, err := temp.Write(text); err != nil {
		return err
	}
	if err := temp.Sync(); err != nil {
		return err
	}
	if err := temp.Close(); err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
