package main_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/network"

	"bottle/bottle"
)

var networkVerbose = network.InspectOptions{Verbose: true}

func dockerCommand(p *potted, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(p.t.Context(), "docker", args...)
	cmd.Env = p.env
	return cmd
}

// bundlePIDs are those of the bundle's processes as this machine has them.
func bundlePIDs(t *testing.T, p *potted) (pids []int) {
	t.Helper()
	if p.dock != nil {
		top, err := p.dock.cli.ContainerTop(t.Context(), p.metadata().Docker.Sidecars, []string{"-o", "pid"})
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range top.Processes {
			pid, err := strconv.Atoi(row[0])
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
		return pids
	}
	var st bottle.InitStatus
	if err := bottle.ReadJSON(p.dir.InitStatus(), 0, &st); err != nil {
		t.Fatal(err)
	}
	pids = []int{p.metadata().Init.PID}
	for _, d := range st.Daemons {
		pids = append(pids, d.PID)
	}
	return pids
}

// daemonName tells by its command line which daemon a process is.
func daemonName(pid int) string {
	line := cmdline(pid)
	for _, name := range []string{bottle.DaemonEgress, bottle.DaemonPipelock, bottle.DaemonSupervise} {
		if strings.Contains(line, "bottle-"+name+" ") || slices.Contains(strings.Fields(line), name) {
			return name
		}
	}
	if slices.Contains(strings.Fields(line), "init") {
		return "init"
	}
	return fmt.Sprintf("process %d: %s", pid, line)
}

var noCore = regexp.MustCompile(`(?m)^Max core file size +0 +0 `)

// shown looks at what /proc shows of a process, and reports whether this process may see its memory.
func (s *search) shown(t *testing.T, p *potted, pid int, name string) bool {
	t.Helper()
	proc := func(file string) string { return fmt.Sprintf("/proc/%d/%s", pid, file) }
	limits, err := os.ReadFile(proc("limits"))
	if err != nil || !noCore.Match(limits) && name != "init" { // which has no secret
		t.Errorf("%s may dump its core: %v\n%s", name, err, limits)
	}
	s.look(t, proc("cmdline"), cmdline(pid))
	env, err := os.ReadFile(proc("environ"))
	if errors.Is(err, fs.ErrPermission) && os.Getuid() != 0 {
		t.Logf("%s: environment and memory are hidden, and were NOT LOOKED AT; run as root", name)
		return false
	}
	if err != nil {
		t.Errorf("%s: %v", name, err)
	}
	s.look(t, proc("environ"), string(env)+".")
	if p.dock != nil { // files that only it has, in the container's memory
		for _, dir := range []string{"tmp", "bottle"} {
			s.files(t, filepath.Join(proc("root"), dir))
		}
	}
	return true
}

// memory reports whether the secret is in what a process has mapped.
func (s *search) memory(pid int) (found bool, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return false, err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return false, err
	}
	defer mem.Close()
	read := 0
	buf := make([]byte, 1<<20)
	const overlap = 256 // more than any form is long
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, "[v") { // of the kernel, and can't be read so
			continue
		}
		var from, to int64
		var perms string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perms); err != nil {
			return false, fmt.Errorf("maps: %q: %w", line, err)
		}
		if perms[0] != 'r' {
			continue
		}
		for at := from; at < to; at += int64(len(buf) - overlap) {
			n, err := mem.ReadAt(buf[:min(int64(len(buf)), to-at)], at)
			if err != nil && !errors.Is(err, io.EOF) && n == 0 {
				break // a file that is shorter than its mapping
			}
			read += n
			for _, form := range s.forms {
				found = found || bytes.Contains(buf[:n], []byte(form))
			}
		}
	}
	if read < 1<<20 {
		return found, fmt.Errorf("%d bytes of memory could be read", read)
	}
	return found, nil
}
