package apply

// Covers is what decides whether an edit narrows, widens or does both.
var Covers = covers

// SetChunk bounds one pwrite, in bytes, so that a test sees more than one of a small file.
func (a *Applier) SetChunk(n int) { a.chunk = n }

// SetWriteJSON replaces what writes journals.
func (a *Applier) SetWriteJSON(f func(path string, v any) error) { a.writeJSON = f }
