package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"time"

	"bottle/bottle"
)

// The index keeps a row for each record, so that a listing of 10,000 needs not open as
// many files. It is derived: a row counts only while the record's file has the stamp that
// it had when the row was made, and what does not decode is made anew from the records.
// Nothing is decided by it but which records need not be opened.
//
//	records.index   "bottle index 2\n", CRC-32C of the rest (4 bytes, little endian), rows
//
// A row is its fields in the order of the codec below: strings with their length before
// them, numbers as varints. It lies beside records/, whose own time it must not change.
const (
	indexFile  = "records.index"
	indexMagic = "bottle index 2\n"
)

// A row is what is known of a record without opening it.
type row struct {
	Listing
	name      string // of the file
	number    int    // of the short ID
	stamp     stamp
	firstSeen time.Time
	told      bool // the answer in decisions/ was seen to be that of this record
}

// staleRows is how many rows may be out of date before the index is written again.
func staleRows(n int) int { return max(8, n/16) }

func readIndex(path, bottleName string) map[string]*row {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	rows, err := decodeIndex(b, bottleName)
	if err != nil {
		return nil
	}
	return rows
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encodeIndex(rows []*row) []byte {
	var e encoder
	for _, r := range rows {
		e.row(r)
	}
	head := binary.LittleEndian.AppendUint32([]byte(indexMagic), crc32.Checksum(e, castagnoli))
	return append(head, e...)
}

var errIndex = fmt.Errorf("index: %w", bottle.ErrCorrupt)

func decodeIndex(b []byte, bottleName string) (map[string]*row, error) {
	const head = len(indexMagic) + 4
	if len(b) < head || string(b[:len(indexMagic)]) != indexMagic {
		return nil, errIndex
	}
	body := b[head:]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(b[len(indexMagic):]) {
		return nil, errIndex
	}
	d := decoder{s: string(body)} // one copy, which all strings share
	const usual = 400             // bytes of a row
	rows := make(map[string]*row, len(d.s)/usual)
	for d.err == nil && d.s != "" {
		r := d.row()
		r.Bottle = bottleName
		rows[r.name] = r
	}
	return rows, d.err
}

type encoder []byte

func (e *encoder) str(s string) {
	*e = append(binary.AppendUvarint(*e, uint64(len(s))), s...)
}
func (e *encoder) num(n int64) { *e = binary.AppendVarint(*e, n) }

func (e *encoder) time(t time.Time) {
	e.num(t.Unix())
	e.num(int64(t.Nanosecond()))
}

func (e *encoder) row(r *row) {
	e.str(r.name)
	e.num(int64(r.stamp.Ino)) //nolint:gosec // G115: only compared
	e.num(r.stamp.Size)
	e.num(r.stamp.Mtime)
	e.num(r.stamp.Ctime)
	e.num(r.stamp.Taken)
	e.time(r.firstSeen)
	told := int64(0)
	if r.told {
		told = 1
	}
	e.num(told)
	e.str(r.ID)
	e.str(r.Short)
	e.str(r.Kind)
	e.str(string(r.Status))
	e.entries(r.Entries)
	e.entries(r.Remove)
	e.str(r.Credential)
	e.num(int64(r.TTLSeconds))
	e.str(r.Reason)
	e.num(int64(r.Attempts))
	e.time(r.CreatedAt)
	e.time(r.ExpiresAt)
}

func (e *encoder) entries(list []bottle.Entry) {
	e.num(int64(len(list)))
	for _, x := range list {
		e.str(string(x.Host))
		e.num(int64(len(x.Ports)))
		for _, p := range x.Ports {
			e.num(int64(p))
		}
		e.num(int64(len(x.Matches)))
		for _, m := range x.Matches {
			e.str(m.Method)
			if m.Path == nil {
				e.num(0)
			} else {
				e.num(1)
				e.str(string(m.Path.Type))
				e.str(m.Path.Value)
			}
			e.num(int64(len(m.Headers)))
			for _, h := range m.Headers {
				e.str(string(h.Type))
				e.str(h.Name)
				e.str(h.Value)
			}
			e.num(int64(len(m.Query)))
			for _, q := range m.Query {
				e.str(string(q.Type))
				e.str(q.Name)
				e.str(q.Value)
			}
		}
	}
}

// A decoder reads from s; after the first error it returns zero values.
type decoder struct {
	s   string
	err error
}

func (d *decoder) num() int64 {
	if d.err != nil {
		return 0
	}
	var head [binary.MaxVarintLen64]byte
	n, size := binary.Varint(head[:copy(head[:], d.s)])
	if size <= 0 {
		d.err = errors.Join(d.err, errIndex)
		return 0
	}
	d.s = d.s[size:]
	return n
}

func (d *decoder) str() string {
	if d.err != nil {
		return ""
	}
	var head [binary.MaxVarintLen64]byte
	n, size := binary.Uvarint(head[:copy(head[:], d.s)])
	if size <= 0 || n > uint64(len(d.s)) || int(n) > len(d.s)-size { //nolint:gosec // G115: at most len(d.s)
		d.err = errors.Join(d.err, errIndex)
		return ""
	}
	end := size + int(n) //nolint:gosec // G115: see above
	s := d.s[size:end]
	d.s = d.s[end:]
	return s
}

// count is a length of things that take a byte each, at least.
func (d *decoder) count() int {
	n := d.num()
	if n < 0 || n > int64(len(d.s)) {
		d.err = errors.Join(d.err, errIndex)
		return 0
	}
	return int(n)
}

func (d *decoder) time() time.Time {
	sec, nsec := d.num(), d.num()
	return time.Unix(sec, nsec).UTC()
}

func (d *decoder) row() *row {
	r := &row{}
	r.name = d.str()
	r.stamp = stamp{Ino: uint64(d.num()), Size: d.num(), Mtime: d.num(), Ctime: d.num(), Taken: d.num()} //nolint:gosec // G115: only compared
	r.firstSeen = d.time()
	r.told = d.num() == 1
	r.ID = d.str()
	r.Short = d.str()
	r.number = shortNumber(r.Short)
	r.Kind = d.str()
	r.Status = bottle.Status(d.str())
	r.Entries = d.entries()
	r.Remove = d.entries()
	r.Credential = d.str()
	r.TTLSeconds = int(d.num())
	r.Reason = d.str()
	r.Attempts = int(d.num())
	r.CreatedAt = d.time()
	r.ExpiresAt = d.time()
	return r
}

func (d *decoder) entries() []bottle.Entry {
	n := d.count()
	if n == 0 {
		return nil
	}
	list := make([]bottle.Entry, n)
	for i := range list {
		x := &list[i]
		x.Host = bottle.Host(d.str())
		if n := d.count(); n > 0 {
			x.Ports = make([]int, n)
			for j := range x.Ports {
				x.Ports[j] = int(d.num())
			}
		}
		n := d.count()
		if n == 0 {
			continue
		}
		x.Matches = make([]bottle.Match, n)
		for j := range x.Matches {
			m := &x.Matches[j]
			m.Method = d.str()
			if d.num() == 1 {
				m.Path = &bottle.PathMatch{Type: bottle.MatchType(d.str()), Value: d.str()}
			}
			if n := d.count(); n > 0 {
				m.Headers = make([]bottle.HeaderMatch, n)
				for k := range m.Headers {
					m.Headers[k] = bottle.HeaderMatch{Type: bottle.MatchType(d.str()), Name: d.str(), Value: d.str()}
				}
			}
			if n := d.count(); n > 0 {
				m.Query = make([]bottle.QueryMatch, n)
				for k := range m.Query {
					m.Query[k] = bottle.QueryMatch{Type: bottle.MatchType(d.str()), Name: d.str(), Value: d.str()}
				}
			}
		}
	}
	return list
}
