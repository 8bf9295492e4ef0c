package claudetest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// Key is the API key that [Prepare] has approved. It opens nothing.
const Key = "claudetest-no-key-at-all"

// Environ returns the variables for a Claude Code that lives in home and talks to the API at
// url alone. The caller adds PATH and, for the interactive mode, TERM.
func Environ(home, url string) []string {
	return []string{
		"HOME=" + home,
		"CLAUDE_CONFIG_DIR=" + filepath.Join(home, ".claude"),
		"ANTHROPIC_BASE_URL=" + url,
		"ANTHROPIC_API_KEY=" + Key,
		"IS_SANDBOX=1", // so that root may skip permissions
		"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1",
		"DISABLE_AUTOUPDATER=1",
	}
}

// Prepare writes into home, which must exist, what Claude Code would otherwise ask a user
// before its first interactive session in dir: the theme, the key, and whether to trust dir.
func Prepare(home, dir string) error {
	conf := filepath.Join(home, ".claude")
	if err := os.MkdirAll(conf, 0o700); err != nil {
		return fmt.Errorf("claudetest: %w", err)
	}
	state, err := json.Marshal(map[string]any{
		"hasCompletedOnboarding":        true,
		"theme":                         "dark",
		"bypassPermissionsModeAccepted": true,
		"customApiKeyResponses":         map[string]any{"approved": []string{Key[max(0, len(Key)-20):]}, "rejected": []string{}},
		"projects": map[string]any{dir: map[string]any{
			"hasTrustDialogAccepted": true, "hasCompletedProjectOnboarding": true,
		}},
	})
	if err != nil {
		return fmt.Errorf("claudetest: %w", err)
	}
	settings, err := json.Marshal(map[string]any{"skipDangerousModePermissionPrompt": true})
	if err != nil {
		return fmt.Errorf("claudetest: %w", err)
	}
	for name, b := range map[string][]byte{".claude.json": state, "settings.json": settings} {
		if err := os.WriteFile(filepath.Join(conf, name), b, 0o600); err != nil {
			return fmt.Errorf("claudetest: %w", err)
		}
	}
	return nil
}
