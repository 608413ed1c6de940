package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/internal/console"
)

// nodesConfig is skein nodes.
type nodesConfig struct {
	cluster clusterFlags
	output  string
}

func newNodes(std streams) *cobra.Command {
	var cfg nodesConfig
	c := &cobra.Command{
		Use:   "nodes",
		Short: "List the coordinators and workers of a cluster",
		Long: `List the processes of a cluster. A coordinator is unreachable if it does not answer
this command, which says nothing of the others' way to it. A worker is free, busy with a job, draining (it
finishes what it must and leaves) or lost (its session is broken).`,
		Example: `  skein nodes
  skein nodes -o wide`,
		Args: args(),
		RunE: func(c *cobra.Command, _ []string) error { return runNodes(c.Context(), std, cfg) },
	}
	cfg.cluster.add(c)
	listFlag(c, &cfg.output)
	return c
}

func runNodes(ctx context.Context, std streams, cfg nodesConfig) error {
	if err := checkList(cfg.output); err != nil {
		return err
	}
	return cfg.cluster.with(ctx, std, func(ctx context.Context, c *client.Client) error {
		got, err := c.Nodes(ctx)
		if err != nil {
			return err
		}
		v := client.ViewNodes(got)
		c.Reach(ctx, &v)
		return one(std, cfg.output, v, func() string { return nodeTables(v, cfg.output == outputWide) })
	})
}

func nodeTables(n client.Nodes, wide bool) string {
	var coordinators [][]string
	for _, c := range n.Coordinators {
		role := "follower"
		switch {
		case c.Leader:
			role = "leader"
		case c.Fault != "":
			role = "unreachable (" + c.Fault + ")"
		}
		coordinators = append(coordinators, []string{c.ID, role, c.Address})
	}
	text := console.Table([]string{"COORDINATOR", "ROLE", "ADDRESS"}, coordinators) + "\n"
	if len(n.Workers) == 0 {
		return text + "no workers; start one with `skein worker`\n"
	}
	header := []string{"WORKER", "STATE", "JOB", "RANKS", "THREADS", "MEMORY", "BITS"}
	if wide {
		header = append(header, "NODE", "BUILD", "RING", "STREAM", "HEARD")
	}
	var workers [][]string
	for _, w := range n.Workers {
		memory := ""
		if w.MemoryBytes > 0 {
			memory = console.Bytes(w.MemoryBytes)
		}
		row := []string{w.Name, w.State, w.Job, ranksOf(w.Ranks), fmt.Sprint(w.Threads), memory, strings.Join(w.NumericClasses, ", ")}
		if wide {
			heard := "never"
			if w.SilentMS >= 0 {
				heard = fmt.Sprintf("%.1f s ago", float64(w.SilentMS)/1000)
			}
			node := w.Node
			if w.Zone != "" {
				node += " in " + w.Zone
			}
			row = append(row, node, w.Build, w.Ring, w.Stream, heard)
		}
		workers = append(workers, row)
	}
	return text + console.Table(header, workers)
}
