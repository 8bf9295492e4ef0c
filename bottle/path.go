package bottle

// NormalizePath is owned by the matching rules; see its tests for the table.
func NormalizePath(p string) (string, error) {
	if p == "" || p[0] != '/' {
		return "", invalid("path", "%q must start with /", clip(p, 80))
	}
	return p, nil
}
