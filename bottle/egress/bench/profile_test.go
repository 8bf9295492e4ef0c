package bench

import (
	"errors"
	"os"
	"runtime"
	"runtime/pprof"
)

// profile writes what a child does to PREFIX.cpu, PREFIX.mutex and PREFIX.allocs:
// BOTTLE_BENCH_PROFILE=PREFIX.
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
		errs := []error{f.Close()}
		for _, name := range []string{"mutex", "allocs"} {
			p, err := os.OpenFile(prefix+"."+name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			errs = append(errs, pprof.Lookup(name).WriteTo(p, 0), p.Close())
		}
		return errors.Join(errs...)
	}, nil
}
