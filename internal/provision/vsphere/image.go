package vsphere

import (
	"context"
	"fmt"

	"bridged/internal/provision"
)

func (a *applying) importImage(ctx context.Context, s *provision.Step, say func(string)) error {
	return fmt.Errorf("not yet")
}
