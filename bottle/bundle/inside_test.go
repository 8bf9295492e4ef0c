package bundle

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

func TestBackoff(t *testing.T) {
	for n, want := range map[int][2]time.Duration{
		1: {50 * time.Millisecond, 75 * time.Millisecond}, 2: {50 * time.Millisecond, 100 * time.Millisecond},
		3: {100 * time.Millisecond, 200 * time.Millisecond}, 7: {1600 * time.Millisecond, 3200 * time.Millisecond},
		8: {2500 * time.Millisecond, 5 * time.Second}, 1000: {2500 * time.Millisecond, 5 * time.Second},
	} {
		for range 100 {
			if d := backoff(n); d < want[0] || d > want[1] {
				t.Fatalf("crash %d: %v, want %v", n, d, want)
			}
		}
	}
}

func TestHealthForgetsCrashes(t *testing.T) {
	now := time.Now()
	d := &daemon{name: "x", crashes: 6, came: true}
	d.crashed(now.Add(9*time.Second), now)
	if d.crashes != 7 {
		t.Errorf("after 9 s: %d crashes, want 7", d.crashes)
	}
	d.crashed(now.Add(10*time.Second), now)
	if d.crashes != 1 {
		t.Errorf("after 10 s: %d crashes, want 1", d.crashes)
	}
}

func TestStartError(t *testing.T) {
	for name, tt := range map[string]struct {
		ws   unix.WaitStatus
		code int
		want string
	}{
		"code":    {unix.WaitStatus(7 << 8), 7, "exit code 7: why"},
		"signal":  {unix.WaitStatus(unix.SIGKILL), 137, "killed by SIGKILL: why"},
		"success": {unix.WaitStatus(0), 1, "exit code 0: why"}, // it did not serve
	} {
		if e := startError("x", tt.ws, "why"); e.Code != tt.code || e.Reason != tt.want {
			t.Errorf("%s: %d %q", name, e.Code, e.Reason)
		}
	}
}

func TestCheckABI(t *testing.T) {
	for _, tt := range []struct {
		name    string
		abi     int
		accept  bool
		gap     string
		refused bool
	}{
		{name: "none", abi: 0, refused: true},
		{name: "none, accepted", abi: 0, accept: true, gap: "no Landlock"},
		{name: "files only", abi: 3, gap: "ports are not restricted"},
		{name: "no scopes", abi: 5, gap: "signals and abstract sockets"},
		{name: "full", abi: 7},
		{name: "newer", abi: 99},
	} {
		gap, err := checkABI(tt.abi, tt.accept)
		if (err != nil) != tt.refused || tt.gap != "" && !strings.Contains(gap, tt.gap) || tt.gap == "" && gap != "" {
			t.Errorf("%s: %q %v", tt.name, gap, err)
		}
		if tt.refused && (!errors.Is(err, bottle.ErrInvalid) || !strings.Contains(err.Error(), "accept_no_landlock")) {
			t.Errorf("%s: %v: no fix", tt.name, err)
		}
	}
}

func TestPickDaemons(t *testing.T) {
	for _, tt := range []struct {
		env    string
		config []string
		want   []string
	}{
		{want: []string{"supervise", "egress", "pipelock"}},
		{config: []string{"supervise"}, want: []string{"supervise"}},
		{config: []string{"supervise", "egress"}, want: []string{"supervise", "egress", "pipelock"}},
		{env: "egress", config: []string{"supervise"}, want: []string{"egress", "pipelock"}},
		{env: " pipelock, supervise ", want: []string{"supervise", "pipelock"}},
	} {
		got, err := pickDaemons(tt.env, tt.config)
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%q %v: %v %v, want %v", tt.env, tt.config, got, err, tt.want)
		}
	}
}

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"plain, tab\tand ünïcode":     "plain, tab\tand ünïcode",
		"\x1b]0;title\x07":            `\u001b]0;title\u0007`,
		"a\u202eb\u200bc":             `a\u202eb\u200bc`,
		"bad \xff utf-8":              `bad \xff utf-8`,
		"c1 \u009b31m":                `c1 \u009b31m`,
		"carriage\rreturn":            `carriage\u000dreturn`,
		string([]rune{'t', 0xe0041}):  `t\ue0041`,
		"line\u2028separator":         `line\u2028separator`,
		"the replacement rune \ufffd": `the replacement rune \ufffd`,
	} {
		if got := escape(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestQuota(t *testing.T) {
	now := time.Now()
	q := newQuota(now)
	passed, dropped, notes := 0, 0, 0
	write := func(n int) {
		for range n {
			ok, missing := q.allow(now)
			if ok {
				passed++
			}
			if missing > 0 {
				notes++
				dropped += missing
			}
		}
	}
	write(5000)
	if passed != burstLines || notes != 0 || q.dropped != 4000 {
		t.Fatalf("a burst of 5000: %d passed, %d notes, %d dropped", passed, notes, q.dropped)
	}
	// A flood of 10,000 lines a second for a minute.
	for range 60_000 {
		now = now.Add(time.Millisecond)
		write(10)
	}
	if most := burstLines + 61*lineRate; passed > most || passed < burstLines+55*lineRate || notes > 60 {
		t.Errorf("a flood of a minute: %d passed, %d notes", passed, notes)
	}
	if passed+dropped+q.dropped != 605_000 {
		t.Errorf("%d passed, %d told of, %d to be told of: some are not accounted for", passed, dropped, q.dropped)
	}
	// An hour's silence gives back the burst and no more.
	now = now.Add(time.Hour)
	passed = 0
	write(2 * burstLines)
	if passed != burstLines {
		t.Errorf("after an hour: %d passed", passed)
	}
}
