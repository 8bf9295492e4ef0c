package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	protocol "github.com/mark3labs/mcp-go/mcp"
)

// A conn is one client. Its reader starts a goroutine for each call; its writer alone writes.
type conn struct {
	srv     *Server
	nc      net.Conn
	log     *slog.Logger
	session *session
	hangUp  context.CancelFunc
	out     chan outgoing // unbuffered: what was sent is being written
	running sync.WaitGroup

	mu     sync.Mutex
	active int              // calls that are not answered, or whose goroutine still runs though they were cancelled
	calls  map[string]*call // by idKey: those that were neither answered nor cancelled
}

// A call is a request in flight.
type call struct {
	key    string
	id     json.RawMessage
	method string
	size   int
	cancel context.CancelFunc
	given  bool // its place among the calls in flight, back
}

// ServeConn serves one client until it hangs up or ctx is done, and then cancels its calls,
// waits for them and closes nc. The caller vouches for the peer; attrs describe it in the log.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn, attrs ...slog.Attr) {
	ctx, cancel := context.WithCancel(ctx)
	c := &conn{
		srv: s, nc: nc, session: newSession(), hangUp: cancel,
		out: make(chan outgoing), calls: map[string]*call{},
		log: slog.New(s.log.Handler().WithAttrs(attrs)),
	}
	defer nc.Close()
	var writer sync.WaitGroup
	defer writer.Wait()
	defer c.running.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	defer stop()

	if err := s.lib.RegisterSession(ctx, c.session); err != nil {
		c.log.Error("mcp: session", "err", err)
		return
	}
	defer s.lib.UnregisterSession(context.WithoutCancel(ctx), c.session.id)
	ctx = s.lib.WithContext(ctx, c.session)
	writer.Go(func() { c.write(ctx) })

	c.log.Info("mcp: client connected")
	err := c.read(ctx)
	if ctx.Err() == nil && !errors.Is(err, io.EOF) {
		c.log.Info("mcp: client dropped", "err", err)
		return
	}
	c.log.Info("mcp: client gone")
}

func (c *conn) read(ctx context.Context) error {
	lines := newLineReader(c.nc, c.srv.maxLine, LineTimeout)
	for {
		line, err := lines.next()
		if errors.Is(err, errLongLine) {
			c.send(ctx, outgoing{msg: rpcError(nil, protocol.INVALID_REQUEST,
				fmt.Sprintf("message longer than %d bytes; send less in one request", c.srv.maxLine))})
			continue
		}
		if err != nil {
			return err
		}
		c.receive(ctx, line)
	}
}

// receive takes one message: a notification is dealt with at once, so that a cancellation
// overtakes the calls before it; a request gets a goroutine.
func (c *conn) receive(ctx context.Context, line []byte) {
	var env envelope
	if err := json.Unmarshal(line, &env); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			c.send(ctx, outgoing{msg: rpcError(nil, protocol.PARSE_ERROR, "not JSON: "+err.Error())})
		} else {
			c.send(ctx, outgoing{msg: rpcError(nil, protocol.INVALID_REQUEST, "not a JSON-RPC message (batches are not supported): send one object on one line")})
		}
		return
	}
	key, valid := idKey(env.ID)
	switch {
	case env.Method == nil && valid:
		return // a response: this server asks nothing, so it is to nothing
	case env.JSONRPC != protocol.JSONRPC_VERSION || env.Method == nil || env.ID != nil && !valid:
		if !valid {
			env.ID = nil
		}
		c.send(ctx, outgoing{msg: rpcError(env.ID, protocol.INVALID_REQUEST, `not a JSON-RPC 2.0 message: it needs "jsonrpc": "2.0", a method, and an id that is a string or a number`)})
	case env.ID == nil && *env.Method == string(protocol.MethodNotificationCancelled):
		c.cancelled(env.Params)
	case env.ID == nil:
		_ = c.handle(ctx, nil, line)
	default:
		c.start(ctx, &call{key: key, id: env.ID, method: *env.Method, size: len(line)}, line)
	}
}

