package bundle

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"bottle/bottle"
)

// What is known of a pipelock that is not ours: it says which file it loaded in its log, by the hash of the
// raw file, at its start and after a reload; it acknowledges nothing else; and its /health says that it
// serves, in which mode, but not on which file (pipelock 2.3).

const (
	againEvery   = 250 * time.Millisecond // it drops the newest of rapid reloads
	healthEvery  = 5 * time.Millisecond
	healthSlowly = 50 * time.Millisecond
	healthFast   = time.Second
	maxHealth    = 64 << 10
)

// A logLine is what is read of its log. Anything else in it, and what the agent had it
// log, is of no account: a client's words stand inside JSON strings.
type logLine struct {
	Component string `json:"component"`
	Event     string `json:"event"`
	Status    string `json:"status"`
	Hash      string `json:"config_hash"`
	Method    string `json:"method"`
	Error     string `json:"error"`
}

// A saying is what one line comes to: the hash of the file in force, or why one was refused.
type saying struct{ hash, refused string }

// parseLog makes sense of a line of pipelock's; ok is false for most.
func parseLog(line []byte) (said saying, ok bool) {
	if why, found := bytes.CutPrefix(line, []byte("pipelock: config reload failed: ")); found {
		return saying{refused: string(why)}, true
	}
	if len(line) == 0 || line[0] != '{' {
		return said, false
	}
	var l logLine
	if json.Unmarshal(line, &l) != nil || l.Component != "pipelock" {
		return said, false
	}
	switch {
	case l.Event == "startup", l.Event == "config_reload" && l.Status == "success":
		return saying{hash: l.Hash}, l.Hash != ""
	case l.Event == "config_reload", l.Event == "error" && l.Method == "CONFIG_RELOAD":
		return saying{refused: l.Error}, l.Error != ""
	}
	return said, false
}

// hear returns what passes the sayings of one that is not ours on; nil for ours.
func (s *Supervisor) hear(to chan<- saying, quit <-chan struct{}) func([]byte) {
	if to == nil {
		return nil
	}
	return func(line []byte) {
		said, ok := parseLog(line)
		if !ok {
			return
		}
		select {
		case to <- said:
		case <-quit:
		}
	}
}

// watchForeign reports of an instance that does not report itself: what its log says, once its
// health was seen. It ends with the instance.
func (s *Supervisor) watchForeign(i *instance, heard <-chan saying, end <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	healthy := make(chan error, 1)
	s.procs.Go(func() { healthy <- untilHealthy(ctx, i.slot) })
	r := report{i: i, status: bottle.DaemonStatus{Instance: fmt.Sprint(i.proc.pid, "-", i.startedAt.UnixNano())}}
	for {
		select {
		case <-end:
			return
		case err := <-healthy:
			healthy = nil
			if err != nil {
				r.fatal = err.Error()
			}
			r.status.Listen = i.slot.addr
		case said := <-heard:
			if said.refused != "" {
				// Of which revision the loop knows.
				r.status.Refused = &bottle.Refusal{Error: said.refused, At: time.Now().UTC()}
				break
			}
			r.hash, r.status.Refused, r.status.LoadedAt = said.hash, nil, time.Now().UTC()
		}
		if r.status.Listen == "" && r.fatal == "" {
			continue // until it is healthy it may have no handlers
		}
		if !s.tell(r) {
			return
		}
	}
}

// untilHealthy asks for /health until the process behind it is ours and says that it is strict.
// Any other mode lets through what nobody listed: it is what pipelock falls into on a file
// without its mode line. The error is why it must not serve.
func untilHealthy(ctx context.Context, at *slot) error {
	client := &http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}, Timeout: time.Second}
	start := time.Now()
	for {
		mode, err := health(ctx, client, at.addr)
		if err == nil {
			if mode != "strict" {
				return fmt.Errorf("it runs in mode %q, in which hosts that nobody listed are reachable", mode)
			}
			return ownListener(at)
		}
		pause := healthEvery
		if time.Since(start) > healthFast {
			pause = healthSlowly
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil // the instance has ended, or the supervisor: nobody listens to this
		}
	}
}

func health(ctx context.Context, client *http.Client, addr string) (mode string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/health", nil)
	if err != nil {
		return "", err
	}
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	var h struct{ Status, Mode string }
	if err := json.NewDecoder(io.LimitReader(res.Body, maxHealth)).Decode(&h); err != nil {
		return "", err
	}
	if res.StatusCode != http.StatusOK || h.Status != "healthy" {
		return "", fmt.Errorf("health: %d, %s", res.StatusCode, h.Status)
	}
	return h.Mode, nil
}

// ownListener refuses a port on which another user's process answers. Its address was not held
// for it, as those of our own gate are.
func ownListener(at *slot) error {
	ports, err := tcpPorts(at.port)
	if err != nil {
		return err
	}
	if uid := ports[at.port].listener; uid != os.Geteuid() {
		return fmt.Errorf("a process of uid %d answers on %s", uid, at.addr)
	}
	return nil
}
