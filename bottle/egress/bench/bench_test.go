package bench

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
)

// The time of one measurement, and how often the proxy and "direct" take turns in it.
const (
	turns    = 4
	turnTime = 150 * time.Millisecond
)

// TestMain is also the proxies' main; see [start].
func TestMain(m *testing.M) {
	if isChild() {
		os.Exit(child())
	}
	code := m.Run()
	fmt.Fprint(os.Stdout, table())
	os.Exit(code)
}

// BenchmarkProxies is subject/what/clients. BENCH picks some: make bench BENCH='Proxies/egress/'.
func BenchmarkProxies(b *testing.B) {
	w := newWorld(b)
	for _, s := range subjects() {
		b.Run(s.name, func(b *testing.B) {
			via := s.start(b, w) // once for all that is below
			for _, kind := range []kind{kept, fresh, resumed} {
				for _, clients := range []int{1, 8} {
					b.Run(fmt.Sprintf("%s/%d", kind, clients), func(b *testing.B) {
						measure(b, s.name, w.direct(), via, kind, clients)
					})
				}
			}
		})
	}
}

// measure takes a fixed time, which is over the default -benchtime, so that the function is
// called once for each -count.
func measure(b *testing.B, name string, direct, via *path, kind kind, clients int) {
	base, subject := newLoad(direct, kind, clients), newLoad(via, kind, clients)
	defer base.close()
	defer subject.close()
	for _, l := range []*load{base, subject} { // connections open, caches full
		if err := l.run(turnTime / 3); err != nil {
			b.Fatal(err)
		}
		l.reset()
	}
	cpu := via.cpu(b)
	for range turns {
		for _, l := range []*load{base, subject} {
			if err := l.run(turnTime); err != nil {
				b.Fatal(err)
			}
		}
	}
	cpu = via.cpu(b) - cpu
	r := result{
		rate: subject.rate(), ratio: subject.rate() / base.rate(),
		added: median(subject.times) - median(base.times),
		cpu:   cpu / time.Duration(max(1, len(subject.times))),
	}
	record(name, fmt.Sprintf("%s/%d", kind, clients), r)
	b.ReportMetric(r.rate, "req/s")
	b.ReportMetric(r.ratio, "x-direct")
	b.ReportMetric(micros(median(subject.times)), "p50-us")
	b.ReportMetric(micros(r.added), "added-us")
	b.ReportMetric(micros(r.cpu), "cpu-us/op")
	b.ReportMetric(0, "ns/op")
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(d))
	return s[len(s)/2]
}
