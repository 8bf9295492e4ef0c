package bottle_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"bottle/bottle"
)

func TestParseDuration(t *testing.T) {
	for _, tt := range []struct{ in, want, words string }{ // want "": refused
		{"once", "once", "for one request"},
		{"session", "session", "until the bottle stops"},
		{"permanent", "permanent", "permanently"},
		{"90s", "1m30s", "for 1m30s"},
		{"1s", "1s", "for 1s"},
		{"720h", "720h0m0s", "for 720h"},
		{"10m", "10m0s", "for 10m"},
		{"90m", "1h30m0s", "for 1h30m"},
		{"3605s", "1h0m5s", "for 1h0m5s"},
		{"20s", "20s", "for 20s"},
		{"0s", "", ""},
		{"-1m", "", ""},
		{"999ms", "", ""},
		{"1.5s", "", ""},
		{"721h", "", ""},
		{"10", "", ""},
		{"1d", "", ""},
		{"ttl", "", ""},
		{"Once", "", ""},
		{"", "", ""},
		{"forever", "", ""},
		{"9999999999999h", "", ""},
	} {
		t.Run(tt.in, func(t *testing.T) {
			d, err := bottle.ParseDuration(tt.in)
			if tt.want == "" {
				if !errors.Is(err, bottle.ErrInvalid) || strings.Contains(err.Error(), "\n") {
					t.Errorf("got %v, %v", d, err)
				}
				return
			}
			if err != nil || d.String() != tt.want || d.Words() != tt.words {
				t.Fatalf("got %s (%s), %v", d, d.Words(), err)
			}
			b, err := json.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			var back bottle.Duration
			if err := json.Unmarshal(b, &back); err != nil || back != d {
				t.Errorf("%s read back as %s, %v", b, back, err)
			}
		})
	}
	var zero bottle.Duration
	if err := json.Unmarshal([]byte(`""`), &zero); err != nil || zero != (bottle.Duration{}) || zero.Words() != "for an unknown time" {
		t.Errorf("the zero value: %+v, %v", zero, err)
	}
	if err := json.Unmarshal([]byte(`"x"`), &zero); err == nil {
		t.Error("read x")
	}
	if _, err := bottle.ForTTL(time.Second + 1); err == nil {
		t.Error("a second and a nanosecond is not whole seconds")
	}
}
