package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

const maxHead = 4 << 10 // bytes

// head is the content of audit.head: the last line that was acknowledged, and the size of the log up to its end.
type head struct {
	Schema int    `json:"schema"`
	Seq    uint64 `json:"seq"`
	Hash   string `json:"hash"`
	Size   int64  `json:"size"`
}

// errHead is what a head that cannot be used is, but for one of a newer schema.
var errHead = errors.New("not an audit head")

func firstHead() head { return head{Schema: Schema, Hash: genesis} }

// readHead returns an error that is fs.ErrNotExist, ErrNewer or errHead where it is one of these.
func readHead(path string) (head, error) {
	f, _, err := openRegular(path, os.O_RDONLY)
	if err != nil {
		return head{}, fmt.Errorf("read audit head: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxHead+1))
	if err != nil {
		return head{}, fmt.Errorf("read audit head: %w", err)
	}
	h, err := parseHead(raw)
	if err != nil {
		return head{}, fmt.Errorf("%s: %w", path, err)
	}
	return h, nil
}

func parseHead(raw []byte) (head, error) {
	var h head
	if len(raw) > maxHead || json.Unmarshal(raw, &h) != nil {
		return head{}, errHead
	}
	if err := h.check(); err != nil {
		return head{}, err
	}
	return h, nil
}

func (h head) check() error {
	if h.Schema > Schema {
		return fmt.Errorf("schema %d: %w", h.Schema, ErrNewer)
	}
	empty := h.Seq == 0 && h.Size == 0 && h.Hash == genesis
	filled := h.Seq > 0 && h.Size > 0 && len(h.Hash) == len(genesis)
	if h.Schema < 1 || !empty && !filled {
		return errHead
	}
	return nil
}

// stageHead writes h beside path, not yet synced. The name is fixed, since only the holder of the lock comes here,
// and so a crash leaves one such file at most.
func stageHead(path string, h head) (*os.File, error) {
	raw, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encode audit head: %w", err)
	}
	f, _, err := openRegular(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return nil, fmt.Errorf("write audit head: %w", err)
	}
	if _, err := io.Copy(f, bytes.NewReader(append(raw, '\n'))); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("write audit head: %w", err)
	}
	return f, nil
}

// writeHead replaces the head durably.
func writeHead(path string, h head) error {
	f, err := stageHead(path, h)
	if err != nil {
		return err
	}
	err = errors.Join(f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write audit head: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
