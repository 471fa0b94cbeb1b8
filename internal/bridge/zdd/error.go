package zdd

import "fmt"

// Exit codes of bridged zdd. 0 to 9 are those of zdd.py.
const (
	CodeDone      = 0
	CodeDeclined  = 1  // the operator said no, or a hook did
	CodeOther     = 2  // anything else; a wrong command line
	CodeArguments = 3  // arguments that do not go together, or not with what runs
	CodeMissing   = 4  // the definition or an app lacks a field or label, or has a bad one
	CodeBalancer  = 5  // a load balancer does not answer
	CodeMarathon  = 6  // Marathon does not answer
	CodeCreate    = 7  // the new app could not be created
	CodeDelete    = 8  // an app could not be deleted
	CodeScale     = 9  // an app could not be scaled, or its tasks not killed
	CodeTimeout   = 10 // nothing moved for Options.MaxWait; everything stays as it is
)

// Error is why a run ended before it was done. Nothing is undone: the next run goes on
// from there.
type Error struct {
	Code int
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

func fail(code int, format string, args ...any) error {
	return &Error{code, fmt.Errorf(format, args...)}
}
