package main_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"bottle/bottle"
)

// BenchmarkReplacement measures an edit of pipelock.yaml that takes a new pipelock: from the call
// to its confirmation, with the real keeper and daemons, while a client makes a new connection, with a
// request on it, every 5 ms. Reported are the median and the 99th percentile, and the
// slowest of those connections, from its first byte to the end of the answer, in
// milliseconds (aims: 120 and 50; a plain restart of pipelock is 55 ms in which connections are lost,
// see make soak).
func BenchmarkReplacement(b *testing.B) {
	d := newDecisionBench(b)
	base, err := d.apply.EditText(bottle.PipelockFile)
	if err != nil {
		b.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []time.Duration
	wg.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			wg.Go(func() {
				took, err := d.fresh(b)
				if err != nil {
					b.Errorf("a new connection: %v", err)
				}
				mu.Lock()
				defer mu.Unlock()
				conns = append(conns, took)
			})
		}
	})
	var total []time.Duration
	for i := range b.N {
		body := bytes.Clone(base)
		if i%2 == 0 {
			body = append(body, "trusted_domains: [a.example.com]\n"...)
		}
		plan, err := d.apply.PreviewEdit(b.Context(), bottle.PipelockFile, body)
		if err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		if _, err := d.apply.Edit(b.Context(), bottle.PipelockFile, body, bottle.Actor{Name: "bench"}, plan.Digest); err != nil {
			b.Fatal(err)
		}
		total = append(total, time.Since(began))
	}
	close(stop)
	wg.Wait()
	report(b, "", total)
	slices.Sort(conns)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	b.ReportMetric(ms(conns[len(conns)/2]), "conn-p50-ms")
	b.ReportMetric(ms(conns[len(conns)-1]), "conn-slowest-ms")
}

// fresh makes a new connection and a request on it.
func (d *decisionBench) fresh(b *testing.B) (time.Duration, error) {
	t, ok := d.client.Transport.(*http.Transport)
	if !ok {
		return 0, fmt.Errorf("the client's transport is a %T", d.client.Transport)
	}
	t = t.Clone()
	t.DisableKeepAlives = true
	t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	began := time.Now()
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "https://open.example.com:"+d.portText+"/", nil)
	if err != nil {
		return 0, err
	}
	res, err := t.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", res.StatusCode)
	}
	return time.Since(began), err
}
