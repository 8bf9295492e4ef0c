package audit

import (
	"bytes"
	"errors"
	"testing"
)

// Verify on any bytes: it never panics, and agrees with what Append would do at the log's end. It sees inside, since
// with files and syncs in the loop the fuzzer gets nowhere.
func FuzzVerify(f *testing.F) {
	h := firstHead()
	var log []byte
	for range 3 {
		line, err := encode(Entry{Schema: Schema, Seq: h.Seq + 1, Event: Applied, Change: "c", Prev: h.Hash})
		if err != nil {
			f.Fatal(err)
		}
		e, err := decode(line[:len(line)-1])
		if err != nil {
			f.Fatal(err)
		}
		log = append(log, line...)
		h = head{Schema: Schema, Seq: e.Seq, Hash: e.Hash, Size: int64(len(log))}
	}
	f.Add(log, h.Seq, h.Hash, h.Size)
	f.Add(log[:len(log)-5], h.Seq, h.Hash, h.Size)
	f.Add(append([]byte("\n\n{}\n"), log...), h.Seq, h.Hash, h.Size)
	f.Add(append(log, "{\x00"...), h.Seq, h.Hash, h.Size)
	f.Add(append(log, "{}\n"...), h.Seq, h.Hash, h.Size)
	f.Add([]byte{}, uint64(0), genesis, int64(0))

	f.Fuzz(func(t *testing.T, log []byte, seq uint64, hash string, size int64) {
		h := head{Schema: Schema, Seq: seq, Hash: hash, Size: size}
		s := state{log: bytes.NewReader(log), size: int64(len(log)), head: &h}
		if h.check() != nil {
			s.head, s.headErr = nil, errHead
		}
		report, err := s.verify()
		if err != nil {
			if !errors.Is(err, ErrNewer) {
				t.Fatal(err)
			}
			return
		}
		if len(report.Faults) > 0 {
			return
		}
		if s.head == nil || report.Head != hash || report.Lines != seq || int64(len(log)) < size {
			t.Fatalf("sound: %+v, with head %+v", report, h)
		}
		last, err := lineEndingAt(s.log, size)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decode(last); err != nil && seq > 0 {
			t.Fatalf("sound, but its last line: %v", err)
		}
		if kind, _, _ := classify(h, log[size:]); kind == restForeign && int64(len(log)) > size {
			t.Fatal("sound, but Append would refuse what follows")
		}
	})
}

func FuzzParseHead(f *testing.F) {
	f.Add([]byte(`{"schema":1,"seq":18446744073709551615,"hash":"","size":-1}`))
	f.Add([]byte(`{"schema":1,"seq":0,"hash":"` + genesis + `","size":0}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, err := parseHead(raw)
		if err == nil && (h.Schema != Schema || h.Size < 0 || h.Seq == 0 && h != firstHead()) {
			t.Fatalf("accepted %+v", h)
		}
	})
}
