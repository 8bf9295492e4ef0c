package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	protocol "github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"

	"bottle/bottle"
)

// A Queue takes requests in and tells what became of them. An id is a request's UUID or its
// short ID. Errors wrap the sentinels of package bottle.
type Queue interface {
	// Submit files the ask durably, or joins it to the same one that is pending. A key that
	// it has seen (empty: none) returns that ticket and counts no attempt.
	Submit(ctx context.Context, ask bottle.Ask, key string) (bottle.Ticket, error)
	Get(ctx context.Context, id string) (bottle.Ticket, error)
	List(ctx context.Context) ([]bottle.Ticket, error)
	Cancel(ctx context.Context, id string) (bottle.Ticket, error)
	// Wait returns when the request is decided, or when ctx is done: then with the ticket
	// as it is and ctx's error.
	Wait(ctx context.Context, id string) (bottle.Ticket, error)
}

// An Enforcer tells what is in force. It is the proxy itself, so that what the agent reads
// is what is enforced.
type Enforcer interface {
	Routes(ctx context.Context) (bottle.InForce, error)
	Denials(ctx context.Context, limit int) ([]bottle.Denial, error) // newest first
	Check(ctx context.Context, url, method string) (bottle.Check, error)
}

// Bounds of the transport, unless [Config] says otherwise.
const (
	MaxLine         = 256 << 10        // bytes of one JSON-RPC message; a request has at most 64 KiB
	MaxConns        = 256              // connections
	MaxCalls        = 32               // calls in flight on one connection
	MaxPendingBytes = 32 << 20         // bytes of all messages in flight
	WriteTimeout    = 10 * time.Second // for a client to take one message off the socket
	LineTimeout     = 30 * time.Second // from a message's first byte to its newline
)

// Config says what a server serves, and within which bounds.
type Config struct {
	Queue    Queue    // required
	Enforcer Enforcer // required
	Name     string   // of the server; "bottle" if empty
	Version  string   // "0" if empty
	Logger   *slog.Logger

	MaxLine      int           // 0: [MaxLine]
	MaxConns     int           // 0: [MaxConns]
	MaxCalls     int           // 0: [MaxCalls]
	WriteTimeout time.Duration // 0: [WriteTimeout]
}

// A Server serves the tools and resources of one bottle to any number of clients.
type Server struct {
	queue    Queue
	enforcer Enforcer
	log      *slog.Logger
	lib      *mcpserver.MCPServer
	info     protocol.Implementation // what the results say of the server
	dispatch dispatcher

	maxLine      int
	maxConns     int
	maxCalls     int
	writeTimeout time.Duration
	pending      budget
}

// A dispatcher answers one JSON-RPC message; it is nil for a notification. The library's is
// the last; those before it answer what the library doesn't know.
type dispatcher func(ctx context.Context, message json.RawMessage) protocol.JSONRPCMessage

// NewServer returns a server that is ready to serve. It is an error if the queue or the
// enforcer is missing.
func NewServer(cfg Config) (*Server, error) {
	switch {
	case cfg.Queue == nil:
		return nil, errors.New("mcp: config: queue is missing; give the spool of requests")
	case cfg.Enforcer == nil:
		return nil, errors.New("mcp: config: enforcer is missing; give egress's introspection")
	case cfg.MaxLine < 0 || cfg.MaxConns < 0 || cfg.MaxCalls < 0 || cfg.WriteTimeout < 0:
		return nil, errors.New("mcp: config: a bound is negative; use 0 for the default")
	}
	s := &Server{
		queue:        cfg.Queue,
		enforcer:     cfg.Enforcer,
		log:          cfg.Logger,
		maxLine:      orDefault(cfg.MaxLine, MaxLine),
		maxConns:     orDefault(cfg.MaxConns, MaxConns),
		maxCalls:     orDefault(cfg.MaxCalls, MaxCalls),
		writeTimeout: orDefault(cfg.WriteTimeout, WriteTimeout),
		pending:      budget{left: MaxPendingBytes},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.info = protocol.Implementation{Name: orDefault(cfg.Name, "bottle"), Version: orDefault(cfg.Version, "0")}
	hooks := &mcpserver.Hooks{}
	hooks.AddAfterInitialize(func(_ context.Context, _ any, _ *protocol.InitializeRequest, r *protocol.InitializeResult) {
		r.Capabilities.Extensions = nil // none of them is in force before 2026-07-28
	})
	s.lib = mcpserver.NewMCPServer(s.info.Name, s.info.Version,
		mcpserver.WithExtensions(map[string]any{tasksExtension: struct{}{}}),
		mcpserver.WithHooks(hooks),
		mcpserver.WithToolCapabilities(true),
		mcpserver.WithResourceCapabilities(false, true),
		mcpserver.WithInstructions(instructions),
	)
	if err := s.addTools(); err != nil {
		return nil, fmt.Errorf("mcp: %w", err)
	}
	s.addResources()
	s.dispatch = s.withTasks(s.lib.HandleMessage)
	return s, nil
}

// HandleMessage answers one JSON-RPC message outside of any connection; the answer to a
// notification is nil. It is for tests and measurements: no bound of the transport applies.
func (s *Server) HandleMessage(ctx context.Context, message json.RawMessage) protocol.JSONRPCMessage {
	return s.dispatch(ctx, message)
}

// Serve accepts clients on l until ctx is done, and then closes l and every connection,
// cancels the calls in flight, waits for them and returns nil. A peer that is neither of this
// process's user nor shares a group with it is turned away; l must therefore be a unix
// socket. Any other return is the listener's error.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()

	slots := make(chan struct{}, s.maxConns)
	var pause time.Duration
	for {
		nc, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if !transient(err) {
				return fmt.Errorf("mcp: accept: %w", err)
			}
			// Out of descriptors or memory: what is open goes on, so wait for some of it to end.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.log.Warn("mcp: accept failed; retrying", "err", err, "pause", pause)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pause):
			}
			continue
		}
		pause = 0
		select {
		case slots <- struct{}{}:
		default:
			s.turnAway(nc, fmt.Sprintf("too many connections: this bottle serves %d at once; close one, then connect again", s.maxConns))
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			peer, err := admit(nc)
			if err != nil {
				s.log.Warn("mcp: peer refused", "err", err)
				s.turnAway(nc, "this socket belongs to another user")
				return
			}
			s.ServeConn(ctx, nc, slog.Group("peer", "pid", peer.pid, "uid", peer.uid, "gid", peer.gid))
		})
	}
}

// turnAway says why in one line, which fits any socket's buffer, and hangs up.
func (s *Server) turnAway(nc net.Conn, why string) {
	defer nc.Close()
	_ = nc.SetWriteDeadline(time.Now().Add(time.Second))
	if b, err := json.Marshal(rpcError(nil, codeUnavailable, why)); err == nil {
		_, _ = nc.Write(append(b, '\n'))
	}
}

func transient(err error) bool {
	for _, e := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// A budget bounds what all connections together hold of messages in flight.
type budget struct {
	mu   sync.Mutex
	left int
}

func (b *budget) take(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > b.left {
		return false
	}
	b.left -= n
	return true
}

func (b *budget) give(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left += n
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}
