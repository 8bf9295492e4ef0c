package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"bottle/bottle"
)

// within reports whether path is dir or lies below it. Both are clean and absolute.
func within(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

// Places that a workspace may neither be nor contain, for they hold what is not the agent's; and
// those that it may not lie in either, for the sandbox's own stand there.
var (
	tooWide  = []string{"/home", "/root", "/tmp", "/var", "/run", "/run/user", "/opt", "/srv", "/mnt", "/media", "/boot", "/sys"}
	reserved = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/dev", "/proc", "/sys", "/boot", sandboxHome, socketsDir}
)

// checkWorkspace returns the workspace without symbolic links, or why an agent must not have it
// for writing: whoever writes there must not thereby write what the operator, or bottle, goes by.
func checkWorkspace(path string, dir *bottle.Dir) (string, error) {
	resolved, err := checkShown("workspace", path, dir)
	if err != nil {
		return "", err
	}
	refuse := func(what string) (string, error) {
		return "", fmt.Errorf("workspace %s: %s; name a directory of the agent's own: %w", resolved, what, bottle.ErrInvalid)
	}
	if home, err := os.UserHomeDir(); err == nil {
		if h, err := filepath.EvalSymlinks(home); err == nil && within(h, resolved) {
			return refuse("it is your home directory, or contains it")
		}
	}
	if rt := os.Getenv("XDG_RUNTIME_DIR"); rt != "" && within(filepath.Clean(rt), resolved) {
		return refuse("it is the directory of your session's sockets, or contains it")
	}
	if dir, name := filepath.Split(resolved); dir == "/run/user/" {
		return refuse("it is the directory of the sockets of user " + name)
	}
	for _, p := range tooWide {
		if within(p, resolved) {
			return refuse("it is " + p + ", or contains it")
		}
	}
	for _, p := range reserved {
		if within(resolved, p) {
			return refuse("the sandbox has its own " + p)
		}
	}
	return resolved, nil
}

// checkShown returns a directory that the sandbox is to show, without symbolic links. It has
// nothing to do with the state of this bottle or of its neighbours.
func checkShown(field, path string, dir *bottle.Dir) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%s %q: not an absolute path: %w", field, path, bottle.ErrInvalid)
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", field, err)
	}
	if st, err := os.Stat(resolved); err != nil || !st.IsDir() {
		return "", errors.Join(fmt.Errorf("%s %s: not a directory: %w", field, resolved, bottle.ErrInvalid), err)
	}
	if resolved == "/" {
		return "", fmt.Errorf("%s /: it is the whole machine; name a directory of the agent's own: %w", field, bottle.ErrInvalid)
	}
	state, err := filepath.EvalSymlinks(dir.Path())
	if err != nil {
		return "", fmt.Errorf("state directory: %w", err)
	}
	// The bottles of one operator lie side by side.
	if all := filepath.Dir(state); within(resolved, state) || within(state, resolved) || within(resolved, all) {
		return "", fmt.Errorf("%s %s: it contains or lies in the state directory %s, where decisions and records are; keep them apart: %w", field, resolved, all, bottle.ErrInvalid)
	}
	return resolved, nil
}
