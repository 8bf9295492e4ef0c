package main_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"bottle/apply"
	"bottle/bottle"
	"bottle/bottle/audit"
	"bottle/bottle/launch"
	"bottle/bottle/pipelock"
	"bottle/bottle/queue"
)

// BenchmarkDecision measures what an agent waits for after the operator's yes: from the call
// that approves to the end of the first request that passes, with the real keeper and daemons
// and an agent that asks again every 4 ms (more often, it takes a core from what is measured).
// Reported are the median and the 99th percentile in milliseconds (aims: 10 with routes.yaml
// alone, 15 with both files, 50 at p99), and next to them the part that is apply's.
func BenchmarkDecision(b *testing.B) {
	for _, bc := range []struct {
		name string
		ask  func(i int) bottle.Entry
		url  func(i int) string
	}{
		{
			"routes-only", // the host is known to pipelock; a path of it is new
			func(i int) bottle.Entry {
				return bottle.Entry{Host: "open.example.com", Matches: []bottle.Match{{Path: &bottle.PathMatch{Type: bottle.Exact, Value: fmt.Sprintf("/n/%d", i)}}}}
			},
			func(i int) string { return fmt.Sprintf("https://open.example.com:%%s/n/%d", i) },
		},
		{
			"both-files",
			func(i int) bottle.Entry {
				return bottle.Entry{Host: bottle.Host(fmt.Sprintf("h%d.example.com", i%500))}
			},
			func(i int) string { return fmt.Sprintf("https://h%d.example.com:%%s/", i%500) },
		},
	} {
		b.Run(bc.name, func(b *testing.B) {
			bench := newDecisionBench(b)
			var total, inForce []time.Duration
			for i := range b.N {
				b.StopTimer()
				e := bc.ask(i)
				e.Ports = []int{bench.port}
				rec := bench.ask(b, e)
				target := fmt.Sprintf(bc.url(i), bench.portText)
				if bench.get(b, target) != http.StatusForbidden {
					b.Fatalf("%s passes before it was granted", target)
				}
				in, err := apply.FromRecord(rec, bottle.Duration{Kind: bottle.Session})
				if err != nil {
					b.Fatal(err)
				}
				plan, err := bench.apply.Preview(b.Context(), in)
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				began := time.Now()
				passed := bench.poll(b, target, began)
				out, err := bench.apply.Approve(b.Context(), rec, in, bottle.Actor{Name: "bench"}, plan.Digest, "")
				if err != nil {
					b.Fatal(err)
				}
				inForce = append(inForce, out.Took)
				total = append(total, <-passed)
				b.StopTimer()
				if _, err := bench.apply.Revoke(b.Context(), rec.Short, bottle.Actor{Name: "bench"}); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			report(b, "", total)
			report(b, "apply-", inForce)
		})
	}
}

// poll asks again and again, as a busy agent would, and sends how long it took until a
// request passed.
func (d *decisionBench) poll(b *testing.B, target string, began time.Time) <-chan time.Duration {
	passed := make(chan time.Duration, 1)
	go func() {
		tick := time.NewTicker(4 * time.Millisecond)
		defer tick.Stop()
		for d.get(b, target) != http.StatusOK {
			<-tick.C
		}
		passed <- time.Since(began)
	}()
	return passed
}

func report(b *testing.B, prefix string, d []time.Duration) {
	slices.Sort(d)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	b.ReportMetric(ms(d[len(d)/2]), prefix+"p50-ms")
	b.ReportMetric(ms(d[min(len(d)-1, len(d)*99/100)]), prefix+"p99-ms")
}

type decisionBench struct {
	dir      *bottle.Dir
	desk     *queue.Desk
	spool    *queue.Spool
	apply    *apply.Applier
	client   *http.Client
	port     int
	portText string
}

func newDecisionBench(b *testing.B) *decisionBench {
	b.Helper()
	up := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }))
	b.Cleanup(up.Close)
	at, err := url.Parse(up.URL)
	if err != nil {
		b.Fatal(err)
	}
	root, err := os.MkdirTemp("/tmp", "b") //nolint:usetesting // b.TempDir is too long for a socket's path
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(root) })
	ca := filepath.Join(root, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: up.Certificate().Raw}), 0o600); err != nil {
		b.Fatal(err)
	}
	resolve := "open.example.com: 127.0.0.1"
	for i := range 500 {
		resolve += fmt.Sprintf(", h%d.example.com: 127.0.0.1", i)
	}
	text := fmt.Sprintf("name: bench\nagent: {workspace: %s}\napprovals: {max_pending: 1000}\negress:\n  routes:\n    - {host: open.example.com, ports: [%s], matches: [{path: {type: Exact, value: /}}]}\n  resolve: {%s}\n  allow_cidrs: [127.0.0.0/8]\n  upstream_ca: %s\n",
		root, at.Port(), resolve, ca)
	file := filepath.Join(root, "bench.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	run := func(args ...string) {
		cmd := exec.CommandContext(context.WithoutCancel(b.Context()), filepath.Join(programs, "bottle"), append(args, "--state-dir", root)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("bottle %v: %v\n%s", args, err, out)
		}
	}
	run("start", "-f", file, "--detach")
	b.Cleanup(func() { run("stop", "bench") })
	d := &decisionBench{portText: at.Port()}
	if _, err := fmt.Sscan(at.Port(), &d.port); err != nil {
		b.Fatal(err)
	}
	d.open(b, root)
	return d
}

