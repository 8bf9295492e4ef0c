package bottle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// LoadMetadata reads metadata.json. A bottle that was never started has none: [ErrNotFound].
func (d *Dir) LoadMetadata() (Metadata, error) {
	var m Metadata
	err := ReadJSON(d.Metadata(), 0, &m)
	if errors.Is(err, fs.ErrNotExist) {
		return Metadata{}, fmt.Errorf("bottle %s has never been started (no %s): %w", d.Name(), d.Metadata(), ErrNotFound)
	}
	return m, err
}

// UpdateMetadata rewrites metadata.json durably with what change makes of it. The caller
// holds the bottle's lock; a missing file starts from the zero Metadata.
func (d *Dir) UpdateMetadata(change func(*Metadata) error) error {
	m, err := d.LoadMetadata()
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	m.Schema = Schema
	if m.Name == "" {
		m.Name = d.Name()
	}
	if err := change(&m); err != nil {
		return err
	}
	return WriteJSON(d.Metadata(), m)
}

// ProcessOf returns the identity of a running process, from /proc.
func ProcessOf(pid int) (ProcessID, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ProcessID{}, fmt.Errorf("process %d: %w", pid, err)
	}
	// The second field is the command in parentheses and may hold spaces and parentheses.
	rest := string(b[strings.LastIndexByte(string(b), ')')+1:])
	f := strings.Fields(rest)
	const startTime = 22 - 3 // proc(5) counts from 1, and two fields are cut off
	if len(f) <= startTime {
		return ProcessID{}, fmt.Errorf("process %d: /proc/%d/stat: %w", pid, pid, ErrCorrupt)
	}
	if f[0] == "Z" || f[0] == "X" {
		return ProcessID{}, fmt.Errorf("process %d: %w", pid, os.ErrProcessDone)
	}
	start, err := strconv.ParseUint(f[startTime], 10, 64)
	if err != nil {
		return ProcessID{}, fmt.Errorf("process %d: %w", pid, err)
	}
	return ProcessID{PID: pid, Start: start}, nil
}

// Alive reports whether that very process runs (a zombie does not).
func (p ProcessID) Alive() bool {
	if p.PID <= 0 {
		return false
	}
	now, err := ProcessOf(p.PID)
	return err == nil && now == p
}
