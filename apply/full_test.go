package apply_test

import (
	"bytes"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"bottle/apply"
	"bottle/bottle"
)

// limitFiles lets no file of this process grow beyond n bytes, as a full disk would not, until it is called with less
// than 0. What a file has already it keeps.
func limitFiles(t *testing.T) func(n int) {
	t.Helper()
	var was syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was))
	signal.Ignore(syscall.SIGXFSZ)
	set := func(n int) {
		now := was
		if n >= 0 {
			now.Cur = uint64(n)
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &now); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() {
		set(-1)
		signal.Reset(syscall.SIGXFSZ)
	})
	return set
}

// fullChild is set in the process that is limited. It is one of its own, since the limit holds for all of a process,
// and the testing package writes files too.
const fullChild = "BOTTLE_FULL_CHILD"

func TestDiskThatIsFull(t *testing.T) {
	if os.Getenv(fullChild) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDiskThatIsFull$")
		cmd.Env = append(os.Environ(), fullChild+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	const first = "pwrite " + bottle.RoutesFile + " 0"
	for _, tt := range []struct {
		name    string
		widens  bool
		limit   int    // bytes
		from    string // before this step
		until   string // before this one, or to the end
		status  bottle.Status
		settled bool // without a recovery
		want    string
	}{
		{"before the journal", true, 100, "planned", "", bottle.Pending, true, "journal"},
		{"it does not grow", true, 900, first, "outcome", bottle.Failed, true, "file too large"},
		{"nor can it go back", true, 50, first, "", bottle.Failed, false, "finished by the keeper or by the next command"},
		{"its outcome is not recorded", true, 100, "outcome", "", bottle.Applied, false, "its record is not complete"},
		{"a narrowing", false, 50, first, "", bottle.Revoked, false, "finished by the keeper or by the next command"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			limit := limitFiles(t)
			b := newBed(t, bedConfig{})
			rec := b.grant("c.example.com", session)
			b.applier = b.newApplier(func(c *apply.Config) {
				quick(c)
				c.Fault = func(step string) {
					switch step {
					case tt.from:
						limit(tt.limit)
					case tt.until:
						limit(-1)
					}
				}
			})
			if tt.widens {
				rec = b.ask(bottle.Ask{Add: entries("d.example.com", "e.example.com", "f.example.com", "g.example.com", "h.example.com"), Reason: "x"})
			}
			was := [2][]byte{b.read(bottle.RoutesFile), b.read(bottle.PipelockFile)}
			var err error
			if tt.widens {
				_, err = b.approve(rec, b.intent(rec, session))
			} else {
				_, err = b.applier.Revoke(t.Context(), rec.Short, operator)
			}
			limit(-1)
			b.applier = b.newApplier(nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v", err)
			}
			found, err := b.applier.Recover(t.Context())
			must(t, err)
			if (len(found) == 0) != tt.settled {
				t.Errorf("recovery found %+v", found)
			}
			if s := b.record(rec.Short).State.Status(); s != tt.status {
				t.Errorf("it is %s", s)
			}
			same := bytes.Equal(was[0], b.read(bottle.RoutesFile)) && bytes.Equal(was[1], b.read(bottle.PipelockFile))
			if same != (tt.status == bottle.Failed || tt.status == bottle.Pending) {
				t.Errorf("files are as before: %v", same)
			}
			for file := range daemonOf {
				rev, err := bottle.CheckSeal(b.read(file))
				if err != nil || b.bundle.inForce(file) != rev {
					t.Errorf("%s: %v, %s in force", file, err, b.bundle.inForce(file))
				}
			}
			noJournal(t, b)
		})
	}
}
