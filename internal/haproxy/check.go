package haproxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// CheckError is a configuration that `haproxy -c` refuses.
type CheckError struct{ alerts []alert }

// alert is one thing that HAProxy refuses.
type alert struct {
	text  string // HAProxy's own words, without its prefixes
	lines []int  // of the file that it names
}

func (e *CheckError) Error() string { return "haproxy -c: " + e.detail() }

// detail is what HAProxy said; of many alerts the first few.
func (e *CheckError) detail() string { return alertText(e.alerts) }

func alertText(alerts []alert) string {
	const most = 5
	var out []string
	for _, a := range alerts[:min(len(alerts), most)] {
		out = append(out, a.text)
	}
	if len(alerts) > most {
		out = append(out, fmt.Sprintf("and %d more", len(alerts)-most))
	}
	return strings.Join(out, "; ")
}

// ErrNoBinary: there is no haproxy here to check with.
var ErrNoBinary = errors.New("no haproxy program to check with")

// checkTimeout is far above what a parse takes: 1 s for 50 000 servers.
const checkTimeout = time.Minute

// checker runs `haproxy -c`. It parses the whole file and binds nothing: a busy port or a
// missing capability passes.
type checker struct {
	binary string
	runs   int // how often, for tests of the isolation's cost
}

// check asks HAProxy about out: nil, a *CheckError, or an error that says nothing about
// out, such as ErrNoBinary.
func (c *checker) check(ctx context.Context, out *Rendered) error {
	dir, err := os.MkdirTemp("", "bridged-check-")
	if err != nil {
		return fmt.Errorf("check the configuration: %w", err)
	}
	defer os.RemoveAll(dir)
	mapPath := func(name string) string { return filepath.Join(dir, name+".map") }
	for name, text := range out.Maps {
		if err := os.WriteFile(mapPath(name), text, 0o600); err != nil {
			return fmt.Errorf("check the configuration: %w", err)
		}
	}
	file := filepath.Join(dir, "haproxy.cfg")
	text := out.Bytes("bridged-check", mapPath)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return fmt.Errorf("check the configuration: %w", err)
	}
	return c.checkFile(ctx, file)
}

func (c *checker) checkFile(ctx context.Context, file string) error {
	c.runs++
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.binary, "-c", "-f", file)
	// What it leaves behind when it is killed must not hold us up.
	cmd.WaitDelay = time.Second
	said, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", ErrNoBinary, err)
	case ctx.Err() != nil:
		return fmt.Errorf("haproxy -c: %w", ctx.Err())
	}
	if _, ok := errors.AsType[*exec.ExitError](err); !ok {
		return fmt.Errorf("haproxy -c: %w", err)
	}
	return &CheckError{alerts: parseAlerts(string(said), file)}
}

var (
	// "[ALERT]    (123) : config : parsing [f:7] : unknown …" and "[ALERT] 326/064850 (123) : parsing [f:3] : …".
	alertPrefix = regexp.MustCompile(`^\[ALERT\][^:]*\(\d+\) : (?:config : )?`)
	alertWhere  = regexp.MustCompile(`([^\s\['(]+):(\d+)`)
)

// parseAlerts takes the reasons, and the lines of file that they name, out of what HAProxy
// printed. The closing "Error(s) found" lines say nothing.
func parseAlerts(said, file string) []alert {
	var out []alert
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		text := alertPrefix.ReplaceAllString(line, "")
		if text == line || strings.Contains(text, "rror(s) found in configuration") || strings.HasPrefix(text, "Fatal errors found") {
			continue
		}
		var a alert
		for _, m := range alertWhere.FindAllStringSubmatch(text, -1) {
			if n, err := strconv.Atoi(m[2]); err == nil && m[1] == file && !slices.Contains(a.lines, n) {
				a.lines = append(a.lines, n)
			}
		}
		a.text = shortenText(strings.ReplaceAll(text, file, "haproxy.cfg"), 300)
		out = append(out, a)
	}
	if len(out) == 0 {
		out = []alert{{text: shortenText(strings.TrimSpace(said), 300)}}
	}
	return out
}

func shortenText(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}
