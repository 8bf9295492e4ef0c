package bundle_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/bundle"
)

// An order is what the tests have a hijacked daemon do, as a line of JSON on its own socket. It
// answers with what came of the tries. The socket is inherited, so this works from inside.
type order struct {
	Tries []string `json:"tries,omitempty"`
	// Report goes into the pipe to init as it is: once, or again and again For that long.
	Report string        `json:"report,omitempty"`
	For    time.Duration `json:"for,omitempty"`
	// Block makes the inherited socket a blocking one, for init too, which shares it.
	Block bool `json:"block,omitempty"`
}

// Threads are OS threads that wait for something to do until the process ends.
type threads []chan func()

func (t *threads) add(n int) {
	for range n {
		todo, up := make(chan func()), make(chan struct{})
		go func() { // ends with the process
			runtime.LockOSThread()
			close(up)
			for f := range todo {
				f()
			}
		}()
		<-up
		*t = append(*t, todo)
	}
}

// agree makes the tries on each thread. Where the outcomes differ, that is the outcome.
func (t *threads) agree(tries []string) map[string]string {
	var first map[string]string
	for _, todo := range *t {
		done := make(chan map[string]string)
		todo <- func() { done <- outcomes(tries) }
		got := <-done
		if first == nil {
			first = got
		}
		for what, r := range got {
			if (r == "ok") != (first[what] == "ok") || denied(r) != denied(first[what]) {
				first[what] = fmt.Sprintf("the threads differ: %s, %s", first[what], r)
			}
		}
	}
	return first
}

func outcomes(tries []string) map[string]string {
	out := map[string]string{}
	for _, t := range tries {
		out[t] = "ok"
		if err := try(t); err != nil {
			out[t] = err.Error()
		}
	}
	return out
}

// behaviour is what the test has a daemon do.
func behaviour(name, root string) string {
	how, _ := os.ReadFile(filepath.Join(root, "behave", name)) // absent: well
	return string(how)
}

// hijackedMain is a daemon that confined itself as ours do and was then taken over. It even
// makes itself dumpable again, so that what keeps it and its siblings apart is not that.
func hijackedMain(name, root string) int {
	dir, err := bottle.NewDir(root)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var on threads
	on.add(2)
	err = bundle.Serve(context.Background(), name, dir, slog.New(slog.NewTextHandler(os.Stderr, nil)), func(ctx context.Context, d *bundle.Daemon) error {
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
			return err
		}
		on.add(1)
		l, err := d.File(map[string]string{bottle.DaemonEgress: bundle.FDProxy, bottle.DaemonSupervise: bundle.FDMCP, bottle.DaemonPipelock: bundle.FDGate}[name])
		if err != nil {
			return err
		}
		report, err := d.File("report")
		if err != nil {
			return err
		}
		if err := d.Report(first(d)); err != nil {
			return err
		}
		go func() { // ends with the process
			for range d.Reload {
				_ = d.Report(first(d))
			}
		}()
		go obey(l, report, &on)
		<-ctx.Done()
		return nil
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// first is an honest report.
func first(d *bundle.Daemon) bottle.DaemonStatus {
	st := bottle.DaemonStatus{Schema: bottle.Schema, Daemon: d.Name, PID: os.Getpid(), Instance: fmt.Sprint(os.Getpid()), Listen: "test"}
	file := map[string]string{bottle.DaemonEgress: bottle.RoutesFile, bottle.DaemonPipelock: bottle.PipelockFile}[d.Name]
	if file == "" {
		return st
	}
	b, err := os.ReadFile(d.Dir.Live(file))
	if err == nil {
		st.Revision, err = bottle.CheckSeal(b)
	}
	if err != nil {
		st.Error = err.Error()
	}
	if d.Name == bottle.DaemonEgress {
		var hop bottle.Hop
		_ = bottle.ReadJSON(d.Dir.HopFile(), 0, &hop)
		st.Hop = hop.Pipelock
	}
	return st
}

// obey takes orders, one connection after another.
func obey(sock, report *os.File, on *threads) {
	l, err := net.FileListener(sock)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		for lines := bufio.NewReader(c); ; {
			line, err := lines.ReadBytes('\n')
			if err != nil {
				break
			}
			var o order
			if err := json.Unmarshal(line, &o); err != nil {
				fmt.Fprintln(os.Stderr, err)
				break
			}
			answer := on.agree(o.Tries)
			if o.Report != "" {
				answer = map[string]string{"report": send(report, o)}
			}
			if o.Block {
				_ = unix.SetNonblock(int(sock.Fd()), false)
			}
			if err := json.NewEncoder(c).Encode(answer); err != nil {
				break
			}
		}
		_ = c.Close()
	}
}

// send writes one report, or a flood of them: what finds the pipe full is dropped, not waited for.
func send(report *os.File, o order) string {
	fd := int(report.Fd())
	if o.For == 0 {
		if _, err := fmt.Fprint(report, o.Report); err != nil {
			return err.Error()
		}
		return "ok"
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return err.Error()
	}
	for end := time.Now().Add(o.For); time.Now().Before(end); {
		if _, err := unix.Write(fd, []byte(o.Report)); err != nil && !errors.Is(err, unix.EAGAIN) {
			return err.Error()
		}
	}
	return "ok"
}
