package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/prompt"
)

// The workspace is a way out of the bottle: what an agent leaves there may run when the
// operator next uses it, with the operator's rights. So a start notes the files that
// tools run or obey without being asked, and a stop lists those that appeared or changed.

// Bounds of the walk. A workspace that is larger is looked at as far as they go, and it is said.
const (
	maxWalk     = 200_000 // entries
	maxDepth    = 12
	maxHashed   = 4 << 20 // bytes of a file
	maxListed   = 50
	maxSnapshot = 16 << 20 // bytes
)

// risky are patterns (path.Match) of what is run or obeyed by tools, against the last elements of a path.
var risky = []string{
	".git/config", ".git/hooks/*", ".git/info/attributes", ".gitmodules", ".gitattributes", ".githooks/*", ".husky/*",
	".envrc", ".env", ".tool-versions", ".mise.toml", ".npmrc", ".yarnrc", ".yarnrc.yml", "pip.conf", ".cargo/config", ".cargo/config.toml",
	"Makefile", "makefile", "GNUmakefile", "justfile", "Justfile", "Taskfile.yml", "CMakeLists.txt", "BUILD", "BUILD.bazel", "WORKSPACE",
	"package.json", "setup.py", "pyproject.toml", "conftest.py", "build.rs", "build.gradle", "build.gradle.kts", "gradlew", "pom.xml", "Rakefile", "Gemfile",
	"Dockerfile", "docker-compose.yml", "compose.yaml", ".pre-commit-config.yaml", "Jenkinsfile", ".gitlab-ci.yml", ".github/workflows/*",
	".vscode/*.json", ".idea/*.xml", ".idea/runConfigurations/*", ".devcontainer/*", ".devcontainer.json",
	".mcp.json", "CLAUDE.md", "AGENTS.md", ".claude/*", ".claude/*/*", ".cursor/*", ".cursor/*/*",
}

// isRisky reports whether a path below the workspace is one of those.
func isRisky(rel string) bool {
	elems := strings.Split(filepath.ToSlash(rel), "/")
	for _, p := range risky {
		if n := strings.Count(p, "/") + 1; n <= len(elems) {
			if ok, err := path.Match(p, strings.Join(elems[len(elems)-n:], "/")); err == nil && ok {
				return true
			}
		}
	}
	return false
}

// A workspaceSnapshot is workspace.json: what the risky files were at the start.
type workspaceSnapshot struct {
	Schema    int               `json:"schema"`
	Workspace string            `json:"workspace"`
	Files     map[string]string `json:"files"` // path below the workspace -> what it is
	Cut       bool              `json:"cut,omitempty"`
}

// snapshot walks the workspace without following links.
func snapshot(workspace string) workspaceSnapshot {
	s := workspaceSnapshot{Schema: bottle.Schema, Workspace: workspace, Files: map[string]string{}}
	seen := 0
	_ = filepath.WalkDir(workspace, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // what can't be read can't be run either
		}
		if seen++; seen > maxWalk {
			s.Cut = true
			return fs.SkipAll
		}
		rel, err := filepath.Rel(workspace, p)
		if err != nil || rel == "." {
			return nil //nolint:nilerr // the workspace itself
		}
		if d.IsDir() {
			if d.Name() == "node_modules" || strings.Count(rel, string(filepath.Separator)) >= maxDepth {
				return fs.SkipDir
			}
			return nil
		}
		if isRisky(rel) {
			s.Files[rel] = fingerprint(p, d)
		}
		return nil
	})
	return s
}

// fingerprint tells two states of a file apart: its kind, its executable bits, its content.
func fingerprint(p string, d fs.DirEntry) string {
	if d.Type()&fs.ModeSymlink != 0 {
		target, _ := os.Readlink(p)
		return "link " + target
	}
	if !d.Type().IsRegular() {
		return d.Type().String()
	}
	f, err := os.OpenFile(p, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "unreadable"
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return "unreadable"
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(f, maxHashed)); err != nil {
		return "unreadable"
	}
	return fmt.Sprintf("%v %d %s", st.Mode().Perm()&0o111, st.Size(), hex.EncodeToString(h.Sum(nil)))
}

func workspaceFile(dir *bottle.Dir) string { return dir.Path("workspace.json") }

// noteWorkspace remembers the workspace as the agent will find it. What the last run left is told
// first if no stop has: the bottle was killed.
func (c *cell) noteWorkspace(w io.Writer) error {
	c.reportWorkspace(w)
	return bottle.WriteStatus(workspaceFile(c.dir), snapshot(c.manifest.Agent.Workspace))
}

// reportWorkspace lists what the agent left that will run, or be obeyed, when the operator uses the workspace.
func (c *cell) reportWorkspace(w io.Writer) {
	var then workspaceSnapshot
	if err := bottle.ReadJSON(workspaceFile(c.dir), maxSnapshot, &then); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintln(w, "bottle: "+prompt.Text(err.Error()))
		}
		return
	}
	if err := os.Remove(workspaceFile(c.dir)); err != nil {
		fmt.Fprintln(w, "bottle: "+prompt.Text(err.Error()))
	}
	now := snapshot(then.Workspace)
	var lines []string
	for rel, is := range now.Files {
		switch was, ok := then.Files[rel]; {
		case !ok:
			lines = append(lines, "new      "+prompt.Text(rel))
		case was != is:
			lines = append(lines, "changed  "+prompt.Text(rel))
		}
	}
	slices.Sort(lines)
	if len(lines) > 0 {
		fmt.Fprintf(w, "look at these before you use %s: they are run or obeyed by your tools, and appeared or changed while the bottle ran\n", prompt.Text(then.Workspace))
		for i, l := range lines {
			if i == maxListed {
				fmt.Fprintf(w, "  and %d more\n", len(lines)-i)
				break
			}
			fmt.Fprintln(w, "  "+l)
		}
	}
	if then.Cut || now.Cut {
		fmt.Fprintf(w, "%s has more than %d files; those beyond were not looked at\n", prompt.Text(then.Workspace), maxWalk)
	}
}
