package haproxy

// Step is a point in saving, reloading and supervising between two effects on the outside
// world. Tests stop the process at each of them and look whether the next one converges.
type Step int

const (
	StepPreflight   Step   = iota // nothing has happened yet
	StepChecked                   // haproxy -c has passed, where it was needed
	StepBackup                    // the operator's file has its copy
	StepMapsWritten               // new map files exist, nobody names them
	StepTempWritten               // the new haproxy.cfg is on disk under another name
	StepSwapped                   // haproxy.cfg is the new one
	StepSaved                     // … and the directory says so durably
	StepTriggered                 // HAProxy was told to reload
	StepConfirmed                 // the new worker serves
	StepCollected                 // old map files are gone
	StepStarted                   // a supervised HAProxy was started
	Steps           = iota        // how many there are
)

var stepText = [Steps]string{"preflight", "checked", "backup", "maps-written", "temp-written", "swapped",
	"saved", "triggered", "confirmed", "collected", "started"}

func (s Step) String() string { return stepText[s] }
