package mcp

import (
	"crypto/rand"
	"sync/atomic"

	protocol "github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"
)

// noticeQueue is how many broadcast notifications wait for a slow client before the library
// drops further ones; all of them say "the list changed", so none is missed for long.
const noticeQueue = 16

// A session is one connection, or one open subscriptions/listen on it, as the library knows
// it. The listens have sessions of their own because the library keeps one filter for each
// session, while a client may have several listens open, each with its own filter and tag.
type session struct {
	id      string
	notices chan protocol.JSONRPCNotification
	ready   atomic.Bool
	// legacy is set by initialize. Only clients of that era get broadcasts unasked.
	legacy  atomic.Bool
	version atomic.Value // string
	filter  atomic.Pointer[protocol.SubscriptionFilter]
}

var (
	_ mcpserver.ClientSession                 = (*session)(nil)
	_ mcpserver.SessionWithSubscriptionFilter = (*session)(nil)
	_ mcpserver.SessionWithProtocolVersion    = (*session)(nil)
)

// newSession returns a session with an ID of 128 bits of randomness, so that no client can
// name another's.
func newSession() *session {
	return &session{id: rand.Text(), notices: make(chan protocol.JSONRPCNotification, noticeQueue)}
}

func (s *session) SessionID() string { return s.id }
func (s *session) Initialize()       { s.ready.Store(true) }
func (s *session) Initialized() bool { return s.ready.Load() }

func (s *session) NotificationChannel() chan<- protocol.JSONRPCNotification { return s.notices }

// SetProtocolVersion is called by the library's initialize alone.
func (s *session) SetProtocolVersion(v string) {
	s.version.Store(v)
	s.legacy.Store(true)
}

func (s *session) ProtocolVersion() string {
	v, _ := s.version.Load().(string)
	return v
}

func (s *session) SetSubscriptionFilter(f protocol.SubscriptionFilter) { s.filter.Store(&f) }

// SubscriptionFilter reports the filter as active for all but clients of the older era: from
// 2026-07-28 on a notification must have been asked for (SEP-2575), so none is the default.
func (s *session) SubscriptionFilter() (protocol.SubscriptionFilter, bool) {
	if f := s.filter.Load(); f != nil {
		return *f, true
	}
	return protocol.SubscriptionFilter{}, !s.legacy.Load()
}
