package bottle

import (
	"fmt"
	"strings"
)

// maxNameLen bounds a name so that it fits a compose project and a container's name.
const maxNameLen = 40

// CheckName reports whether s can name a bottle or a credential: up to 40 lower-case
// letters, digits and inner hyphens, so that it is safe in a path, a compose project, a
// container name and a terminal.
func CheckName(s string) error {
	const inner = "abcdefghijklmnopqrstuvwxyz0123456789-"
	if s == "" || len(s) > maxNameLen || strings.Trim(s, inner) != "" || s[0] == '-' || s[len(s)-1] == '-' {
		return invalidError(fmt.Sprintf("name %q: use up to 40 lower-case letters, digits and inner hyphens", clip(s, 60)))
	}
	return nil
}