// start admits a call within the bounds, and runs it.
func (c *conn) start(ctx context.Context, k *call, line []byte) {
	callCtx, cancel := context.WithCancel(ctx)
	k.cancel = cancel
	why := ""
	c.mu.Lock()
	switch {
	case c.calls[k.key] != nil:
		why = "a call with this id is in flight; give each call its own"
	case c.active >= c.srv.maxCalls:
		why = fmt.Sprintf("%d calls are in flight on this connection; wait for one to end", c.srv.maxCalls)
	case !c.srv.pending.take(k.size):
		why = "the server has too much in hand; try again in a few seconds"
	default:
		c.calls[k.key] = k
		c.active++
	}
	c.mu.Unlock()
	if why != "" {
		cancel()
		c.send(ctx, outgoing{msg: rpcError(k.id, codeUnavailable, why)})
		return
	}
	c.running.Go(func() {
		defer c.end(k)
		c.run(callCtx, k, line)
	})
}

func (c *conn) end(k *call) {
	k.cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.give(k)
}

// give makes room for another call; the caller holds mu. An answered call gives it up before
// its answer goes out, as a client may send its next call on reading that; a cancelled one
// when its goroutine has ended, as that is what is bounded.
func (c *conn) give(k *call) {
	if k.given {
		return
	}
	k.given = true
	c.active--
	c.srv.pending.give(k.size)
}

// settle takes the call out of the table just before its answer is written, and reports
// whether it may be: a cancelled call gets no answer (and its id may be used again).
func (c *conn) settle(k *call) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls[k.key] != k {
		return false
	}
	delete(c.calls, k.key)
	c.give(k)
	return true
}

// wanted reports whether the client still waits for the call.
func (c *conn) wanted(k *call) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[k.key] == k
}

// cancelled handles notifications/cancelled. The library's own handling is not used: it
// takes the ids 3 and "3" for one.
func (c *conn) cancelled(params json.RawMessage) {
	var p struct {
		RequestID json.RawMessage `json:"requestId"`
	}
	if json.Unmarshal(params, &p) != nil {
		return
	}
	key, ok := idKey(p.RequestID)
	if !ok {
		return
	}
	c.mu.Lock()
	k := c.calls[key]
	// initialize must not be cancelled (2025-11-25, basic/utilities/cancellation).
	if k != nil && k.method != string(protocol.MethodInitialize) {
		delete(c.calls, key)
		k.cancel()
	}
	c.mu.Unlock()
}

// run answers the call. An answer that the writer takes is settled by the writer, which may
// come to it only after run has returned.
func (c *conn) run(ctx context.Context, k *call, line []byte) {
	who := &caller{conn: c, call: k}
	ctx = context.WithValue(ctx, callerKey{}, who)
	var resp protocol.JSONRPCMessage
	if k.method == string(protocol.MethodSubscriptionsListen) {
		resp = c.listen(ctx, k, line)
	} else {
		resp = c.handle(ctx, k.id, line)
	}
	if e, ok := resp.(protocol.JSONRPCError); ok && who.errorCode != 0 {
		e.Error.Code = who.errorCode
		resp = e
	}
	if resp == nil || !c.send(ctx, outgoing{call: k, final: true, msg: withID(resp, k.id)}) {
		c.settle(k)
	}
}

// handle has the message answered; a panic becomes an internal error, which doesn't tell the
// client what panicked.
func (c *conn) handle(ctx context.Context, id json.RawMessage, line []byte) (resp protocol.JSONRPCMessage) {
	defer func() {
		if r := recover(); r != nil {
			c.log.Error("mcp: panic", "panic", r, "stack", string(debug.Stack()))
			resp = nil
			if id != nil {
				resp = rpcError(id, protocol.INTERNAL_ERROR, "internal error; the bottle's log has the details")
			}
		}
	}()
	return c.srv.dispatch(ctx, line)
}

