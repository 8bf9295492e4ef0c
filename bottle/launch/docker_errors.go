package launch

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/client"
)

// explain says what was tried and, for what an operator can mend, how. Nil stays nil.
func (d *Docker) explain(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, explainEngine(d.cli.DaemonHost(), err))
}

func explainEngine(host string, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if advice := engineAdvice(host, err.Error(), client.IsErrConnectionFailed(err)); advice != "" {
		return fmt.Errorf("%s: %w", advice, err)
	}
	return err
}

// engineAdvice is what to do about an engine's message, which compose passes on as text.
func engineAdvice(host, msg string, noAnswer bool) string {
	has := func(s string) bool { return strings.Contains(msg, s) }
	switch {
	case has("permission denied while trying to connect"):
		return "this user may not use the engine at " + host + "; join the group that owns its socket (docker), or use --backend local"
	case noAnswer, has("Cannot connect to the Docker daemon"):
		return "no container engine answers at " + host + "; start it, name another with DOCKER_HOST, or use --backend local"
	case has("no space left on device"), has("disk quota exceeded"):
		return "the engine has no space left; docker system df shows what takes it"
	case has("could not find an available"), has("all predefined address pools have been fully subnetted"):
		return "the engine has no addresses left for a network; bottle cleanup removes those of dead bottles, docker network ls shows the others"
	case has("is already in use by container"), has("network with name") && has("already exists"):
		return "the name is taken; docker ps -a and docker network ls show by whom"
	case has("executable file not found"):
		return "the agent's image has no such program"
	}
	return ""
}

// gone is nil for what does not exist: it is as it should be.
func gone(err error) error {
	if cerrdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// makeWait bounds what the engine is given to make something.
const makeWait = 60 * time.Second

// uninterrupted is ctx for a call that makes something. The engine goes on with one whose
// caller has gone, and what it made then would be there after we had looked for what to remove. So an interrupt
// is heeded when the call is over.
func uninterrupted(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), makeWait)
}
