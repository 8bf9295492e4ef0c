package bench

import (
	"errors"
	"os"
	"runtime"
	"runtime/pprof"
)

// profile writes what a child does to PREFIX.cpu and PREFIX.mutex: BOTTLE_BENCH_PROFILE=PREFIX.
func profile(prefix string) (stop func() error, err error) {
	if prefix == "" {
		return func() error { return nil }, nil
	}
	runtime.SetMutexProfileFraction(10)
	f, err := os.OpenFile(prefix+".cpu", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, err
	}
	return func() error {
		pprof.StopCPUProfile()
		m, err := os.OpenFile(prefix+".mutex", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		return errors.Join(f.Close(), pprof.Lookup("mutex").WriteTo(m, 0), m.Close())
	}, nil
}
