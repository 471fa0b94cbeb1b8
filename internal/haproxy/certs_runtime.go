package haproxy

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// certPayload is the longest PEM that goes over the socket. Up to 3.2 command and payload
// have to fit in tune.bufsize, 16384 bytes by default; 2.6 drops what does not and answers
// nothing, which looks like a success.
const certPayload = 15000

// commitTimeout is for one `commit ssl cert`, which makes a context for each bind and each
// name the certificate is used for.
const commitTimeout = 30 * time.Second

// certAction is what is done with a certificate at run time. It is a metric's label.
type certAction string

const (
	certAdd    certAction = "add"
	certUpdate certAction = "update"
	certOCSP   certAction = "ocsp"
	certDelete certAction = "delete"
)

var certActions = []certAction{certAdd, certUpdate, certOCSP, certDelete}

// errWorkerGone: another worker answers than the one that the commands were meant for.
var errWorkerGone = errors.New("HAProxy has another worker by now")

// errTransaction: somebody else changes a certificate at this moment, and there is one
// transaction for all.
var errTransaction = errors.New("another certificate transaction is open in HAProxy")

// certError is a certificate that HAProxy did not take.
type certError struct {
	copy   string
	action certAction
	reply  string
	// content: it is the certificate that HAProxy finds wrong. Else it is a change that this
	// worker cannot make, and the next one can.
	content bool
}

func (e *certError) Error() string {
	return fmt.Sprintf("HAProxy refused to %s the certificate %s: %s", e.action, e.copy, e.reply)
}

// certSession changes certificates of one worker, on a connection of its own: what
// takes HAProxy long here must not keep changes of servers waiting. management.txt, "set
// ssl cert": each certificate has a transaction, and `commit` is the switch.
type certSession struct {
	conn  *conn
	store *certStore
	have  map[string]*storedCert // by copy, what the worker has; changed as it changes
	done  map[certAction]int
}

// push brings the worker from have to v: additions and updates first, then deletions. have
// nil: not known, and read. It returns what the worker has now, also beside an error; a
// *certError for each certificate that stays as it was, joined.
func (cs *certSession) push(ctx context.Context, v *certView) error {
	loaded, err := cs.loaded(ctx)
	if err != nil {
		return err
	}
	entries, err := cs.entries(ctx)
	if err != nil {
		return err
	}
	inList := func(copy string) bool { return slices.Contains(entries, copy) }
	if cs.have == nil {
		if err := cs.compare(ctx, v, loaded); err != nil {
			return err
		}
	}
	var failures []error
	for _, copy := range slices.Sorted(maps.Keys(v.certs)) {
		want, listed := v.certs[copy], slices.Contains(v.list, copy)
		switch {
		case loaded[copy]:
			err = cs.update(ctx, want)
			if err == nil && listed && entries != nil && !inList(copy) { // left by one who was killed
				err = cs.list(ctx, copy)
			}
		case listed && entries != nil:
			err = cs.add(ctx, want)
		default:
			continue // no bind has it
		}
		if _, refused := errors.AsType[*certError](err); err != nil && !refused {
			return err
		}
		failures = append(failures, err)
	}
	for i, copy := range entries {
		if slices.Contains(v.list, copy) || !cs.ours(copy) {
			continue
		}
		if i == 0 {
			// Newer versions refuse this, 2.2 does half of it.
			failures = append(failures, &certError{copy: copy, action: certDelete, reply: "it is the default one of a listener"})
			continue
		}
		if err = cs.remove(ctx, copy); err != nil {
			if _, refused := errors.AsType[*certError](err); !refused {
				return err
			}
		}
		failures = append(failures, err)
	}
	return errors.Join(failures...)
}

func (cs *certSession) ours(copy string) bool {
	return filepath.Dir(copy) == filepath.Join(cs.store.dir, certSNI)
}

