package egress

import (
	"bufio"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/sys/unix"

	"bottle/bottle"
)

const (
	maxKeysLine = 1 << 20  // bytes of the one message on the key socket
	maxToken    = 16 << 10 // bytes of one token
)

// A keyring holds the operator's tokens, in memory alone.
type keyring struct {
	credentials map[string]bottle.Credential
	grace       time.Time // when requests no longer wait

	mu    sync.RWMutex
	held  map[string]*held
	added chan struct{} // closed, and another made, by a handover
}

func newKeyring(credentials map[string]bottle.Credential) *keyring {
	return &keyring{credentials: credentials, grace: time.Now().Add(keysGrace), held: map[string]*held{}, added: make(chan struct{})}
}

// get returns what is held of a credential, nil if it was not handed over.
func (k *keyring) get(name string) *held {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.held[name]
}

// await is get, but within keysGrace of the start it waits for the handover.
func (k *keyring) await(ctx context.Context, name string) *held {
	if h := k.get(name); h != nil {
		return h
	}
	late := time.NewTimer(time.Until(k.grace))
	defer late.Stop()
	for {
		k.mu.RLock()
		h, added := k.held[name], k.added
		k.mu.RUnlock()
		if h != nil {
			return h
		}
		select {
		case <-added:
		case <-late.C:
			return k.get(name)
		case <-ctx.Done():
			return nil
		}
	}
}

// hide returns text without anything secret that is held.
func (k *keyring) hide(text string) string {
	k.mu.RLock()
	defer k.mu.RUnlock()
	for _, h := range k.held {
		text = h.hide(text)
	}
	return text
}

// needs returns the names of the credentials that have not been handed over, sorted.
func (k *keyring) needs() []string {
	k.mu.RLock()
	defer k.mu.RUnlock()
	var names []string
	for name := range k.credentials {
		if k.held[name] == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// add takes all of the tokens or, with an error that names none of them, nothing. A token
// that is held is not replaced: whoever can reach the socket beside the keeper must not put
// its own in place of the operator's. A new token takes a new egress.
func (k *keyring) add(tokens map[string]string) error {
	for name, token := range tokens {
		switch _, ok := k.credentials[name]; {
		case !ok:
			return fmt.Errorf("credential %q is not in the manifest", clip(name, 60))
		case token == "":
			return fmt.Errorf("credential %s: the token is empty", name)
		case len(token) > maxToken:
			return fmt.Errorf("credential %s: the token is over %d bytes", name, maxToken)
		case !httpguts.ValidHeaderFieldValue(token) || strings.TrimSpace(token) != token:
			return fmt.Errorf("credential %s: the token has a space or line break at an end, or a control character, and can't be sent in a header", name)
		}
	}
	fresh := map[string]*held{}
	for name, token := range tokens {
		h, err := newHeld(k.credentials[name], token)
		if err != nil {
			return fmt.Errorf("credential %s: %w", name, err)
		}
		fresh[name] = h
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, token := range tokens {
		if have := k.held[name]; have != nil && subtle.ConstantTimeCompare([]byte(have.token), []byte(token)) == 0 {
			return fmt.Errorf("credential %s: another token is held already; to change it, stop and start the bottle", name)
		}
	}
	maps.Copy(k.held, fresh)
	close(k.added)
	k.added = make(chan struct{})
	return nil
}

type keysMessage struct {
	Schema int               `json:"schema"`
	Tokens map[string]string `json:"tokens"`
}

type keysReply struct {
	OK    bool   `json:"ok,omitempty"`
	Error string `json:"error,omitempty"`
}

// serveKeys takes tokens until l is closed, one peer at a time: the only one is the keeper.
// took is called after each handover.
func (s *Server) serveKeys(ctx context.Context, l *net.UnixListener, took func()) error {
	for {
		c, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			// No descriptors or no memory, which the agent can bring about. What runs, runs on, and
			// the keeper waits in the backlog.
			s.handover.Warn("key socket", "error", err)
			select {
			case <-time.After(acceptPause):
				continue
			case <-ctx.Done():
				return nil
			}
		}
		reply := keysReply{OK: true}
		if err := s.takeKeys(c); err != nil {
			s.handover.Warn("credentials refused", "error", err)
			reply = keysReply{Error: err.Error()}
		} else {
			s.handover.Info("credentials taken", "missing", s.keys.needs())
			took()
		}
		_ = json.NewEncoder(c).Encode(reply) // the peer sees a lost reply as an error of its own
		_ = c.Close()
	}
}

func (s *Server) takeKeys(c *net.UnixConn) error {
	if err := c.SetDeadline(time.Now().Add(keysTimeout)); err != nil {
		return err
	}
	if err := checkPeer(c); err != nil {
		return err
	}
	line, err := readLine(c)
	if err != nil {
		return err
	}
	var m keysMessage
	if err := json.Unmarshal(line, &m); err != nil {
		return errors.New("not the JSON of a handover") // the JSON error could quote a token
	}
	if m.Schema != bottle.Schema {
		return fmt.Errorf("schema %d; this egress takes %d", m.Schema, bottle.Schema)
	}
	return s.keys.add(m.Tokens)
}

func readLine(r io.Reader) ([]byte, error) {
	line, err := bufio.NewReader(io.LimitReader(r, maxKeysLine)).ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("no whole line of at most %d bytes: %w", maxKeysLine, err)
	}
	return line, nil
}

// checkPeer refuses another user, by the kernel's word (SO_PEERCRED, unix(7)).
func checkPeer(c *net.UnixConn) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := rc.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return fmt.Errorf("who is at the key socket: %w", credErr)
	}
	if int(cred.Uid) != os.Getuid() {
		return fmt.Errorf("the process at the other end of the key socket is of uid %d, not %d", cred.Uid, os.Getuid())
	}
	return nil
}

// HandKeys hands tokens, by credential name, to the egress that serves the key socket. It
// is the keeper's side. It sends nothing to a process of another user, takes at most five
// seconds, and its error is egress' own refusal, if there was one; none has a token in it.
func HandKeys(ctx context.Context, socket string, tokens map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("hand credentials to egress: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("hand credentials to egress: %s is not a unix socket", socket)
	}
	if err := checkPeer(c); err != nil {
		return fmt.Errorf("hand credentials to egress: %w", err)
	}
	if err := json.NewEncoder(c).Encode(keysMessage{Schema: bottle.Schema, Tokens: tokens}); err != nil {
		return fmt.Errorf("hand credentials to egress: %w", err)
	}
	line, err := readLine(c)
	if err != nil {
		return fmt.Errorf("hand credentials to egress: %w", err)
	}
	var reply keysReply
	switch err := json.Unmarshal(line, &reply); {
	case err != nil:
		return fmt.Errorf("hand credentials to egress: its reply: %w", err)
	case !reply.OK:
		return fmt.Errorf("hand credentials to egress: %s", reply.Error)
	}
	return nil
}
