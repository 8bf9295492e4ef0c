package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

// What runs a command is tested in bottle/launch, where the sandbox is.
func TestSandboxUsage(t *testing.T) {
	for name, c := range map[string]struct {
		args   []string
		code   int
		stderr string
	}{
		"help":               {[]string{"--help"}, 0, "usage: bottle-mcp sandbox"},
		"no command":         {nil, 125, "usage: bottle-mcp sandbox"},
		"no forward":         {[]string{"--forward", "x", "--", "true"}, 125, "127.0.0.1:PORT"},
		"not to loopback":    {[]string{"--forward", "0.0.0.0:1=/x", "--", "true"}, 125, "no loopback address"},
		"an unknown flag":    {[]string{"--frobnicate"}, 125, "usage: bottle-mcp sandbox"},
		"no terminal":        {[]string{"--terminal", "--", "true"}, 125, "take the terminal"},
		"no such command":    {[]string{"--", "nonesuch"}, 127, "nonesuch can't be run"},
		"a number of nobody": {[]string{"--processes", "x", "--", "true"}, 125, "usage: bottle-mcp sandbox"},
	} {
		t.Run(name, func(t *testing.T) {
			var stderr bytes.Buffer
			code := run(append([]string{"sandbox"}, c.args...), io.NopCloser(strings.NewReader("")), io.Discard, &stderr)
			if code != c.code || !strings.Contains(stderr.String(), c.stderr) {
				t.Errorf("exit code %d, stderr %q", code, &stderr)
			}
		})
	}
}
