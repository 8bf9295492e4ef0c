package main_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"

	"bottle/apply"
	"bottle/bottle"
	"bottle/bottle/audit"
	"bottle/bottle/launch"
	"bottle/bottle/pipelock"
	"bottle/bottle/queue"
)

// BenchmarkDecisionDocker measures the time from a decision to its confirmation in force, and
// until the agent has its answer, on the docker backend, with the real keeper and bundle: for routes.yaml alone, for both files, and for an
// edit that takes a new pipelock; and, for comparison in the same run, docker restart of
// the bundle's container, until its proxy accepts a connection of the agent's again. Reported are the
// median and the 99th percentile in milliseconds (aims for the median: 50, 90 and 200).
func BenchmarkDecisionDocker(b *testing.B) {
	d := newDock(b)
	if d == nil {
		return
	}
	p := pot(b, d, "bench", "approvals: {max_pending: 1000}") // as decisionBench has it
	p.bottle("start", "-f", p.manifest, "--detach")
	bench := newDockerBench(b, p)
	for _, bc := range []struct {
		name string
		ask  func(i int) bottle.Entry
	}{
		{"routes-only", func(i int) bottle.Entry {
			// Pipelock allows the host and the port already.
			path := &bottle.PathMatch{Type: bottle.Exact, Value: fmt.Sprintf("/n/%d", i)}
			return bottle.Entry{Host: "open.example.com", Ports: []int{int(p.site.at.Port())}, Matches: []bottle.Match{{Path: path}}}
		}},
		{"both-files", func(i int) bottle.Entry {
			return bottle.Entry{Host: bottle.Host(fmt.Sprintf("h%d.example.com", i))}
		}},
	} {
		b.Run(bc.name, func(b *testing.B) {
			var took, all []time.Duration
			for i := range b.N {
				b.StopTimer()
				rec := bench.ask(b, bc.ask(i))
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
				out, err := bench.apply.Approve(b.Context(), rec, in, bottle.Actor{Name: "bench"}, plan.Digest, "")
				if err != nil {
					b.Fatal(err)
				}
				took, all = append(took, out.Took), append(all, time.Since(began))
				b.StopTimer()
				if _, err := bench.apply.Revoke(b.Context(), rec.Short, bottle.Actor{Name: "bench"}); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			report(b, "", took)
			report(b, "answered-", all)
		})
	}
	base, err := bench.apply.EditText(bottle.PipelockFile)
	if err != nil {
		b.Fatal(err)
	}
	edits := 0
	b.Run("pipelock-replaced", func(b *testing.B) {
		var took, all []time.Duration
		for range b.N {
			edits++
			body := fmt.Appendf(bytes.Clone(base), "trusted_domains: [n%d.example.com]\n", edits)
			plan, err := bench.apply.PreviewEdit(b.Context(), bottle.PipelockFile, body)
			if err != nil {
				b.Fatal(err)
			}
			began := time.Now()
			out, err := bench.apply.Edit(b.Context(), bottle.PipelockFile, body, bottle.Actor{Name: "bench"}, plan.Digest)
			if err != nil {
				b.Fatal(err)
			}
			took, all = append(took, out.Took), append(all, time.Since(began))
		}
		report(b, "", took)
		report(b, "answered-", all)
	})
	b.Run("docker-restart", func(b *testing.B) {
		// The keeper would start the container while docker does.
		if err := launch.EndProcess(b.Context(), p.metadata().Keeper); err != nil {
			b.Fatal(err)
		}
		knock := newKnocker(b, p)
		knock(b)
		var took []time.Duration
		for range b.N {
			began := time.Now()
			if err := p.dock.cli.ContainerRestart(b.Context(), p.metadata().Docker.Sidecars, container.StopOptions{}); err != nil {
				b.Fatal(err)
			}
			knock(b)
			took = append(took, time.Since(began))
		}
		report(b, "", took)
	})
}

// newDockerBench is what the operator's command assembles, in this process.
func newDockerBench(b *testing.B, p *potted) *decisionBench {
	b.Helper()
	d := &decisionBench{}
	d.open(b, filepath.Dir(p.dir.Path()))
	engine, err := launch.NewDocker(launch.DockerConfig{Dir: p.dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = engine.Close() })
	log, err := audit.Open(audit.Config{Path: d.dir.Audit(), HeadPath: d.dir.AuditHead(), Bottle: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = log.Close() })
	d.apply, err = apply.New(apply.Config{Dir: d.dir, Records: d.desk, Trail: queue.AuditTrail{Log: log}, Signaler: engine, Pipelock: pipelock.Codec{}})
	if err != nil {
		b.Fatal(err)
	}
	return d
}

// newKnocker returns a function that waits until the proxy accepts a connection from the agent's container.
func newKnocker(b *testing.B, p *potted) func(b *testing.B) {
	b.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.Context()))
	cmd := exec.CommandContext(ctx, filepath.Join(p.programs, "bottle"), "attach", p.name, "--", "sh", "-c",
		"while read line; do until nc -w 1 sidecars 3128 -e true 2>/dev/null; do :; done; echo open; done")
	cmd.Env = p.env
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close()
		cancel()
		_ = cmd.Wait()
	})
	return func(b *testing.B) {
		b.Helper()
		if _, err := io.WriteString(in, "knock\n"); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, len("open\n"))); err != nil {
			b.Fatal(err)
		}
	}
}
