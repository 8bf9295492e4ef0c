package egress_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// A rawFrame is a frame as a case of testdata/corpus/http2 writes it, be it one that must not
// exist. README.md there describes the form.
type rawFrame struct {
	kind   http2.FrameType
	flags  http2.Flags
	stream uint32
	before []byte // the payload up to the header block
	fields []hpack.HeaderField
	after  []byte // the rest of the payload
	split  int    // bytes of the header block in each frame, the rest in CONTINUATION; 0: all in one
	bare   bool   // after is all, without a frame's head
	table  int    // the encoder's table is to have this many bytes from here on, if not -1
}

// frames reads a script. own are the fields that METHOD and PATH stand for; self is the
// stream that S is.
func frames(script string, own func(method, path string) []hpack.HeaderField, self uint32) ([]rawFrame, error) {
	var all []rawFrame
	for line := range strings.SplitSeq(strings.ReplaceAll(script, " && ", "\r\n"), "\r\n") {
		if line == "" {
			continue
		}
		words := strings.Fields(line)
		f, ok, err := frameLine(words, line, own, self)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%q: %w", line, err)
		case ok:
			all = append(all, f)
			continue
		case len(all) == 0:
			return nil, fmt.Errorf("%q: a field, before any frame", line)
		}
		last := &all[len(all)-1]
		i := strings.Index(line[1:], ":") + 1
		if i == 0 {
			return nil, fmt.Errorf("%q: neither a frame nor a field", line)
		}
		last.fields = append(last.fields, hpack.HeaderField{Name: unescape(line[:i]), Value: unescape(strings.TrimPrefix(line[i+1:], " "))})
	}
	return all, nil
}

func frameLine(words []string, line string, own func(method, path string) []hpack.HeaderField, self uint32) (f rawFrame, ok bool, err error) {
	f.table = -1
	kinds := map[string]http2.FrameType{
		"HEADERS": http2.FrameHeaders, "CONTINUATION": http2.FrameContinuation, "DATA": http2.FrameData, "RST": http2.FrameRSTStream,
		"PRIORITY": http2.FramePriority, "PUSH": http2.FramePushPromise, "SETTINGS": http2.FrameSettings, "PING": http2.FramePing,
		"GOAWAY": http2.FrameGoAway, "WINDOW": http2.FrameWindowUpdate,
	}
	number := func(s string) uint32 {
		base := uint32(0)
		if rest, ok := strings.CutPrefix(s, "S"); ok && self != 0 {
			if base = self; rest == "" {
				return base
			}
			s = rest
		}
		n, e := strconv.ParseUint(strings.TrimPrefix(s, "+"), 0, 32)
		if e != nil {
			err = e
		}
		return base + uint32(n)
	}
	switch words[0] {
	case "RAW":
		f.bare, f.after = true, []byte(unescape(strings.TrimPrefix(line, "RAW ")))
		return f, true, nil
	case "TABLE":
		f.bare, f.table = true, int(number(words[1]))
		return f, true, err
	case "FRAME": // type flags stream payload
		f.kind, f.flags, f.stream = http2.FrameType(number(words[1])), http2.Flags(number(words[2])), number(words[3])
		if parts := strings.SplitN(line, " ", 5); len(parts) == 5 {
			f.after = []byte(unescape(parts[4]))
		}
		return f, true, err
	}
	f.kind, ok = kinds[words[0]]
	if !ok {
		return f, false, nil
	}
	args := words[1:]
	var numbers []uint32
	for len(args) > 0 && (args[0][0] >= '0' && args[0][0] <= '9' || self != 0 && args[0][0] == 'S') && f.kind != http2.FrameSettings {
		numbers, args = append(numbers, number(args[0])), args[1:]
	}
	arg := func(i int) uint32 {
		if i < len(numbers) {
			return numbers[i]
		}
		return 0
	}
	if f.kind != http2.FrameSettings && f.kind != http2.FrameGoAway && f.kind != http2.FramePing {
		f.stream = arg(0)
	}
	u32 := func(n uint32) { f.after = binary.BigEndian.AppendUint32(f.after, n) }
	pad := -1
	switch f.kind {
	case http2.FrameHeaders, http2.FrameContinuation, http2.FramePushPromise:
		f.flags = http2.FlagHeadersEndHeaders
		if f.kind == http2.FramePushPromise {
			f.before = binary.BigEndian.AppendUint32(f.before, arg(1))
		}
		for len(args) > 0 {
			name, value, _ := strings.Cut(args[0], "=")
			switch name {
			case "end":
				f.flags |= http2.FlagHeadersEndStream
			case "open":
				f.flags &^= http2.FlagHeadersEndHeaders
			case "prio":
				f.flags |= http2.FlagHeadersPriority
				f.before = append(binary.BigEndian.AppendUint32(f.before, number(value)), 16)
			case "pad":
				pad = int(number(value))
			case "split":
				f.split = int(number(value))
			case "block":
				f.after = []byte(unescape(value))
			default:
				if len(args) < 2 {
					return f, true, fmt.Errorf("%q: METHOD PATH", args)
				}
				f.fields = own(unescape(args[0]), unescape(args[1]))
				args = args[1:]
			}
			args = args[1:]
		}
	case http2.FrameData:
		for len(args) > 0 {
			if args[0] == "end" {
				f.flags |= http2.FlagDataEndStream
			} else if value, ok := strings.CutPrefix(args[0], "pad="); ok {
				pad = int(number(value))
			} else {
				break
			}
			args = args[1:]
		}
		f.after = []byte(unescape(strings.Join(args, " ")))
	case http2.FrameRSTStream:
		u32(arg(1))
	case http2.FrameWindowUpdate:
		u32(arg(1))
	case http2.FramePriority:
		u32(arg(1))
		f.after = append(f.after, 16)
	case http2.FrameGoAway:
		u32(arg(0))
		u32(arg(1))
	case http2.FramePing:
		f.after = make([]byte, 8)
		if slices.Contains(args, "ack") {
			f.flags = http2.FlagPingAck
		}
	case http2.FrameSettings:
		for _, a := range args {
			id, value, _ := strings.Cut(a, "=")
			if id == "ack" {
				f.flags = http2.FlagSettingsAck
				continue
			}
			f.after = binary.BigEndian.AppendUint16(f.after, uint16(number(id)))
			u32(number(value))
		}
	}
	if pad >= 0 {
		f.flags |= http2.FlagDataPadded
		f.before = append([]byte{byte(pad)}, f.before...)
		f.after = append(f.after, make([]byte, pad&0xff)...)
		if pad > 0xff { // says more than there is
			f.after = f.after[:len(f.after)-pad&0xff]
		}
	}
	return f, true, err
}

