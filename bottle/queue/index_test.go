package queue

import (
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bottle/bottle"
)

// fill sets every field of v, so that a field that a codec leaves out shows.
func fill(t *testing.T, v reflect.Value, n *int) {
	t.Helper()
	*n++
	switch v.Kind() {
	case reflect.String:
		v.SetString("s" + string(rune('a'+*n%26)))
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint64:
		v.SetUint(uint64(*n))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(t, v.Index(i), n)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), n)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(int64(*n), int64(*n)).UTC()))
			return
		}
		for i := range v.NumField() {
			fill(t, v.Field(i), n)
		}
	default:
		t.Fatalf("fill %s: teach this test, and the codec", v.Type())
	}
}

func TestIndexKeepsEveryField(t *testing.T) {
	n := 0
	full, empty := &row{name: "full", told: true, firstSeen: time.Unix(7, 7).UTC()}, &row{name: "empty", firstSeen: time.Time{}}
	fill(t, reflect.ValueOf(&full.Listing).Elem(), &n)
	fill(t, reflect.ValueOf(&full.stamp).Elem(), &n)
	full.Short, full.number = "r12", 12
	full.Digest, full.Risks = "", nil // these depend on the config, and are never kept
	full.Bottle, empty.Bottle = "b", "b"
	got, err := decodeIndex(encodeIndex([]*row{full, empty}), "b")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]*row{"full": full, "empty": empty}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(row{})); diff != "" {
		t.Error(diff)
	}
}

func FuzzDecodeRows(f *testing.F) {
	f.Add(string(encodeIndex([]*row{{name: "a", Listing: Listing{Entries: []bottle.Entry{{Host: "h", Ports: []int{1}}}}}})[len(indexMagic)+4:]))
	f.Add("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
	f.Fuzz(func(t *testing.T, s string) {
		d := decoder{s: s}
		for d.err == nil && d.s != "" {
			before := len(d.s)
			d.row()
			if len(d.s) >= before && d.err == nil {
				t.Fatal("no progress")
			}
		}
	})
}
