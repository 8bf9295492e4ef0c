package bottle

import (
	"fmt"
	"regexp"
)

var nameForm = regexp.MustCompile(`\A[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?\z`)

// CheckName reports whether s can name a bottle or a credential: up to 40 lower-case
// letters, digits and inner hyphens, so that it is safe in a path, a compose project, a
// container name and a terminal.
func CheckName(s string) error {
	if !nameForm.MatchString(s) {
		return invalidError(fmt.Sprintf("name %q: use up to 40 lower-case letters, digits and inner hyphens", clip(s, 60)))
	}
	return nil
}
