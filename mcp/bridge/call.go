package bridge

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

const (
	methodInitialize = "initialize"
	methodDiscover   = "server/discover"
	methodListen     = "subscriptions/listen"
	methodCall       = "tools/call"
	methodTasksGet   = "tasks/get"

	toolRequest = "request_allowlist_change"
	keyMeta     = "bottle/key" // by which the queue knows a request that is sent again
)

// harmless are the methods that may be sent twice: they read, or set what is set already.
var harmless = []string{
	methodInitialize, methodDiscover, methodListen, "ping", "tools/list", "resources/list", "resources/templates/list",
	"resources/read", "resources/subscribe", "resources/unsubscribe", "prompts/list", "prompts/get", "completion/complete",
	"logging/setLevel", methodTasksGet, "tasks/update", "tasks/cancel", "tasks/result", "tasks/list",
}

// harmlessTools are the tools that may be called twice; [toolRequest] is, for it carries a key.
// A wait that is sent again begins anew, so it may take its timeout_seconds once more.
var harmlessTools = []string{
	toolRequest, "wait_for_decision", "get_request", "list_requests", "list_routes", "list_denials", "check_access", "cancel_request",
}

// A call is a request of the client's that was not answered yet. Bridge.mu guards it.
type call struct {
	number uint64 // in the order of arrival
	key    string
	id     json.RawMessage
	method string
	tool   string
	modern bool // of the era of 2026-07-28
	token  json.RawMessage
	line   []byte // as it is sent

	link  *link     // on which it was sent; nil: it is held
	until time.Time // for which it is held; zero: until there is a bundle
	sends int

	acked      bool    // a listen's acknowledgement was passed on
	base, last float64 // progress: of the sends before this one, and told last
}

func newCall(key string, env envelope, line []byte) *call {
	k := &call{key: key, id: env.ID, method: env.Method, line: line, token: env.Params.Meta.ProgressToken, modern: env.Params.Meta.Version != ""}
	if k.method == methodCall {
		if k.tool = env.Params.Name; k.tool == toolRequest {
			k.line = withKey(line)
		}
	}
	return k
}

// withKey gives a call of [toolRequest] its key, unless the client did so.
func withKey(line []byte) []byte {
	return edit(line, func(m object) {
		m["params"] = edit(m["params"], func(params object) {
			meta, ok := params["_meta"]
			if !ok {
				meta = []byte("{}")
			}
			params["_meta"] = edit(meta, func(meta object) {
				if _, ok := meta[keyMeta]; !ok {
					meta[keyMeta] = json.RawMessage(`"` + rand.Text() + `"`)
				}
			})
		})
	})
}

// inOrder returns the calls in flight as they came. It is called with mu held.
func (b *Bridge) inOrder() []*call {
	return slices.SortedFunc(maps.Values(b.calls), func(x, y *call) int { return cmp.Compare(x.number, y.number) })
}

func (k *call) listen() bool { return k.method == methodListen }

func (k *call) sentOn(to *link) {
	k.link, k.until = to, time.Time{}
	k.sends++
	k.base = k.last
}

// lost is called when the link that the call was sent on is gone. It returns the answer, or
// nil if the call is to be sent again.
func (k *call) lost() []byte {
	k.link = nil
	switch {
	case k.listen():
		return nil
	case k.method == methodCall && !slices.Contains(harmlessTools, k.tool):
		return k.toolError(fmt.Sprintf("the connection to the bottle was lost while %s ran, so it may or may not have been done; look at what there is (list_requests, list_routes), then call again if that is needed", cmp.Or(k.tool, "the call")))
	case k.method != methodCall && !slices.Contains(harmless, k.method):
		return rpcError(k.id, codeUnavailable, fmt.Sprintf("the connection to the bottle was lost while %s was in hand; send it again", k.method))
	case k.sends >= maxSends:
		return rpcError(k.id, codeUnavailable, fmt.Sprintf("the bottle went away each of the %d times that this was sent; don't send it again, but tell the operator", k.sends))
	}
	return nil
}

