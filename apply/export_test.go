package apply

// SetChunk bounds one pwrite, in bytes, so that a test sees more than one of a small file.
func (a *Applier) SetChunk(n int) { a.chunk = n }
