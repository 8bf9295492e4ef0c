package queue

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"bottle/bottle"
)

const ext = ".json"

// maxNames bounds how many names are read of a directory that the bundle writes.
const maxNames = 50_000

// A cancel is a file of queue/cancels.
type cancel struct {
	Schema int    `json:"schema"`
	ID     string `json:"id"`
}

// idOf returns the UUID that a file of the queue is named after; there is only one
// spelling of each.
func idOf(name string) (string, bool) {
	id, ok := strings.CutSuffix(name, ext)
	return id, ok && isID(id)
}

func isID(s string) bool {
	u, err := uuid.Parse(s)
	return err == nil && u.String() == s
}

// recordName is the name of a record's file. It holds both IDs, so that a request is
// found by either without reading any record.
func recordName(short, id string) string { return short + "." + id + ext }

func parseRecordName(name string) (short, id string, ok bool) {
	short, rest, ok := strings.Cut(name, ".")
	if !ok || shortNumber(short) == 0 {
		return "", "", false
	}
	id, ok = idOf(rest)
	return short, id, ok
}

func shortName(n int) string { return "r" + strconv.Itoa(n) }

// shortNumber returns the number of a short ID, or 0.
func shortNumber(short string) int {
	digits, ok := strings.CutPrefix(short, "r")
	if !ok || digits == "" || digits[0] < '1' || digits[0] > '9' {
		return 0
	}
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0
	}
	return n
}

// readNames lists a directory, up to maxNames and in no order, without following a link at its last element.
// A directory that is not there is empty.
func readNames(dir string) (names []string, more bool, err error) {
	f, err := openDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	names, err = f.Readdirnames(maxNames + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, false, fmt.Errorf("read %s: %w", dir, err)
	}
	if len(names) > maxNames {
		return names[:maxNames], true, nil
	}
	return names, false, nil
}

func openDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("read %s: not a directory; somebody replaced it: %w", dir, bottle.ErrTampered)
	}
	return f, err
}
