package pipelock

import (
	"fmt"
	"reflect"

	"gopkg.in/yaml.v3"

	"bottle/bottle"
)

// Validate says what the daemon would say to the new file: nil, or why it would refuse it.
// The old one may be empty, at the first start. A change that a reload refuses but a new
// process takes is not an error: see [NeedsReplacement].
func Validate(old, new []byte) error { //nolint:revive // old and new are what they are
	if len(old) > 0 {
		if _, err := Parse(old); err != nil {
			return fmt.Errorf("in force: %w", err)
		}
	}
	if _, err := Parse(new); err != nil {
		return err
	}
	if _, err := bottle.CheckSeal(new); err != nil {
		return fmt.Errorf("pipelock.yaml: %w", err)
	}
	return nil
}

// NeedsReplacement reports whether going from old to new takes a new process. Pipelock in
// strict mode refuses a reload that it takes for a security downgrade: more in
// trusted_domains, in tls_interception.passthrough_domains, in ssrf.ip_allowlist, and a
// dozen more (internal/config/reloadwarn.go of pipelock 2.3). A new process takes them all.
// Only the allowlist is known to reload both ways, so any other key whose value differs
// counts; comments and order do not. Files that do not parse count too.
func NeedsReplacement(old, new []byte) bool { //nolint:revive // as above
	a, errA := settings(old)
	b, errB := settings(new)
	return errA != nil || errB != nil || !reflect.DeepEqual(a, b)
}

func settings(b []byte) (map[string]any, error) {
	if _, err := Parse(b); err != nil {
		return nil, err
	}
	var m map[string]any
	if err := yaml.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	delete(m, keyAllowlist)
	return m, nil
}
