package main

import (
	"context"

	"bridged/internal/provision"
	"bridged/internal/provision/vsphere"
)

// connectVSphere signs in to a vCenter.
func connectVSphere(ctx context.Context, c *connection) (provision.Provider, error) {
	p, err := vsphere.Connect(ctx, vsphere.Options{
		Cluster: c.Cluster, Server: c.Server, User: c.User, Password: c.Password, Token: c.Token,
		Insecure: c.Insecure, Thumbprint: c.Thumbprint, CAFile: c.CAFile,
	})
	if err != nil {
		return nil, err // not p: a nil *Provider in an interface is not nil
	}
	return p, nil
}
