package discovery

import (
	"testing"

	"go.uber.org/goleak"
)

// Every Watcher of these tests has to end what it started.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
