package haproxy

import (
	"testing"

	"go.uber.org/goleak"
)

// No test leaves a goroutine behind: background work ends with Close.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
