package bundle_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// startAsPID1 runs init as the first process of a pid namespace, as it is in a container. The
// user namespace is for an ordinary user, to whom the kernel gives no other without.
func (b *bed) startAsPID1() {
	b.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	log, err := os.OpenFile(b.dir.Path("init.log"), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		b.t.Fatal(err)
	}
	b.cmd = exec.CommandContext(context.WithoutCancel(b.t.Context()), exe, "role:pid1", b.dir.Path())
	b.cmd.Stdout, b.cmd.Stderr = log, log
	b.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}},
		// To mount /proc; init's daemons do not get it.
		AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN},
	}
	if err := b.cmd.Start(); err != nil {
		_ = log.Close()
		b.t.Fatalf("this kernel makes no user and pid namespaces for uid %d (user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns): %v", os.Getuid(), err)
	}
	b.running(log)
}

// pid1Main gives init a /proc of its namespace.
func pid1Main(root string) int {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "not PID 1")
		return 2
	}
	for _, err := range []error{
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""),
	} {
		if err != nil {
			fmt.Fprintln(os.Stderr, "mount /proc of the namespace:", err)
			return 2
		}
	}
	return initMain(root)
}

// inside are the processes of the namespace of which pid is the first, by their state.
func inside(t *testing.T, pid int) (all []int, zombies []int) {
	t.Helper()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		return nil, nil
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		n, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			t.Fatal(err)
		}
		// A zombie has no namespaces to show, but a parent.
		if theirs, err := os.Readlink(d + "/ns/pid"); err == nil && theirs == ns {
			all = append(all, n)
		}
	}
	for _, p := range all {
		for _, c := range children(p) {
			if runs, gone := alive(c); !runs && !gone {
				zombies = append(zombies, c)
			}
		}
	}
	return all, zombies
}

func TestPID1ReapsOrphans(t *testing.T) {
	b := newBed(t)
	b.behave(bottle.DaemonSupervise, "orphans")
	b.startAsPID1()
	b.pid1Ready()
	eventually(t, "200 orphans have ended", func() bool {
		_, err := os.Stat(b.dir.Path("orphans"))
		return err == nil
	})
	eventually(t, "no zombie and no orphan is left", func() bool {
		all, zombies := inside(t, b.cmd.Process.Pid)
		return len(all) == 4 && len(zombies) == 0
	})
	if code, took := b.stop(); code != 0 || took > 2*time.Second {
		t.Errorf("TERM: code %d in %v", code, took)
	}
}

func TestPID1Term(t *testing.T) {
	for _, how := range []string{"stuck", "stopped", "escape"} {
		t.Run(how, func(t *testing.T) {
			b := newBed(t)
			b.behave(bottle.DaemonSupervise, how)
			b.startAsPID1()
			b.pid1Ready()
			all, _ := inside(t, b.cmd.Process.Pid)
			if want := map[string]int{"escape": 5}[how]; want != 0 && len(all) != want {
				t.Errorf("%d processes, want %d", len(all), want)
			}
			if code, took := b.stop(); code != 0 || took > 2*time.Second {
				t.Errorf("code %d in %v", code, took)
			}
			for _, pid := range all {
				if runs, _ := alive(pid); runs {
					t.Errorf("process %d outlives init", pid)
				}
			}
		})
	}
}

func TestPID1PassesTheExitCodeOn(t *testing.T) {
	b := newBed(t)
	b.behave(bottle.DaemonEgress, "badport")
	b.startAsPID1()
	if code := b.wait(); code != 7 {
		t.Errorf("exit code %d, want the daemon's 7", code)
	}
}

func TestPID1KilledTakesAllDown(t *testing.T) {
	b := newBed(t)
	b.behave(bottle.DaemonSupervise, "escape")
	b.startAsPID1()
	b.pid1Ready()
	all, _ := inside(t, b.cmd.Process.Pid)
	b.signal(bottle.Signal(unix.SIGKILL))
	b.wait()
	for _, pid := range all {
		eventually(t, "all end with init", func() bool { runs, _ := alive(pid); return !runs })
	}
}

// Signals while it starts neither end it nor are lost: what was written before them is in force.
// They begin once it has taken its lock, soon after [bundle.Notify]: until then Go's runtime,
// whose handlers are there before any of our code runs, ends the process on them, PID 1 too.
func TestPID1SignalsDuringItsStart(t *testing.T) {
	for _, after := range []time.Duration{0, 5, 10, 20, 35, 50} {
		t.Run(fmt.Sprint(int(after), "ms"), func(t *testing.T) {
			b := newBed(t)
			b.startAsPID1()
			begun := time.Now()
			eventually(t, "its first moment", func() bool {
				_, err := os.Stat(b.dir.Path("run/bundle/init.lock"))
				return err == nil
			})
			_ = waitUntil(t.Context(), begun.Add(after*time.Millisecond))
			routes := b.write(bottle.RoutesFile, fmt.Sprintf("routes: [] # after %d\n", after))
			pipelock := b.write(bottle.PipelockFile, fmt.Sprintf("mode: strict # after %d\n", after))
			for range 3 {
				for _, s := range []bottle.Signal{bottle.SignalReload, bottle.SignalReplacePipelock, bottle.SignalReloadPipelock} {
					b.signal(s)
				}
			}
			st := b.pid1Ready()
			eventually(t, "both files are in force", func() bool {
				return b.daemonStatus(bottle.DaemonEgress).Revision == routes && b.daemonStatus(bottle.DaemonPipelock).Revision == pipelock
			})
			if d := st.Daemons[bottle.DaemonEgress]; d.Restarts != 0 {
				t.Errorf("egress: %+v", d)
			}
			for _, name := range []string{bottle.DaemonEgress, bottle.DaemonPipelock} {
				if e := b.daemonStatus(name).Error; e != "" {
					t.Errorf("%s: %s", name, e)
				}
			}
			eventually(t, "one pipelock is left", func() bool {
				all, zombies := inside(t, b.cmd.Process.Pid)
				return len(all) == 4 && len(zombies) == 0
			})
		})
	}
}

func waitUntil(ctx context.Context, at time.Time) error {
	ctx, cancel := context.WithDeadline(ctx, at)
	defer cancel()
	<-ctx.Done()
	return ctx.Err()
}

// pid1Ready waits until an init that knows itself as PID 1 is ready.
func (b *bed) pid1Ready() bottle.InitStatus {
	b.t.Helper()
	var st bottle.InitStatus
	eventually(b.t, "ready", func() bool {
		select {
		case <-b.done:
			b.t.Fatalf("init ended: %v", b.cmd.ProcessState)
		default:
		}
		st = bottle.InitStatus{}
		return bottle.ReadJSON(b.dir.InitStatus(), 0, &st) == nil && st.PID == 1 && st.Ready
	})
	return st
}

// leaveOrphans forks n times twice: those in the middle end at once, and those below them
// become init's. The file says that it is done.
func leaveOrphans(n int, root string) error {
	cmd := exec.CommandContext(context.Background(), "sh", "-c", "i=0; while [ $i -lt "+strconv.Itoa(n)+" ]; do (: &); i=$((i+1)); done")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return os.WriteFile(filepath.Join(root, "orphans"), nil, 0o600)
}
