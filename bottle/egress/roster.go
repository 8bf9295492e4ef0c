package egress

import "sync"

// A roster counts what is to be waited for, and closes the door once that is over: net/http
// starts the handlers of an HTTP/2 connection on goroutines of their own, which may get to
// run only after the connection, and with it the server, has ended.
type roster struct {
	wg sync.WaitGroup

	mu     sync.Mutex
	n      int
	closed bool
}

// enter counts one more. False means that the wait is over and nothing may be done any more.
func (r *roster) enter() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed && r.n == 0 {
		return false
	}
	r.n++
	r.wg.Add(1)
	return true
}

func (r *roster) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n--
	r.wg.Done()
}

// wait returns once all have left. Those who are in may bring others in until then.
func (r *roster) wait() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.wg.Wait()
}
