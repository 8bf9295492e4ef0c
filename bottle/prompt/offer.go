package prompt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"bottle/bottle"
)

// An Offer is what the operator is about to grant: the ask, or something else instead.
type Offer struct {
	Add        []bottle.Entry  `yaml:"add"`
	Remove     []bottle.Entry  `yaml:"remove"`
	Credential string          `yaml:"credential"`
	Duration   bottle.Duration `yaml:"duration"`
	Note       string          `yaml:"note"`
}

// OfferOf starts from what was asked. A request that names a time gets that, another the
// operator's default.
func OfferOf(a bottle.Ask, standard bottle.Duration) Offer {
	o := Offer{Add: a.Add, Remove: a.Remove, Credential: a.Credential, Duration: standard}
	if a.TTLSeconds > 0 {
		o.Duration = bottle.Duration{Kind: bottle.TTL, TTL: secondsOf(a.TTLSeconds)}
	}
	return o
}

// Only keeps the entries of the named hosts. A host that the request does not name is an error.
func (o Offer) Only(hosts []string) (Offer, error) {
	keep := map[bottle.Host]bool{}
	for _, s := range hosts {
		h, err := bottle.ParsePattern(s)
		if err != nil {
			return Offer{}, err
		}
		named := func(e bottle.Entry) bool { return e.Host == h }
		if !slices.ContainsFunc(o.Add, named) && !slices.ContainsFunc(o.Remove, named) {
			return Offer{}, fmt.Errorf("--only %s: the request does not name that host: %w", h, bottle.ErrInvalid)
		}
		keep[h] = true
	}
	pick := func(in []bottle.Entry) []bottle.Entry {
		return slices.DeleteFunc(slices.Clone(in), func(e bottle.Entry) bool { return !keep[e.Host] })
	}
	o.Add, o.Remove = pick(o.Add), pick(o.Remove)
	return o, nil
}

// The help is split in two because editors obey instructions that they find in the first
// and last five lines of a file (vim's modelines), and what stands between was written by
// the agent.
const (
	offerHead = `# What will be granted. Change it, save, and close the editor; you see the result, and
# are asked, before anything happens. An empty file leaves everything as it was.
#
# An entry:  - host: api.example.com          or *.example.com (one label)
#              ports: [443]                   left out: 80 and 443
#              matches:                       left out: the whole host
#                - path: {type: PathPrefix, value: /v1/}     Exact, PathPrefix, RegularExpression
#                  method: GET
`
	offerTail = `#
# duration: once, session, permanent, or a time span such as 90s, 10m, 2h
# note: goes to the agent
# credential: by name; the agent never sees it
#
# That is all.
`
)

// Encode returns the offer as the text that an operator edits.
func (o Offer) Encode() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(offerHead)
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(o); err != nil {
		return nil, fmt.Errorf("encode the offer: %w", err)
	}
	b.WriteString(offerTail)
	return b.Bytes(), nil
}

// offerFile is what the editor has open.
const offerFile = "offer.yaml"

// DecodeOffer reads an edited text, strictly. ok is false if nothing is left in it.
func DecodeOffer(b []byte) (o Offer, ok bool, err error) {
	if errors.Is(yaml.NewDecoder(bytes.NewReader(b)).Decode(&yaml.Node{}), io.EOF) {
		return Offer{}, false, nil
	}
	if err := bottle.DecodeYAML(offerFile, b, &o); err != nil {
		return Offer{}, false, err
	}
	canon, err := bottle.Ask{Add: o.Add, Remove: o.Remove, Credential: o.Credential, Reason: "-"}.Canonical()
	if err != nil {
		return Offer{}, false, err
	}
	if o.Duration.Kind == "" {
		return Offer{}, false, fmt.Errorf("duration: missing; use once, session, permanent, or a time span such as 10m: %w", bottle.ErrInvalid)
	}
	if len(o.Note) > bottle.MaxReason {
		return Offer{}, false, fmt.Errorf("note: over %d bytes: %w", bottle.MaxReason, bottle.ErrInvalid)
	}
	o.Add, o.Remove = canon.Add, canon.Remove
	return o, true, nil
}

// editFile opens text in the operator's editor and returns what was saved. The editor is a
// command line for the shell, as git takes $EDITOR ("code --wait"); it gets the terminal, if
// there is one, else the process's own streams.
func editFile(ctx context.Context, editor, name string, text []byte, terminal bool) ([]byte, error) {
	if strings.TrimSpace(editor) == "" {
		return nil, fmt.Errorf("no editor: set EDITOR, BOTTLE_EDITOR or editor in the config: %w", bottle.ErrInvalid)
	}
	dir, err := os.MkdirTemp("", "bottle-edit-")
	if err != nil {
		return nil, fmt.Errorf("edit: %w", err)
	}
	defer os.RemoveAll(dir)
	path := dir + "/" + name
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return nil, fmt.Errorf("edit: %w", err)
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", editor+` "$@"`, editor, path) //nolint:gosec // G204: the operator's own editor
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if terminal { // opened anew: the console's own must not become the editor's to change
		tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("edit: %w", err)
		}
		defer tty.Close()
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	}
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("editor %s: %w", editor, err)
	}
	return bottle.ReadFile(path, 1<<20)
}
