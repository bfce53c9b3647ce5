package tuning

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vmferry/vmferry/share"
)

// reading is one object's value of a knob, or why there is none.
type reading struct {
	Object, Path, Value string
	Choices             []string // what a Choice offers
	Line                int
	Err                 error
}

// readings are a knob's values on all objects of a machine. None and no error
// means that the machine has no such thing.
func readings(ctx context.Context, sys System, k *Knob) ([]reading, error) {
	switch k.At.Syntax {
	case Option:
		return readMounts(ctx, sys, k)
	case JSONField:
		return readCommand(ctx, sys, k)
	case XMLPath, Parameter:
		return nil, nil
	}
	paths := []string{k.At.Path}
	if strings.Contains(k.At.Path, "*") {
		var err error
		if paths, err = sys.Glob(ctx, k.At.Path); err != nil {
			return nil, err
		}
	}
	var out []reading
	for _, p := range paths {
		object := objectOf(k.At.Path, p)
		if skipped(k, object) {
			continue
		}
		if k.At.Needs != "" {
			if _, err := sys.ReadFile(ctx, strings.Replace(k.At.Needs, "*", object, 1)); errors.Is(err, share.ErrNotExist) {
				continue
			}
		}
		r := readOne(ctx, sys, k, object)
		if errors.Is(r.Err, share.ErrNotExist) { // not there, or vanished since
			continue
		}
		out = append(out, r)
	}
	return out, nil
}

// readOne is the value of one object of a knob that is in a file.
func readOne(ctx context.Context, sys System, k *Knob, object string) reading {
	r := reading{Object: object, Path: k.path(object)}
	b, err := sys.ReadFile(ctx, r.Path)
	if err != nil {
		r.Err = err
		return r
	}
	if k.At.Syntax == Setting {
		r.Value, r.Line = k.At.Default, 0
		braces := k.At.Path == multipath
		for _, s := range parseINI(string(b), braces).settings {
			if braces && s.Section != "defaults" {
				continue
			}
			if s.Key == k.At.Key || s.Key == plainKey(k.At.Key) {
				r.Value, r.Line = strings.Join(strings.Fields(strings.Trim(s.Value, `"`)), " "), s.Line
			}
		}
		return r
	}
	if r.Value, r.Choices, err = parseValue(k.At.Syntax, string(b)); err != nil {
		r.Err = fmt.Errorf("%s: %w", r.Path, err)
	}
	return r
}

// objectOf is what stands for "*" in path.
func objectOf(pattern, path string) string {
	before, after, star := strings.Cut(pattern, "*")
	if !star || len(path) < len(before)+len(after) {
		return ""
	}
	return path[len(before) : len(path)-len(after)]
}

func skipped(k *Knob, object string) bool {
	return slices.ContainsFunc(k.At.Skip, func(s string) bool { return strings.HasPrefix(object, s) })
}

// readMounts reads an option of each NFS mount. A Key "a|b" is an option that
// is one of two words.
func readMounts(ctx context.Context, sys System, k *Knob) ([]reading, error) {
	b, err := sys.ReadFile(ctx, k.At.Path)
	if errors.Is(err, share.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var out []reading
	parsed := parseFstab(string(b))
	for _, m := range parsed.mounts {
		if m.Type != "nfs" && m.Type != "nfs4" {
			continue
		}
		r := reading{Object: m.Dir, Path: k.At.Path, Line: m.Line, Value: k.At.Default}
		for _, o := range m.Options {
			name, value, _ := strings.Cut(o, "=")
			if name == k.At.Key {
				r.Value = value
			} else if strings.Contains(k.At.Key, "|") && slices.Contains(strings.Split(k.At.Key, "|"), name) {
				r.Value = name
			}
		}
		if r.Value == "" {
			r.Err = fmt.Errorf("%s:%d: option %s: %w", r.Path, r.Line, k.At.Key, share.ErrNotExist)
		}
		out = append(out, r)
	}
	return out, nil
}

// readCommand reads a field of the objects that a command prints. A machine
// without the command has none of them.
func readCommand(ctx context.Context, sys System, k *Knob) ([]reading, error) {
	runner, ok := sys.(Runner)
	if !ok {
		return nil, nil
	}
	if _, err := sys.ReadFile(ctx, cephConf); errors.Is(err, share.ErrNotExist) {
		return nil, nil
	}
	b, err := runner.Run(ctx, k.At.Command...)
	if errors.Is(err, share.ErrNotExist) || errors.Is(err, errors.ErrUnsupported) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var objects []map[string]any
	if err := json.Unmarshal(b, &objects); err != nil {
		return nil, fmt.Errorf("output of %s: %w: %w", k.At.Command[0], share.ErrInvalid, err)
	}
	var out []reading
	for _, o := range objects {
		n, _ := o[k.At.ObjectKey].(string)
		v, has := o[k.At.Key]
		if n == "" || !has {
			continue
		}
		r := reading{Object: n, Path: strings.Join(k.At.Command[:min(4, len(k.At.Command))], " ")}
		switch v := v.(type) {
		case string:
			r.Value = v
		case float64:
			r.Value = fmt.Sprintf("%.0f", v)
		case bool:
			r.Value = fmt.Sprint(v)
		default:
			r.Err = fmt.Errorf("output of %s: field %s %w", k.At.Command[0], k.At.Key, share.ErrInvalid)
		}
		out = append(out, r)
	}
	return out, nil
}
