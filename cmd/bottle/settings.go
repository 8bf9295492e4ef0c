package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"
)

// Settings are the operator's own, from flags, then BOTTLE_* variables, then
// $XDG_CONFIG_HOME/bottle/config.yaml, then the defaults below.
type settings struct {
	StateDir string // state_dir: where bottles keep their state
	Backend  string // backend: local or docker; empty: as the manifest has it
	Editor   string // editor: a command line; default $VISUAL, $EDITOR, then vi
}

// settingKeys maps each config key to its flag.
var settingKeys = map[string]string{
	"state_dir": "state-dir",
	"backend":   "backend",
	"editor":    "editor",
}

func addSettingFlags(f *pflag.FlagSet) {
	f.String("state-dir", "", "where bottles keep their state (BOTTLE_STATE_DIR; default $XDG_STATE_HOME/bottle)")
	f.String("editor", "", "editor for --edit and review, a command line (BOTTLE_EDITOR; default $VISUAL, $EDITOR, vi)")
}

func loadSettings(f *pflag.FlagSet) (settings, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return settings{}, fmt.Errorf("find the home directory: %w", err)
	}
	v := viper.New()
	v.SetEnvPrefix("bottle")
	v.SetDefault("state_dir", filepath.Join(cmp.Or(os.Getenv("XDG_STATE_HOME"), filepath.Join(home, ".local", "state")), "bottle"))
	v.SetDefault("editor", cmp.Or(os.Getenv("VISUAL"), os.Getenv("EDITOR"), "vi"))
	for key, flag := range settingKeys {
		if err := v.BindEnv(key); err != nil {
			return settings{}, err
		}
		if fl := f.Lookup(flag); fl != nil {
			if err := v.BindPFlag(key, fl); err != nil {
				return settings{}, err
			}
		}
	}
	file := filepath.Join(cmp.Or(os.Getenv("XDG_CONFIG_HOME"), filepath.Join(home, ".config")), "bottle", "config.yaml")
	v.SetConfigFile(file)
	if err := v.ReadInConfig(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return settings{}, fmt.Errorf("read %s: %w", file, err)
	}
	for _, key := range v.AllKeys() {
		if _, ok := settingKeys[key]; !ok {
			return settings{}, fmt.Errorf("%s: unknown key %q; it knows state_dir, backend and editor", file, key)
		}
	}
	dir, err := filepath.Abs(v.GetString("state_dir"))
	if err != nil {
		return settings{}, fmt.Errorf("state_dir: %w", err)
	}
	s := settings{StateDir: dir, Backend: v.GetString("backend"), Editor: v.GetString("editor")}
	if s.Backend != "" && s.Backend != backendLocal && s.Backend != backendDocker {
		return settings{}, usagef("backend %q is not there; use local or docker", s.Backend)
	}
	return s, nil
}