// loaded lists the certificates of the store that the worker has.
func (cs *certSession) loaded(ctx context.Context) (map[string]bool, error) {
	answer, err := cs.conn.query(ctx, "show ssl cert")
	if err != nil {
		return nil, err
	}
	reply := bytes.Clone(answer)
	out := make(map[string]bool)
	for line := range bytes.Lines(reply) {
		name := strings.TrimSpace(string(line))
		if open, ok := strings.CutPrefix(name, "*"); ok {
			// 2.6 would put our content into an open transaction whatever it is about.
			if !strings.HasPrefix(open, cs.store.dir+"/") {
				return nil, fmt.Errorf("%w: %s", errTransaction, open)
			}
			if _, err := cs.conn.query(ctx, "abort ssl cert "+open); err != nil { // of a bridge that was killed
				return nil, err
			}
			continue
		}
		if strings.HasPrefix(name, cs.store.dir+"/") {
			out[name] = true
		}
	}
	return out, nil
}

// entries lists what is in the crt-list of the worker, the default certificate first; nil:
// it has no crt-list of ours.
func (cs *certSession) entries(ctx context.Context) ([]string, error) {
	reply, err := cs.conn.query(ctx, "show ssl crt-list")
	if err != nil {
		return nil, err
	}
	if !slices.Contains(strings.Fields(string(reply)), cs.store.listPath()) {
		return nil, nil
	}
	if reply, err = cs.conn.query(ctx, "show ssl crt-list "+cs.store.listPath()); err != nil {
		return nil, err
	}
	out := []string{}
	for line := range bytes.Lines(reply) {
		if fields := strings.Fields(string(line)); len(fields) > 0 && !strings.HasPrefix(fields[0], "#") {
			out = append(out, fields[0])
		}
	}
	return out, nil
}

// compare finds out what the worker has by fingerprints. Two certificates of one leaf are
// taken to be the same: the rest of the file changes with the leaf, or with a reload.
func (cs *certSession) compare(ctx context.Context, v *certView, loaded map[string]bool) error {
	cs.have = make(map[string]*storedCert)
	for copy := range loaded {
		c := v.certs[copy]
		if c == nil {
			continue
		}
		reply, err := cs.conn.query(ctx, "show ssl cert "+copy)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(reply)) {
			if _, sum, ok := strings.Cut(line, "FingerPrint:"); ok && strings.TrimSpace(sum) == c.cert.fingerprint() {
				cs.have[copy] = c
			}
		}
	}
	return nil
}

// update gives the worker another content of a certificate that it has.
func (cs *certSession) update(ctx context.Context, want *storedCert) error {
	have := cs.have[want.copy]
	switch {
	case have != nil && have.sum == want.sum:
		return nil
	case have != nil && bytes.Equal(have.cert.pem, want.cert.pem) && want.ocsp == nil:
		// HAProxy itself stops handing out a response that has expired.
		cs.have[want.copy] = want
		return nil
	case have != nil && bytes.Equal(have.cert.pem, want.cert.pem) && have.ocsp != nil:
		reply, err := cs.conn.payload(ctx, "set ssl ocsp-response <<", base64.StdEncoding.EncodeToString(want.ocsp))
		if err != nil {
			return err
		}
		if !bytes.Contains(reply, []byte("OCSP Response updated")) {
			return &certError{copy: want.copy, action: certOCSP, reply: shorten(reply)}
		}
		cs.did(certOCSP, want)
		return nil
	}
	if err := cs.transact(ctx, certUpdate, want); err != nil {
		return err
	}
	cs.did(certUpdate, want)
	return nil
}

// add makes a certificate that the worker does not have and puts it into the crt-list.
func (cs *certSession) add(ctx context.Context, want *storedCert) error {
	if len(want.cert.pem) > certPayload {
		return tooLong(certAdd, want)
	}
	if err := cs.expect(ctx, certAdd, want.copy, "new ssl cert "+want.copy, "New empty certificate store", "already exists"); err != nil {
		return err
	}
	if err := cs.transact(ctx, certAdd, want); err != nil {
		if _, refused := errors.AsType[*certError](err); refused {
			_, _ = cs.conn.query(ctx, "del ssl cert "+want.copy) // empty, and in nobody's way if it stays
		}
		return err
	}
	if err := cs.list(ctx, want.copy); err != nil {
		return err
	}
	cs.did(certAdd, want)
	return nil
}

