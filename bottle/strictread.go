package bottle

import (
	"fmt"
	"reflect"
)

// DecodeYAML reads a text of the operator's into the struct that v points to, as strictly as
// config files are read: what it does not mention keeps its value. Errors name the file, which
// is only for that, the line and the field, and wrap [ErrInvalid].
func DecodeYAML(file string, b []byte, v any) error {
	p := reflect.ValueOf(v)
	if p.Kind() != reflect.Pointer || p.IsNil() || p.Elem().Kind() != reflect.Struct {
		return fmt.Errorf("decode %s: into a %T, which is no pointer to a struct", file, v)
	}
	d := strictDecoder{file}
	root, err := d.document(b)
	if err != nil {
		return err
	}
	return d.decode(root, p.Elem(), "")
}
