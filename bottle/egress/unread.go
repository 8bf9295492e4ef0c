package egress

import (
	"io"
	"net/http"
	"sync/atomic"
)

// bothWays lets an answer begin before the request's body has ended. Else net/http reads on
// before the answer's first byte goes out, and who streams both ways, or waits for word
// before it sends more, waits for ever. It is not to be had for HTTP/1.0 alone.
//
// In HTTP/1 such an answer ends the connection. What is left of the body is on it, and must
// not be read as a request; net/http reads it away if it can, but then panics at the next
// request, since it takes the end of a body for a time to watch the connection.
func bothWays(w http.ResponseWriter, r *http.Request) (http.ResponseWriter, *http.Request) {
	if r.ContentLength == 0 {
		return w, r
	}
	_ = http.NewResponseController(w).EnableFullDuplex()
	if r.ProtoMajor != 1 {
		return w, r
	}
	body := &watchedBody{ReadCloser: r.Body}
	out := r.WithContext(r.Context()) // a copy: net/http goes by the Body of its own
	out.Body = body
	return &earlyWriter{ResponseWriter: w, body: body}, out
}

// A watchedBody knows whether it was read to its end.
type watchedBody struct {
	io.ReadCloser
	ended atomic.Bool
}

// Read implements [io.Reader].
func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.ended.Store(true)
	}
	return n, err
}

// An earlyWriter says that the connection ends where an answer begins before the body's end.
type earlyWriter struct {
	http.ResponseWriter
	body  *watchedBody
	begun bool
}

// WriteHeader implements [http.ResponseWriter].
func (w *earlyWriter) WriteHeader(status int) {
	if status >= http.StatusOK && !w.begun {
		w.begun = true
		if !w.body.ended.Load() {
			w.Header().Set("Connection", "close")
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements [http.ResponseWriter].
func (w *earlyWriter) Write(p []byte) (int, error) {
	if !w.begun {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap is for [http.ResponseController].
func (w *earlyWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
