package bundle_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/bundle"
)

// testCommand is how init of the tests starts a daemon.
func testCommand(dir *bottle.Dir, exe, daemon, listen string) ([]string, error) {
	if c, err := bundle.LoadConfig(dir, daemon); err == nil && daemon == bottle.DaemonPipelock && c.Binary != "" {
		return bundle.Command(dir, daemon, listen)
	}
	return []string{exe, "role:daemon", daemon, dir.Path()}, nil
}

// daemonMain is a daemon that does as behave/<name> says, from its next start on.
func daemonMain(name, root string) int {
	dir, _ := bottle.NewDir(root)
	mode, _ := os.ReadFile(dir.Path("behave", name)) // absent: well
	if strings.HasPrefix(string(mode), "slow") {
		<-time.After(300 * time.Millisecond) // before it handles any signal
	}
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)

	st := bottle.DaemonStatus{Schema: bottle.Schema, Daemon: name, PID: os.Getpid(), Instance: fmt.Sprint(time.Now().UnixNano()), Listen: "test", Counters: map[string]uint64{}}
	load := func() {
		file := map[string]string{bottle.DaemonEgress: bottle.RoutesFile, bottle.DaemonPipelock: bottle.PipelockFile}[name]
		if file == "" {
			return
		}
		if name == bottle.DaemonEgress {
			var hop bottle.Hop
			_ = bottle.ReadJSON(dir.HopFile(), 0, &hop)
			st.Hop = hop.Pipelock
		}
		b, err := os.ReadFile(dir.Live(file))
		if err == nil {
			st.Revision, err = bottle.CheckSeal(b)
		}
		if err != nil {
			st.Error = err.Error() // the tests look for it: a daemon must never see such a file
		}
	}
	load()
	in, err := bundle.Inherit()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	switch string(mode) {
	case "mute":
		<-term
		return 0
	case "badport", "slowbad":
		fmt.Fprintln(os.Stderr, "starting")
		fmt.Fprintln(os.Stderr, "listen tcp 127.0.0.1:1: \x1b[31mpermission denied")
		return 7
	case "orphan":
		cmd := exec.CommandContext(context.Background(), "sh", "-c", "sleep 0.1 & echo $! > "+dir.Path("orphan"))
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	case "escape":
		// A process that left the group and the session, and would outlive both.
		cmd := exec.CommandContext(context.Background(), "sh", "-c", "setsid sleep 60 & echo $! > "+dir.Path("orphan"))
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	case "noisy":
		fmt.Fprintln(os.Stderr, strings.Repeat("x", 100<<10))
		fmt.Fprintln(os.Stderr, "after the long line")
	case "flood":
		for n := range 50_000 {
			fmt.Fprintln(os.Stderr, "flood", n)
		}
		fmt.Fprintln(os.Stderr, "why it ends")
		return 9
	}
	fmt.Fprintln(os.Stderr, "env", strings.Join(os.Environ(), " "))
	conns := make(chan int) // how many more
	if err := answer(in, root, name, conns); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	write := func() { _ = in.Report(st) }
	write()
	switch string(mode) {
	case "crash":
		// Not before init has seen that it served.
		for !initSaysReady(dir, name) {
			<-time.After(time.Millisecond)
		}
		return 3
	case "stopped":
		_ = unix.Kill(os.Getpid(), unix.SIGSTOP)
	}
	for {
		select {
		case n := <-conns:
			st.Counters["open"] = uint64(int(st.Counters["open"]) + n)
			if name == bottle.DaemonPipelock {
				write()
			}
		case s := <-reload:
			load()
			if s == unix.SIGHUP {
				st.Counters["SIGHUP"]++
			} else {
				st.Counters["SIGUSR2"]++
			}
			write()
		case <-term:
			if string(mode) != "stuck" {
				return 0
			}
		}
	}
}

// answer serves on the socket of the daemon: each line of a client is given back after the pid.
func answer(in *bundle.Inheritance, root, name string, conns chan<- int) error {
	l, err := in.Listener(map[string]string{bottle.DaemonEgress: bundle.FDProxy, bottle.DaemonSupervise: bundle.FDMCP, bottle.DaemonPipelock: bundle.FDGate}[name])
	if err != nil {
		return err
	}
	if mode, _ := os.ReadFile(filepath.Join(root, "behave", name)); string(mode) == "shutdown" {
		raw, err := l.(syscall.Conn).SyscallConn() //nolint:errcheck // every listener of package net is one
		if err != nil {
			return err
		}
		return raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	}
	go func() { // ends with the process
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- 1
			go func() {
				defer func() { conns <- -1 }()
				defer c.Close()
				for lines := bufio.NewScanner(c); lines.Scan(); {
					if _, err := fmt.Fprintln(c, os.Getpid(), lines.Text()); err != nil {
						return
					}
				}
			}()
		}
	}()
	return nil
}

// A talk is a connection to a daemon of the tests.
type talk struct {
	net.Conn
	r *bufio.Reader
}

func dial(network, addr string) (*talk, error) {
	c, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(context.Background(), network, addr)
	if err != nil {
		return nil, err
	}
	return &talk{c, bufio.NewReader(c)}, nil
}

// say sends a line and returns the pid of who gave it back.
func (c *talk) say(text string) (pid int, err error) {
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, text+"\n"); err != nil {
		return 0, err
	}
	line, err := c.r.ReadString('\n')
	if err != nil {
		return 0, err
	}
	head, back, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	if back != text {
		return 0, fmt.Errorf("%q came back of %q", line, text)
	}
	return strconv.Atoi(head)
}