func (cs *certSession) list(ctx context.Context, copy string) error {
	return cs.expect(ctx, certAdd, copy, "add ssl crt-list "+cs.store.listPath()+" "+copy, "Success")
}

// remove takes a certificate out of the crt-list and frees it.
func (cs *certSession) remove(ctx context.Context, copy string) error {
	if err := cs.expect(ctx, certDelete, copy, "del ssl crt-list "+cs.store.listPath()+" "+copy, "Entry '"); err != nil {
		return err
	}
	delete(cs.have, copy)
	cs.done[certDelete]++
	return cs.expect(ctx, certDelete, copy, "del ssl cert "+copy, "Certificate '"+copy+"' deleted")
}

func (cs *certSession) did(action certAction, c *storedCert) {
	cs.done[action]++
	cs.have[c.copy] = c
}

func tooLong(action certAction, c *storedCert) error {
	return &certError{copy: c.copy, action: action, reply: fmt.Sprintf("it has %d bytes, the socket takes %d", len(c.cert.pem), certPayload)}
}

// transact replaces the content of a certificate: until `commit` nothing is changed, and
// after it all connections get the new one.
func (cs *certSession) transact(ctx context.Context, action certAction, want *storedCert) error {
	if len(want.cert.pem) > certPayload || base64.StdEncoding.EncodedLen(len(want.ocsp)) > certPayload {
		return tooLong(action, want)
	}
	set := func(suffix, payload string) ([]byte, error) {
		return cs.conn.payload(ctx, "set ssl cert "+want.copy+suffix+" <<", payload)
	}
	begun := func(reply []byte, how string) bool {
		return bytes.Contains(reply, []byte("Transaction "+how+" for certificate "+want.copy+"!"))
	}
	reply, err := set("", string(want.cert.pem))
	if err != nil {
		return err
	}
	abort := func(reply []byte, content bool) error {
		if _, err := cs.conn.query(ctx, "abort ssl cert "+want.copy); err != nil {
			return err
		}
		return &certError{copy: want.copy, action: action, reply: shorten(reply), content: content}
	}
	if !begun(reply, "created") {
		if bytes.Contains(reply, []byte("ransaction")) {
			return fmt.Errorf("%w: %s", errTransaction, shorten(reply)) // one that began since we looked
		}
		return abort(reply, bytes.Contains(reply, []byte("unable to load")))
	}
	if want.ocsp != nil {
		if reply, err = set(ocspSuffix, base64.StdEncoding.EncodeToString(want.ocsp)); err != nil {
			return err
		}
		if !begun(reply, "updated") {
			return abort(reply, false)
		}
	}
	reply, err = cs.conn.ask(ctx, "commit ssl cert "+want.copy+"\n", commitTimeout)
	if err != nil {
		return err
	}
	if !bytes.Contains(reply, []byte("Success")) {
		return abort(reply, true)
	}
	return nil
}

// expect sends a line whose answer has to hold one of some texts.
func (cs *certSession) expect(ctx context.Context, action certAction, copy, line string, texts ...string) error {
	reply, err := cs.conn.query(ctx, line)
	if err != nil {
		return err
	}
	for _, text := range texts {
		if bytes.Contains(reply, []byte(text)) {
			return nil
		}
	}
	return &certError{copy: copy, action: action, reply: shorten(reply)}
}

// payload sends a command that ends in << with its payload, which is neither logged nor
// part of an error. The payload has no empty lines: one ends it.
func (c *conn) payload(ctx context.Context, command, payload string) ([]byte, error) {
	reply, err := c.ask(ctx, command+"\n"+payload+"\n\n", queryTimeout)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	// Up to 3.0 each line of a payload is answered with a prompt.
	return bytes.TrimLeft(reply, "+ \n"), nil
}

// ask sends text, which ends in a line break, and returns the answer.
func (c *conn) ask(ctx context.Context, text string, timeout time.Duration) ([]byte, error) {
	if c.dead {
		return nil, errLost
	}
	c.deadline(ctx, timeout)
	if _, err := c.nc.Write([]byte(text)); err != nil {
		c.close()
		return nil, fmt.Errorf("%w: %w", errLost, err)
	}
	reply, err := c.reply()
	if err != nil {
		c.close()
	}
	return reply, err
}
