package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const childEnv = "BOTTLE_BENCH_CHILD"

// A job is a proxy that this program is in a process of its own.
type job struct {
	Kind       string // a key of jobs
	Dir        string // for its files
	UpstreamCA string // PEM file
	Upstream   int    // port
	Hop        string // egress, goproxy: host:port
	Cache      bool   // goproxy: ECDSA, leaves and connections kept
	Intercept  bool   // goproxy
	Profile    string // file prefix; empty means none
	Passing    bool   // egress, gate: end is there

	end *os.File // of a pair by which the gate passes connections to egress; nil means none
}

func isChild() bool { return os.Getenv(childEnv) != "" }

// child runs the job that the environment names until it gets SIGTERM.
func child() (code int) {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	if err := runChild(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench child:", err)
		return 1
	}
	return 0
}

func runChild(ctx context.Context) error {
	var j job
	if err := json.Unmarshal([]byte(os.Getenv(childEnv)), &j); err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	run, err := jobs()[j.Kind](j, l)
	if err != nil {
		return err
	}
	stop, err := profile(j.Profile)
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return errors.Join(run(ctx), stop())
}

// start runs the job in a process of its own until the benchmark's end.
func (j job) start(b *testing.B) (addr string, pid int) {
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	if j.Dir == "" {
		j.Dir = b.TempDir()
	}
	if prefix := os.Getenv("BOTTLE_BENCH_PROFILE"); prefix != "" {
		j.Profile = prefix + "." + strings.ReplaceAll(strings.TrimPrefix(b.Name(), "BenchmarkProxies/"), "/", "-") + "." + j.Kind
	}
	j.Passing = j.end != nil
	env, err := json.Marshal(j)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), self)
	cmd.Env = append(os.Environ(), childEnv+"="+string(env))
	cmd.Stderr = os.Stderr
	if j.end != nil {
		cmd.ExtraFiles = []*os.File{j.end}
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	run(b, cmd)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatalf("%s: no address: %v", j.Kind, err)
	}
	return strings.TrimSpace(line), cmd.Process.Pid
}

// inherited is the end that the job was started with.
func (j job) inherited() (*net.UnixConn, error) {
	if !j.Passing {
		return nil, nil
	}
	f := os.NewFile(3, "end")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("descriptor 3 is %T", c)
	}
	return u, nil
}

// run starts cmd and ends it with the benchmark, by SIGTERM and, 5 s later, SIGKILL.
func run(b *testing.B, cmd *exec.Cmd) {
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		late := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		defer late.Stop()
		_ = cmd.Wait()
	})
}

// cpuTime is the processor time of a process so far, in user space and in the kernel: fields 14
// and 15 of /proc/PID/stat, in hundredths of a second.
func cpuTime(pid int) (time.Duration, error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	var sum time.Duration
	for _, f := range fields[11:13] {
		ticks, err := strconv.Atoi(string(f))
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ticks) * time.Second / 100
	}
	return sum, nil
}

// listening waits for a program that does not say when it is ready.
func listening(b *testing.B, addr string) {
	for deadline := time.Now().Add(20 * time.Second); ; {
		c, err := new(net.Dialer).DialContext(b.Context(), "tcp", addr)
		if err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("%s: nobody listens: %v", addr, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// freeAddr is one that nobody had a moment ago, for programs that take no socket.
func freeAddr(b *testing.B) (addr, port string) {
	l, err := new(net.ListenConfig).Listen(b.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	_, port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	return l.Addr().String(), port
}
