package domain

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/vmferry/vmferry/share"
)

// nothingLost compares what two documents say. An element or attribute of the
// first that the second has not is one that libvirtxml does not know, and that
// a definition written by it would be without.
func nothingLost(before, after string) error {
	a, err := facts(before)
	if err != nil {
		return err
	}
	b, err := facts(after)
	if err != nil {
		return err
	}
	for fact, n := range a {
		if b[fact] < n {
			what, _, _ := strings.Cut(fact, "=")
			return &share.UnsupportedError{What: "a definition with " + what, Reason: "it would be lost; change it by hand"}
		}
	}
	return nil
}

const maxDepth = 64

// facts counts elements with text and attributes, by their path. Numbers are
// compared as such: libvirt writes 0x00 and 0 for the same address.
func facts(doc string) (map[string]int, error) {
	out := map[string]int{}
	d := xml.NewDecoder(strings.NewReader(doc))
	var at []string
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("domain XML %w: %w", share.ErrInvalid, err)
		}
		switch t := tok.(type) {
		case xml.StartElement:
			if at = append(at, t.Name.Local); len(at) > maxDepth {
				return nil, fmt.Errorf("domain XML %w: elements too deep in each other", share.ErrInvalid)
			}
			path := strings.Join(at, "/")
			out[path]++
			for _, a := range t.Attr {
				if a.Name.Space == "xmlns" || a.Name.Local == "xmlns" {
					continue
				}
				out[path+"/@"+a.Name.Local+"="+plain(a.Value)]++
			}
		case xml.EndElement:
			at = at[:len(at)-1]
		case xml.CharData:
			if s := strings.TrimSpace(string(t)); s != "" {
				out[strings.Join(at, "/")+"="+plain(s)]++
			}
		}
	}
}

func plain(s string) string {
	if n, err := strconv.ParseUint(s, 0, 64); err == nil {
		return strconv.FormatUint(n, 10)
	}
	return s
}