// A frameWriter turns them into bytes. It has the state of the header compression.
type frameWriter struct {
	buf bytes.Buffer
	enc *hpack.Encoder
	out bytes.Buffer
}

func newFrameWriter() *frameWriter {
	w := &frameWriter{}
	w.enc = hpack.NewEncoder(&w.buf)
	return w
}

func (w *frameWriter) bytes(all ...rawFrame) []byte {
	w.out.Reset()
	fr := http2.NewFramer(&w.out, nil)
	put := func(kind http2.FrameType, flags http2.Flags, stream uint32, payload []byte) {
		_ = fr.WriteRawFrame(kind, flags, stream, payload)
	}
	for _, f := range all {
		if f.table >= 0 {
			w.enc.SetMaxDynamicTableSize(uint32(f.table))
		}
		if f.bare {
			w.out.Write(f.after)
			continue
		}
		w.buf.Reset()
		for _, h := range f.fields {
			_ = w.enc.WriteField(h)
		}
		block := slices.Clone(w.buf.Bytes())
		if f.split == 0 {
			put(f.kind, f.flags, f.stream, slices.Concat(f.before, block, f.after))
			continue
		}
		kind, flags := f.kind, f.flags
		for first := true; first || len(block) > 0; first = false {
			n := min(f.split, len(block))
			part := block[:n]
			if block = block[n:]; len(block) > 0 {
				flags &^= http2.FlagHeadersEndHeaders
			} else {
				flags |= f.flags & http2.FlagHeadersEndHeaders
			}
			if first {
				part = slices.Concat(f.before, part, f.after)
			}
			put(kind, flags, f.stream, part)
			kind, flags = http2.FrameContinuation, 0
		}
	}
	return w.out.Bytes()
}
