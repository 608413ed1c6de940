package bench

import (
	"fmt"
	"strings"
)

// Table is where the time of steps went, for people: for each operation its calls and
// seconds a step, its share, and how fast it was beside what the machine can do, which is
// limits of flop and bytes a second.
func Table(costs []Cost, wall float64, steps int, flopLimit, byteLimit float64) string {
	var b strings.Builder
	row := func(cells ...any) { fmt.Fprintf(&b, "%8s %9s %6s %7s %7s %8s  %s\n", cells...) }
	row("share", "ms/step", "calls", "GF/s", "GB/s", "of peak", "operation")
	n := float64(steps)
	for _, c := range costs {
		flops, bytes, limit := "", "", ""
		switch {
		case c.Flop > 0:
			flops, limit = fmt.Sprintf("%.0f", c.Flop/c.Seconds/1e9), Share(c.Flop/c.Seconds, flopLimit)
		case c.Bytes > 0:
			bytes, limit = fmt.Sprintf("%.1f", c.Bytes/c.Seconds/1e9), Share(c.Bytes/c.Seconds, byteLimit)
		}
		row(Share(c.Seconds, wall), fmt.Sprintf("%.1f", c.Seconds/n*1e3), fmt.Sprintf("%.4g", float64(c.Calls)/n), flops, bytes, limit,
			strings.TrimSpace(c.Op+" "+c.Shape))
	}
	row("100.0 %", fmt.Sprintf("%.1f", wall/n*1e3), "", "", "", "", "the step")
	return b.String()
}

// Share is part of whole in percent, nothing where whole is not known.
func Share(part, whole float64) string {
	if whole <= 0 {
		return ""
	}
	return fmt.Sprintf("%.1f %%", 100*part/whole)
}
