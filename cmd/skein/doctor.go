package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/internal/machine"
)

// diagnosis is what skein doctor finds.
type diagnosis struct {
	Version string           `json:"version"`
	Go      string           `json:"go"`
	Machine machine.Machine  `json:"machine"`
	Threads int              `json:"threads"`
	Paths   []cpu.PathStatus `json:"paths"` // best first
	Chosen  string           `json:"chosen"`
	Advice  []string         `json:"advice"`
}

func newDoctor(std streams) *cobra.Command {
	var output, folder string
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine has and which kernels it can run",
		Long: `Print processor, memory, disk and limits, and which kernel paths can run here,
best first. Jobs pin a numeric class, that is a path and its revision: machines
that list the same class give the same bits.`,
		Example: `  skein doctor
  skein doctor --folder ./checkpoints -o json`,
		Args: args(),
		RunE: func(*cobra.Command, []string) error { return runDoctor(std, folder, output) },
	}
	outputFlag(c, &output)
	c.Flags().StringVar(&folder, "folder", ".", "folder whose disk is looked at")
	return c
}

func runDoctor(std streams, folder, output string) error {
	if err := oneOf("output", output, outputText, outputJSON); err != nil {
		return err
	}
	m := machine.Look(folder)
	d := diagnosis{Version: version, Go: runtime.Version(), Machine: m, Threads: m.Threads(), Paths: append(cpu.Paths(), cpu.HighPaths()...), Advice: []string{}}
	for _, p := range d.Paths {
		if p.Available && !p.High && d.Chosen == "" {
			d.Chosen = p.Name
		}
	}
	if forced := os.Getenv(cpu.PathVariable); forced != "" {
		d.Chosen = forced
		d.advise("%s=%s overrides the best path; unset it unless that is what you want", cpu.PathVariable, forced)
	}
	d.look()
	return std.report(output, d, d.text())
}

func (d *diagnosis) advise(format string, args ...any) {
	d.Advice = append(d.Advice, fmt.Sprintf(format, args...))
}

// look says what would make jobs faster, or stop them.
func (d *diagnosis) look() {
	m := d.Machine
	if m.HugePages == "never" {
		d.advise("transparent huge pages are off, which costs up to a third of the memory bandwidth: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled")
	}
	if m.OpenFiles > 0 && m.OpenFiles < 1024 {
		d.advise("only %d files may be open at once; raise it with ulimit -n 4096", m.OpenFiles)
	}
	if m.MemoryFree > 0 && m.MemoryFree < 3<<30 {
		d.advise("%s of memory is free; the smallest real model here, SmolLM2-135M, takes about 3 GB to train", console.Bytes(m.MemoryFree))
	}
	if m.DiskFree < 5<<30 {
		d.advise("%s of disk is free under %s; a checkpoint of SmolLM2-135M takes 1.6 GB", console.Bytes(m.DiskFree), m.DiskFolder)
	}
	for _, p := range d.Paths {
		if p.Name == d.Chosen && !p.Available {
			d.advise("the path %s cannot run here: this machine lacks %s", p.Name, p.Why)
		}
	}
}

// text is the diagnosis for people.
func (d *diagnosis) text() string {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s %s\n", name, fmt.Sprintf(format, args...))
	}
	m := d.Machine
	row("skein", "%s, %s, %s/%s", d.Version, d.Go, m.OS, m.Arch)
	row("processor", "%s", orUnknown(m.Processor))
	row("features", "%s", orUnknown(strings.Join(m.Features, " ")))
	cores := fmt.Sprintf("%d", m.Cores)
	if m.CoresLimit > 0 {
		cores += fmt.Sprintf(", limited to %.3g", m.CoresLimit)
	}
	row("cores", "%s → %d compute threads", cores, d.Threads)
	memory := fmt.Sprintf("%s free of %s", console.Bytes(m.MemoryFree), console.Bytes(m.MemoryTotal))
	if m.MemoryLimit > 0 {
		memory += ", limited to " + console.Bytes(m.MemoryLimit)
	}
	row("memory", "%s", memory)
	row("huge pages", "%s", orUnknown(m.HugePages))
	row("open files", "%d", m.OpenFiles)
	row("disk", "%s free of %s under %s", console.Bytes(m.DiskFree), console.Bytes(m.DiskTotal), m.DiskFolder)
	for _, p := range d.Paths {
		row("kernels", "%-16s %-19s %s", p.Name, p.Class, d.about(p))
	}
	for _, a := range d.Advice {
		row("advice", "%s", a)
	}
	return b.String()
}

// about says what stands behind a path's name.
func (d *diagnosis) about(p cpu.PathStatus) string {
	if !p.Available {
		return "cannot run: lacks " + p.Why
	}
	text := "can run"
	if p.Name == d.Chosen {
		text = "chosen"
	}
	if p.Rate > 0 {
		text += fmt.Sprintf(", %.0f GF/s a core", p.Rate)
	}
	if p.Behind != "" {
		text += ": " + p.Behind + " is faster here"
	}
	return text
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}
