package launch

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/build"
	"github.com/docker/docker/client"

	"bottle/bottle"
)

// The images that [BuildImages] makes.
const (
	BundleImage = "bottle-sidecars" // what the bundle's container runs
	ClaudeImage = "bottle-claude"   // Claude Code, as an agent
)

// labelPipelock is where in the bundle's image the real pipelock is, if it has one.
const labelPipelock = "bottle.pipelock"

//go:embed images
var dockerfiles embed.FS

// rootsFile is what the CA roots are called in a build context.
const rootsFile = "ca-certificates.crt"

// An image is a Dockerfile and what it copies.
type imageSource struct {
	dockerfile string
	programs   []string
	roots      bool
}

func imageSources() map[string]imageSource {
	return map[string]imageSource{
		BundleImage: {dockerfile: "images/sidecars/Dockerfile", programs: []string{"bottle-sidecars", "bottle-supervise"}, roots: true},
		ClaudeImage: {dockerfile: "images/claude/Dockerfile", programs: []string{"bottle-mcp"}},
	}
}

// ImageConfig configures [BuildImages].
type ImageConfig struct {
	Client *client.Client // required
	// Program returns the path of a static program of ours, empty if there is none. Required.
	Program func(name string) string
	// Args are build arguments, as the Dockerfiles name them (BASE_IMAGE, CLAUDE_VERSION, PIPELOCK_IMAGE).
	// An image is given those that it declares; one that no image to be built declares is an error.
	Args map[string]string
	// Tag returns the name that an image is to have. Nil: its own.
	Tag func(image string) string
	// Progress gets what the engine says while it builds. Required.
	Progress io.Writer
}

// BuildImages builds these images, or all if none is named. The base images are the engine's
// to pull, or are there; everything else comes from this program and from beside it.
func BuildImages(ctx context.Context, c ImageConfig, images ...string) error {
	if c.Client == nil || c.Program == nil || c.Progress == nil {
		return errors.New("build images: Client, Program and Progress are required")
	}
	if len(images) == 0 {
		images = []string{BundleImage, ClaudeImage}
	}
	unused := map[string]bool{}
	for name := range c.Args {
		unused[name] = true
	}
	for _, name := range images {
		src, ok := imageSources()[name]
		if !ok {
			return fmt.Errorf("build images: no image %q; there are %s and %s: %w", name, BundleImage, ClaudeImage, bottle.ErrNotFound)
		}
		text, err := dockerfiles.ReadFile(src.dockerfile)
		if err != nil {
			return err
		}
		for _, arg := range declared(text) {
			delete(unused, arg)
		}
	}
	for name := range unused {
		return fmt.Errorf("build argument %s: no image to be built has it: %w", name, bottle.ErrInvalid)
	}
	for _, name := range images {
		if err := buildImage(ctx, c, name, imageSources()[name]); err != nil {
			return fmt.Errorf("build image %s: %w", name, explainEngine(c.Client.DaemonHost(), err))
		}
	}
	return nil
}

// baseOf is the image that a Dockerfile starts from.
func baseOf(dockerfile []byte, args map[string]string) string {
	if base := args["BASE_IMAGE"]; base != "" {
		return base
	}
	_, after, _ := strings.Cut(string(dockerfile), "ARG BASE_IMAGE=")
	base, _, _ := strings.Cut(after, "\n")
	return base
}

// declared are the arguments of a Dockerfile.
func declared(dockerfile []byte) []string {
	var args []string
	for line := range strings.Lines(string(dockerfile)) {
		if rest, ok := strings.CutPrefix(line, "ARG "); ok {
			name, _, _ := strings.Cut(strings.TrimSpace(rest), "=")
			args = append(args, name)
		}
	}
	return args
}

func buildImage(ctx context.Context, c ImageConfig, name string, src imageSource) error {
	text, err := dockerfiles.ReadFile(src.dockerfile)
	if err != nil {
		return err
	}
	archive, err := buildContext(text, src, c.Program)
	if err != nil {
		return err
	}
	tag := name
	if c.Tag != nil {
		tag = c.Tag(name)
	}
	programs, err := programsHash(src.programs, func(name string) (io.ReadCloser, error) { return os.Open(c.Program(name)) })
	if err != nil {
		return err
	}
	o := build.ImageBuildOptions{Tags: []string{tag}, Remove: true, ForceRemove: true, BuildArgs: map[string]*string{}, Labels: map[string]string{labelPrograms: programs}}
	if name == BundleImage {
		o.Target = "bundle"
		if c.Args["PIPELOCK_IMAGE"] != "" {
			o.Target = "bundle-with-pipelock"
		}
	}
	for _, arg := range declared(text) {
		if v, ok := c.Args[arg]; ok {
			o.BuildArgs[arg] = &v
		}
	}
	base := baseOf(text, c.Args)
	fmt.Fprintf(c.Progress, "building %s on %s\n", tag, base)
	r, err := c.Client.ImageBuild(ctx, archive, o)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if err := showProgress(c.Progress, r.Body); err != nil {
		return fmt.Errorf("on %s: %w", base, err)
	}
	return nil
}

// buildContext is the tar archive that the engine builds from. Its bytes depend on nothing but
// what is in it, so that the engine's cache works.
func buildContext(dockerfile []byte, src imageSource, program func(string) string) (io.Reader, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(name string, mode int64, b []byte) error {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(b)), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err := w.Write(b)
		return err
	}
	if err := add("Dockerfile", 0o644, dockerfile); err != nil {
		return nil, err
	}
	for _, name := range src.programs {
		b, err := staticProgram(name, program(name))
		if err != nil {
			return nil, err
		}
		if err := add(name, 0o755, b); err != nil {
			return nil, err
		}
	}
	if src.roots {
		b, err := readRoots()
		if err != nil {
			return nil, err
		}
		if err := add(rootsFile, 0o644, b); err != nil {
			return nil, err
		}
	}
	return &buf, w.Close()
}

// staticProgram reads a program of ours, and refuses one that needs libraries: the base image
// may have others, or none.
func staticProgram(name, path string) ([]byte, error) {
	if path == "" {
		return nil, fmt.Errorf("%s was not found beside bottle or in PATH; install it there: %w", name, bottle.ErrNotFound)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("%s is no Linux program (%w)", path, err)
	}
	defer f.Close()
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return nil, fmt.Errorf("%s is linked to libraries that an image may not have; build it with CGO_ENABLED=0", path)
	}
	return b, nil
}

// readRoots reads this machine's CA roots.
func readRoots() ([]byte, error) {
	for _, f := range systemRoots {
		b, err := os.ReadFile(f)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the machine's CA roots: %w", err)
		}
		return b, nil
	}
	return nil, fmt.Errorf("this machine has no CA roots in any of %s; install its ca-certificates package", strings.Join(systemRoots, ", "))
}

// showProgress prints the engine's messages, and returns the error that is among them.
func showProgress(w io.Writer, r io.Reader) error {
	dec := json.NewDecoder(r)
	for {
		var m struct {
			Stream, Status, ID, Error string
			ProgressDetail            struct{ Total int64 }
		}
		if err := dec.Decode(&m); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("the engine's progress ends: %w", err)
		}
		switch {
		case m.Error != "":
			return errors.New(strings.TrimSpace(m.Error))
		case m.Stream != "":
			fmt.Fprint(w, m.Stream)
		case m.Status != "" && m.ProgressDetail.Total == 0: // else a progress bar's tick
			fmt.Fprintln(w, strings.TrimSpace(m.ID+" "+m.Status))
		}
	}
}
