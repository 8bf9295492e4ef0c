package apply_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"bottle/bottle"
)

// BenchmarkApply measures what apply itself costs from the yes to the daemons' word, on the disk that holds the
// temporary directory, with a bundle that answers at once. What real daemons add is measured end to end elsewhere.
func BenchmarkApply(b *testing.B) {
	for _, bench := range []struct{ name, entry string }{
		{"routes-only", "b.example.com/v%d"},
		{"both-files", "h%d.example.com"},
	} {
		b.Run(bench.name, func(b *testing.B) {
			desk := time.Now()
			bed := newBed(b, bedConfig{now: func() time.Time { return desk }})
			var took, whole []time.Duration
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				desk = desk.Add(time.Minute) // the queue takes so many a minute
				rec := bed.ask(bottle.Ask{Add: entries(fmt.Sprintf(bench.entry, i+2)), Reason: "x"})
				in := bed.intent(rec, session)
				p, err := bed.applier.Preview(b.Context(), in)
				must(b, err)
				b.StartTimer()
				begin := time.Now()
				out, err := bed.applier.Approve(b.Context(), rec, in, operator, p.Digest, "")
				whole = append(whole, time.Since(begin))
				must(b, err)
				took = append(took, out.Took)
				b.StopTimer()
				_, err = bed.applier.Revoke(b.Context(), rec.Short, operator)
				must(b, err)
				b.StartTimer()
			}
			report := func(name string, d []time.Duration) {
				slices.Sort(d)
				b.ReportMetric(float64(d[len(d)/2].Microseconds())/1000, name+"-p50-ms")
				b.ReportMetric(float64(d[len(d)*99/100].Microseconds())/1000, name+"-p99-ms")
			}
			report("in-force", took)
			report("recorded", whole)
		})
	}
}
