package bench

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// A result is one measurement.
type result struct {
	rate, ratio float64
	added, cpu  time.Duration
}

var results struct { //nolint:gochecknoglobals // TestMain prints what the benchmarks found
	mu   sync.Mutex
	rows []string
	all  map[string]map[string][]result // by subject and column
}

func record(row, column string, r result) {
	results.mu.Lock()
	defer results.mu.Unlock()
	if results.all == nil {
		results.all = map[string]map[string][]result{}
	}
	if results.all[row] == nil {
		results.all[row] = map[string][]result{}
		results.rows = append(results.rows, row)
	}
	results.all[row][column] = append(results.all[row][column], r)
}

// table is the medians of what was measured; empty if nothing was.
func table() string {
	results.mu.Lock()
	defer results.mu.Unlock()
	if len(results.rows) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintln(&b, "\nMedians. 8 clients: requests a second, as a share of direct beside it (and the proxy's processor time a request).")
	fmt.Fprintln(&b, "1 client: what the proxy adds to the median time of a request.")
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	columns := []string{"kept/8", "new/8", "resumed/8", "kept/1", "new/1", "resumed/1"}
	fmt.Fprintf(w, "proxy\t%s\t\n", strings.Join(columns, "\t"))
	for _, row := range results.rows {
		fmt.Fprint(w, row)
		for _, c := range columns {
			fmt.Fprint(w, "\t", cell(results.all[row][c], strings.HasSuffix(c, "/1")))
		}
		fmt.Fprintln(w, "\t")
	}
	_ = w.Flush()
	return b.String()
}

func cell(all []result, latency bool) string {
	switch {
	case len(all) == 0:
		return "-"
	case latency:
		return fmt.Sprintf("%+.3f ms", micros(middle(all, func(r result) time.Duration { return r.added }))/1000)
	}
	return fmt.Sprintf("%.0f %.2fx (%.0f us)",
		middle(all, func(r result) float64 { return r.rate }), middle(all, func(r result) float64 { return r.ratio }),
		micros(middle(all, func(r result) time.Duration { return r.cpu })))
}

func middle[T cmp.Ordered](all []result, of func(result) T) T {
	var v []T
	for _, r := range all {
		v = append(v, of(r))
	}
	slices.Sort(v)
	return v[len(v)/2]
}
