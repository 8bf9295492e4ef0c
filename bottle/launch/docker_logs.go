package launch

import (
	"context"
	"io"
)

// CopyLogs writes what the containers have printed so far, of which there is nothing once they are removed:
// [Docker.Stop] keeps it in compose.log. With follow it goes on with what they print, until they or ctx end.
func (d *Docker) CopyLogs(ctx context.Context, w io.Writer, follow bool) error {
	args := []string{"-p", d.project(), "-f", d.composePath(), "logs", "--no-color", "--timestamps"}
	if follow {
		args = append(args, "--follow")
	}
	cmd := d.composeCmd(ctx, args...)
	said := &tail{max: maxComplaint}
	cmd.Stdout, cmd.Stderr = w, said
	if err := cmd.Run(); err != nil {
		return d.complaint("docker compose logs", said.String(), err)
	}
	return nil
}
