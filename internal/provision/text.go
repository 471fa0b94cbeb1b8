package provision

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// signs stand before the changes of a plan.
var signs = map[Action]string{
	ActionCreate: "+", ActionChange: "~", ActionRestart: "~", ActionRepair: "~", ActionReplace: "±", ActionRemove: "-",
}

// actions in the order of a plan's last line.
var actions = []Action{ActionCreate, ActionChange, ActionRepair, ActionRestart, ActionReplace, ActionRemove}

// WriteText writes the plan for people. Neighbouring nodes with the same story
// share a line.
func (p *Plan) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "cluster %s", p.Cluster)
	if p.Server != "" {
		fmt.Fprintf(&b, " @ %s", p.Server)
	}
	b.WriteByte('\n')
	for changes := p.Changes; len(changes) > 0; {
		n := alike(changes)
		writeChanges(&b, changes[:n])
		changes = changes[n:]
	}
	for _, note := range p.Notes {
		fmt.Fprintf(&b, "  ! %s\n", note)
	}
	if p.Empty() {
		b.WriteString("nothing to change: everything is as the blueprint says\n")
	} else {
		p.writeOrder(&b)
		fmt.Fprintf(&b, "%s\n", p.Summary())
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Summary counts the changes: "4 to create, 1 to replace".
func (p *Plan) Summary() string {
	var parts []string
	for _, a := range actions {
		n := 0
		for i := range p.Changes {
			if p.Changes[i].Action == a {
				n++
			}
		}
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d to %s", n, a))
		}
	}
	if parts == nil {
		return "nothing to change"
	}
	return strings.Join(parts, ", ")
}

// alike counts the leading changes that share a line.
func alike(changes []Change) int {
	group, index, what := changes[0].story()
	n := 1
	for ; n < len(changes); n++ {
		g, i, w := changes[n].story()
		if i != index+n || changes[n].Action != changes[0].Action || changes[n].Kind != "vm" || g != group || w != what || !slices.Equal(changes[n].Why, changes[0].Why) {
			break
		}
	}
	return n
}

// story is the group and number of a node and what it is, without its own address.
func (c *Change) story() (group string, index int, what string) {
	group = c.Name
	if at := strings.LastIndexByte(c.Name, '-'); at > 0 && c.Kind == "vm" {
		if i, err := strconv.Atoi(c.Name[at+1:]); err == nil {
			group, index = c.Name[:at], i
		}
	}
	parts := strings.Split(c.What, ", ")
	parts = slices.DeleteFunc(parts, func(s string) bool { _, err := parseIPv4(s); return err == nil })
	return group, index, strings.Join(parts, ", ")
}

// address is the IPv4 address in what a change says, "" for none.
func (c *Change) address() string {
	for part := range strings.SplitSeq(c.What, ", ") {
		if _, err := parseIPv4(part); err == nil {
			return part
		}
	}
	return ""
}

func writeChanges(b *strings.Builder, changes []Change) {
	first := &changes[0]
	name, what := first.Name, first.What
	if n := len(changes); n > 1 {
		last := &changes[n-1]
		name = fmt.Sprintf("%s … %s (%d)", first.Name, last.Name, n)
		_, _, what = first.story()
		if from, to := first.address(), last.address(); from != "" && to != "" {
			what += ", " + from + " … " + to
		}
	}
	fmt.Fprintf(b, "  %s %-8s %-6s %s", signs[first.Action], first.Action, first.Kind, name)
	if what != "" {
		fmt.Fprintf(b, "   %s", what)
	}
	b.WriteByte('\n')
	for _, why := range first.Why {
		fmt.Fprintf(b, "      %s\n", why)
	}
}

// maxOrder is how many stages are listed before the middle is left out.
const maxOrder = 40

// writeOrder lists the stages when their order is worth knowing.
func (p *Plan) writeOrder(b *strings.Builder) {
	if len(p.Stages) < 2 {
		return
	}
	b.WriteString("order:\n")
	for i := range p.Stages {
		if len(p.Stages) > maxOrder && i >= maxOrder/2 && i < len(p.Stages)-maxOrder/2 {
			if i == maxOrder/2 {
				fmt.Fprintf(b, "      … %d more\n", len(p.Stages)-maxOrder)
			}
			continue
		}
		fmt.Fprintf(b, "  %3d %s", i+1, p.Stages[i].Name)
		if n := len(p.Stages[i].Steps); n > 1 {
			fmt.Fprintf(b, " (%d steps)", n)
		}
		b.WriteByte('\n')
	}
}