// listen serves one subscriptions/listen in a session of its own, and tags all that it
// delivers with the listen's id.
func (c *conn) listen(ctx context.Context, k *call, line []byte) protocol.JSONRPCMessage {
	sub := newSession()
	if err := c.srv.lib.RegisterSession(ctx, sub); err != nil {
		return rpcError(k.id, protocol.INTERNAL_ERROR, "can't open the subscription; try again")
	}
	defer c.srv.lib.UnregisterSession(context.WithoutCancel(ctx), sub.id)
	done := make(chan struct{})
	var forward sync.WaitGroup
	forward.Go(func() {
		for {
			select {
			case n := <-sub.notices:
				c.sendTagged(ctx, k, n)
			case <-done:
				for len(sub.notices) > 0 { // what came before the answer goes before it
					c.sendTagged(ctx, k, <-sub.notices)
				}
				return
			}
		}
	})
	defer forward.Wait()
	defer close(done)
	return c.handle(c.srv.lib.WithContext(ctx, sub), k.id, line)
}

func (c *conn) sendTagged(ctx context.Context, k *call, n protocol.JSONRPCNotification) {
	meta := map[string]any{}
	for key, v := range n.Params.Meta {
		meta[key] = v
	}
	meta[protocol.MetaKeySubscriptionID] = k.id
	n.Params.Meta = meta
	c.send(ctx, outgoing{call: k, msg: n})
}

// An outgoing is a message on its way to the writer.
type outgoing struct {
	call  *call // nil: belongs to no call
	final bool  // it is the call's answer
	msg   any
}

// send hands a message to the writer; it gives up when the connection ends or the call that
// it belongs to was cancelled. It reports whether the writer has it. An answer that the
// writer has is settled there, and only there: to forget its call here too, before the writer
// came to it, would make it look cancelled.
func (c *conn) send(ctx context.Context, o outgoing) bool {
	select {
	case c.out <- o:
		return true
	case <-ctx.Done():
		return false
	}
}

// write is the only writer. Broadcasts that were queued before an answer go out before it,
// as they may be what the answer refers to.
func (c *conn) write(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case n := <-c.session.notices:
			c.put(ctx, n)
		case o := <-c.out:
			for len(c.session.notices) > 0 {
				c.put(ctx, <-c.session.notices)
			}
			switch {
			case o.call == nil:
			case o.final && !c.settle(o.call), !o.final && !c.wanted(o.call):
				continue
			}
			c.put(ctx, o.msg)
		}
	}
}

// put writes one line. A client that doesn't take it in time is hung up on.
func (c *conn) put(ctx context.Context, msg any) {
	b, err := json.Marshal(msg)
	if err != nil {
		c.log.Error("mcp: message can't be encoded", "err", err)
		c.hangUp()
		return
	}
	_ = c.nc.SetWriteDeadline(time.Now().Add(c.srv.writeTimeout))
	if _, err := c.nc.Write(append(b, '\n')); err != nil && ctx.Err() == nil {
		c.log.Info("mcp: client takes no messages; hanging up", "err", err)
		c.hangUp()
	}
}

type callerKey struct{}

// A caller is the call that a tool's handler works for.
type caller struct {
	conn *conn
	call *call
	// errorCode is set by a resource's handler: the library turns each of its errors into an
	// internal one, while the protocol has a code for a resource that isn't there.
	errorCode int
}

// progress tells the waiting client how far its call is, if it gave a token for that.
// The library's own way (SendNotificationToClient) is not used: it knows no call, so what it
// queued would still go out after a cancellation.
func progress(ctx context.Context, token protocol.ProgressToken, done, total float64, message string) {
	c, ok := ctx.Value(callerKey{}).(*caller)
	if !ok || token == nil {
		return
	}
	c.conn.send(ctx, outgoing{call: c.call, msg: protocol.JSONRPCNotification{
		JSONRPC: protocol.JSONRPC_VERSION,
		Notification: protocol.Notification{
			Method: string(protocol.MethodNotificationProgress),
			Params: protocol.NotificationParams{AdditionalFields: map[string]any{
				"progressToken": token, "progress": done, "total": total, "message": message,
			}},
		},
	}})
}
