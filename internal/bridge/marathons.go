package bridge

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Limits of a marathons file. It is written by an operator, so they only keep a
// wrong path (a log, a device) from being read without end.
const (
	maxMarathonsLine = 1024
	maxMarathons     = 256
)

// ParseMarathons reads a list of Marathons as haproxy-marathon-bridge keeps it: one
// host:port per line; a URL is accepted too. Text from # on is a comment, empty
// lines are skipped. The answer holds URLs in the order of the file, without
// duplicates. name is the file's, for the errors, of which there is one for each bad
// line.
func ParseMarathons(name string, r io.Reader) ([]string, error) {
	var urls []string
	var problems []error
	bad := func(line int, text string) {
		problems = append(problems, &Problem{Where: name + ":" + strconv.Itoa(line), Text: text})
	}

	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, maxMarathonsLine), maxMarathonsLine)
	line := 0
	for sc.Scan() {
		line++
		text, _, _ := strings.Cut(sc.Text(), "#")
		text = strings.TrimSpace(text)
		if text == "" {
			continue
		}
		if len(urls) == maxMarathons {
			bad(line, fmt.Sprintf("more than %d Marathons; is this the right file?", maxMarathons))
			break
		}
		if strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			bad(line, fmt.Sprintf("want one host:port such as m1.example.com:8080, have %q", text))
			continue
		}
		u, err := marathonURL(text)
		if err != nil {
			bad(line, err.Error())
			continue
		}
		if !slices.Contains(urls, u) {
			urls = append(urls, u)
		}
	}
	if err := sc.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			bad(line+1, fmt.Sprintf("a line of more than %d bytes; is this the right file?", maxMarathonsLine))
		} else {
			problems = append(problems, &Problem{Where: name, Text: "read", Err: reasonOf(err)})
		}
	}
	if len(problems) == 0 && len(urls) == 0 {
		problems = append(problems, &Problem{Where: name, Text: "lists no Marathon; add a line host:port"})
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return urls, nil
}

func readMarathonsFile(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &Problem{Where: path, Key: "marathon.urls_file", Text: "cannot read the list of Marathons: " + remedyForFile(err), Err: reasonOf(err)}
	}
	defer f.Close()
	return ParseMarathons(path, f)
}

// MarathonURLs returns the URLs of the Marathons to follow, read from their files where
// that is what c names.
func (c *Config) MarathonURLs() ([]string, error) {
	var all []string
	for _, m := range c.sources() {
		urls, err := c.urls(&m)
		if err != nil {
			return nil, err
		}
		all = append(all, urls...)
	}
	return all, nil
}

// parsePort accepts decimal digits alone, as net.LookupPort does not.
func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err
}
