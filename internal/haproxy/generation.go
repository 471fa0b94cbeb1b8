package haproxy

import (
	"fmt"
	"strconv"
	"strings"
)

// A generation stands in `global description` and comes back in `show info`. It names
// the structure that a worker loaded and counts the reloads, so that success of a reload
// is seen and not believed, and so that a bridge that starts again recognises its work.
const generationPrefix = "bridged-"

// structureDigits is how much of a structure's hash is in a generation: 48 bits, enough
// to tell the few structures of one HAProxy apart.
const structureDigits = 12

// FormatGeneration writes a generation; structure is a hexadecimal hash.
func FormatGeneration(structure string, seq int) string {
	return fmt.Sprintf("%s%s-%d", generationPrefix, shortStructure(structure), seq)
}

func shortStructure(structure string) string {
	return structure[:min(len(structure), structureDigits)]
}

// ParseGeneration reads what FormatGeneration wrote; ok is false for the description of
// a HAProxy that is not ours.
func ParseGeneration(text string) (structure string, seq int, ok bool) {
	rest, ok := strings.CutPrefix(text, generationPrefix)
	if !ok {
		return "", 0, false
	}
	structure, number, ok := strings.Cut(rest, "-")
	if !ok || len(structure) != structureDigits || strings.Trim(structure, "0123456789abcdef") != "" {
		return "", 0, false
	}
	seq, err := strconv.Atoi(number)
	if err != nil || seq < 0 || strconv.Itoa(seq) != number {
		return "", 0, false
	}
	return structure, seq, true
}
