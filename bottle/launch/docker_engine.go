package launch

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/docker/client"

	"bottle/bottle"
)

// NewEngine is a client of the engine that the docker command would use here: that of DOCKER_HOST, else that of the
// docker context in DOCKER_CONTEXT or in the command's settings, else the usual socket. It does not connect yet.
func NewEngine() (*client.Client, error) {
	host, err := engineHost()
	if err != nil {
		return nil, err
	}
	return engineAt(host)
}

// engineOf is the engine that a bottle was started on, until it is stopped: another shell, or a context that was
// changed since, must not make its containers seem gone. Else it is that of [NewEngine].
func engineOf(dir *bottle.Dir) (*client.Client, error) {
	m, err := dir.LoadMetadata()
	if err != nil || m.Docker == nil || m.Docker.Engine == "" || !m.StoppedAt.IsZero() {
		return NewEngine()
	}
	return engineAt(m.Docker.Engine)
}

// engineAt is the engine at that address; empty is the usual one. What DOCKER_TLS_VERIFY and DOCKER_CERT_PATH say holds for it.
func engineAt(host string) (*client.Client, error) {
	opts := []client.Opt{client.WithTLSClientConfigFromEnv(), client.WithVersionFromEnv(), client.WithAPIVersionNegotiation()}
	if host != "" {
		opts = append(opts, client.WithHost(host))
	}
	cli, err := client.NewClientWithOpts(opts...)
	if err != nil {
		return nil, fmt.Errorf("docker: %w (see DOCKER_HOST)", err)
	}
	return cli, nil
}

// engineHost is the address of the engine, empty for the usual one, by the order of the docker command.
func engineHost() (string, error) {
	if host := os.Getenv(client.EnvOverrideHost); host != "" {
		if strings.HasPrefix(host, "ssh://") {
			return "", fmt.Errorf("DOCKER_HOST: %s is %w", host, errElsewhere)
		}
		return host, nil
	}
	dir, err := dockerConfig()
	if err != nil {
		return "", err
	}
	name := os.Getenv("DOCKER_CONTEXT")
	if name == "" {
		var settings struct{ CurrentContext string }
		if err := readDocker(filepath.Join(dir, "config.json"), &settings); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		name = settings.CurrentContext
	}
	if name == "" || name == "default" {
		return "", nil
	}
	return contextHost(dir, name)
}

var errElsewhere = errors.New("no engine of this machine, whose files a bottle's containers mount; set DOCKER_HOST to unix:///PATH of one that is")

// contextHost reads a docker context, which lies under the hash of its name. One with certificates, for another
// machine's engine, is refused like ssh.
func contextHost(dir, name string) (string, error) {
	sum := sha256.Sum256([]byte(name))
	var meta struct {
		Endpoints struct {
			Docker struct{ Host string } `json:"docker"`
		}
	}
	err := readDocker(filepath.Join(dir, "contexts", "meta", hex.EncodeToString(sum[:]), "meta.json"), &meta)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("docker context %q is not there; docker context ls shows those that are, docker context use switches, and DOCKER_HOST goes before: %w", name, bottle.ErrNotFound)
	}
	if err != nil {
		return "", err
	}
	host := meta.Endpoints.Docker.Host
	if host != "" && !strings.HasPrefix(host, "unix://") {
		return "", fmt.Errorf("docker context %q: %s is %w", name, host, errElsewhere)
	}
	return host, nil
}

// dockerConfig is where the docker command keeps its settings.
func dockerConfig() (string, error) {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return dir, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("docker: %w", err)
	}
	return filepath.Join(home, ".docker"), nil
}

func readDocker(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("docker: %w", err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("docker: %s: %w", path, err)
	}
	return nil
}