// open assembles what the operator's command assembles, in this process.
func (d *decisionBench) open(b *testing.B, root string) {
	b.Helper()
	must := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	var err error
	d.dir, err = bottle.NewDir(filepath.Join(root, "bench"))
	must(err)
	log, err := audit.Open(audit.Config{Path: d.dir.Audit(), HeadPath: d.dir.AuditHead(), Bottle: "bench"})
	must(err)
	b.Cleanup(func() { _ = log.Close() })
	trail := queue.AuditTrail{Log: log}
	d.desk, err = queue.NewDesk(queue.DeskConfig{Dir: d.dir, Trail: trail, MaxPending: 1000})
	must(err)
	d.spool, err = queue.NewSpool(queue.SpoolConfig{
		Requests: d.dir.Requests(), Cancels: d.dir.Cancels(), Decisions: d.dir.Decisions(), MaxPending: 1000, PerMinute: 100_000,
	})
	must(err)
	b.Cleanup(func() { _ = d.spool.Close() })
	local, err := launch.NewLocal(launch.LocalConfig{Dir: d.dir, Logger: slog.New(slog.DiscardHandler)})
	must(err)
	d.apply, err = apply.New(apply.Config{Dir: d.dir, Records: d.desk, Trail: trail, Signaler: local, Pipelock: pipelock.Codec{}})
	must(err)
	var cfg bottle.BundleConfig
	must(bottle.ReadJSON(d.dir.BundleConfig(), 0, &cfg))
	roots := x509.NewCertPool()
	pemText, err := os.ReadFile(d.dir.CACert())
	must(err)
	roots.AppendCertsFromPEM(pemText)
	d.client = &http.Client{Transport: &http.Transport{
		Proxy:           http.ProxyURL(&url.URL{Scheme: "http", User: bottle.ProxyUserinfo(cfg.ProxySecret), Host: cfg.Egress}),
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
	}}
	b.Cleanup(d.client.CloseIdleConnections)
}

// ask puts a request into the queue, as supervise does, and waits until the keeper took it in.
func (d *decisionBench) ask(b *testing.B, e bottle.Entry) *bottle.Record {
	b.Helper()
	ticket, err := d.spool.Submit(b.Context(), bottle.Ask{Add: []bottle.Entry{e}, Reason: "benchmark"}, "")
	if err != nil {
		b.Fatal(err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		rec, err := d.desk.Find(b.Context(), ticket.Request.ID)
		if err == nil {
			return rec
		}
		if !errors.Is(err, bottle.ErrNotFound) {
			b.Fatal(err)
		}
		<-tick.C
	}
}

func (d *decisionBench) get(b *testing.B, target string) int {
	req, err := http.NewRequestWithContext(context.WithoutCancel(b.Context()), http.MethodGet, target, nil)
	if err != nil {
		b.Error(err)
		return http.StatusOK
	}
	resp, err := d.client.Do(req)
	if err != nil {
		b.Error(err)
		return http.StatusOK
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}
