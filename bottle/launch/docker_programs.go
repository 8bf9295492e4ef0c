package launch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
)

// labelPrograms is which programs of ours an image holds: [programsHash] of them.
const labelPrograms = "bottle.programs"

// programsHash names a set of programs by what is in them. A version would not do: it says
// nothing of two builds of one checkout.
func programsHash(names []string, open func(name string) (io.ReadCloser, error)) (string, error) {
	h := sha256.New()
	for _, name := range names {
		f, err := open(name)
		if err != nil {
			return "", err
		}
		one := sha256.New()
		_, err = io.Copy(one, f)
		_ = f.Close() // it was read
		if err != nil {
			return "", fmt.Errorf("read %s: %w", name, err)
		}
		fmt.Fprintf(h, "%s %x\n", name, one.Sum(nil))
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// Outdated says what to do if the bundle's image does not hold the programs of this machine,
// whose paths program returns: an update of bottle leaves the image as it was. It is empty if the
// image holds them, and if this machine lacks one, so that there is nothing to compare with.
func (d *Docker) Outdated(ctx context.Context, program func(name string) string) (string, error) {
	names := imageSources()[BundleImage].programs
	for _, name := range names {
		if program(name) == "" {
			return "", nil
		}
	}
	ours, err := programsHash(names, func(name string) (io.ReadCloser, error) { return os.Open(program(name)) })
	if err != nil {
		return "", fmt.Errorf("compare image %s with the programs beside bottle: %w", d.image, err)
	}
	image, err := d.cli.ImageInspect(ctx, d.image)
	if err != nil {
		return "", d.explain("look at image "+d.image, err)
	}
	if image.Config != nil && image.Config.Labels[labelPrograms] == ours {
		return "", nil
	}
	return fmt.Sprintf("image %s holds other programs than this bottle's, as after an update; bottle image build %s makes it anew", d.image, BundleImage), nil
}
