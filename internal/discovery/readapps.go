package discovery

import (
	"context"
	"io"
)

// ReadApps decodes a saved answer of GET /v2/apps?embed=apps.tasks into services,
// sorted by app and index. Apps that can't be understood and hosts that can't be
// resolved are left out and named in the errors. A nil Resolver is net.DefaultResolver.
func ReadApps(ctx context.Context, r io.Reader, resolver Resolver) ([]*Service, []error) {
	return nil, nil
}