// toolError answers with a result that the model sees as the tool's own failure.
func (k *call) toolError(text string) []byte {
	type content struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	type result struct {
		Content    []content `json:"content"`
		IsError    bool      `json:"isError"`
		ResultType string    `json:"resultType,omitempty"`
	}
	r := result{Content: []content{{"text", text}}, IsError: true}
	if k.modern {
		r.ResultType = "complete"
	}
	return marshal(struct {
		JSONRPC string          `json:"jsonrpc"`
		ID      json.RawMessage `json:"id"`
		Result  result          `json:"result"`
	}{version, k.id, r})
}

// fromBundle takes one message of the bundle's.
func (b *Bridge) fromBundle(key string, env envelope, line []byte) {
	switch {
	case env.Method == "":
		if !b.answered(key, env) {
			return
		}
	case env.ID != nil: // a request, for the client to answer
	case env.Method == "notifications/progress":
		if line = b.progress(env, line); line == nil {
			return
		}
	case env.Method == "notifications/subscriptions/acknowledged":
		if !b.acknowledged(env) {
			return
		}
	}
	b.emit(line)
}

// answered reports whether the client waits for the answer.
func (b *Bridge) answered(key string, env envelope) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.calls[key]
	if k == nil || k.link == nil {
		return false
	}
	delete(b.calls, key)
	b.checkEmpty()
	if k.method == methodInitialize && env.Error == nil {
		b.session = k.line
	}
	return true
}

// progress returns the notification as the client may see it: only of a call in flight, and
// growing even over a second send, as the protocol demands. It returns nil if there is none.
func (b *Bridge) progress(env envelope, line []byte) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	token, _ := idKey(env.Params.ProgressToken)
	for _, k := range b.calls {
		if own, ok := idKey(k.token); !ok || own != token || k.link == nil {
			continue
		}
		done := env.Params.Progress + k.base
		if k.sends > 1 && done <= k.last {
			return nil
		}
		if k.last = done; k.base == 0 {
			return line
		}
		return edit(line, func(m object) {
			m["params"] = edit(m["params"], func(params object) {
				params["progress"] = marshal(done)
				if env.Params.Total > 0 {
					params["total"] = marshal(env.Params.Total + k.base)
				}
			})
		})
	}
	return nil
}

// acknowledged reports whether the client has not been told yet that its listen is open.
func (b *Bridge) acknowledged(env envelope) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	key, _ := idKey(env.Params.Meta.Subscription)
	k := b.calls[key]
	if k == nil || k.acked {
		return false
	}
	k.acked = true
	return true
}

// hold keeps the call until there is a bundle, or not for long. It is called with mu held.
func (b *Bridge) hold(k *call) {
	if k.listen() { // it is there to wait
		return
	}
	now := time.Now()
	wait := b.wait
	switch k.method {
	case methodTasksGet:
		wait = max(wait, DefaultWait)
	case methodInitialize, methodDiscover:
		wait = min(wait, helloWait)
	}
	if k.method != methodTasksGet && now.Sub(b.down) >= wait {
		wait = min(wait, lateWait)
	}
	k.until = now.Add(wait)
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// expireHeld answers the calls that have waited long enough.
func (b *Bridge) expireHeld(ctx context.Context) {
	for {
		answers, next := b.expired(time.Now())
		for _, a := range answers {
			b.emit(a)
		}
		var timer <-chan time.Time
		if !next.IsZero() {
			timer = time.After(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return
		case <-b.wake:
		case <-timer:
		}
	}
}

// expired takes the calls that waited till now out of the table, and returns the answers to
// them and the time when it is to be called again.
func (b *Bridge) expired(now time.Time) (answers [][]byte, next time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range b.inOrder() {
		switch {
		case k.until.IsZero():
		case k.until.After(now):
			if next.IsZero() || k.until.Before(next) {
				next = k.until
			}
		default:
			delete(b.calls, k.key)
			answers = append(answers, rpcError(k.id, codeUnavailable,
				fmt.Sprintf("bottle is not running: %s; call again later, or ask the operator to start it", b.why)))
		}
	}
	b.checkEmpty()
	return answers, next
}
