package main

import (
	"context"
	"errors"

	"bridged/internal/provision"
)

func connectVSphere(ctx context.Context, c *connection) (provision.Provider, error) {
	return nil, errors.New("not wired yet")
}
