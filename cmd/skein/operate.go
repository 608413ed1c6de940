package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/coordinator"
	"github.com/skein-ml/skein/internal/console"
)

// operatorConfig is what operators change coordinators with.
type operatorConfig struct {
	cluster clusterFlags
	ID      string
	Address string
	File    string
	Dir     string
	Force   bool
	output  string
}

func newCoordinatorStatus(std streams) *cobra.Command {
	var cfg operatorConfig
	c := &cobra.Command{
		Use:   "status",
		Short: "Ask each coordinator what it knows of itself",
		Long: `Ask each coordinator of --coordinator, leader or not. APPLIED is how far it is in
the log: one that stays behind is cut off or slow.`,
		Example: `  skein coordinator status --coordinator 10.0.0.1:7401,10.0.0.2:7401,10.0.0.3:7401`,
		Args:    args(),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkList(cfg.output); err != nil {
				return err
			}
			return cfg.cluster.with(c.Context(), std, func(ctx context.Context, c *client.Client) error {
				all := c.Statuses(ctx)
				return errors.Join(list(std, cfg.output, all, func() string { return statusTable(all) }), silent(all))
			})
		},
	}
	cfg.cluster.add(c)
	listFlag(c, &cfg.output)
	return c
}

func statusTable(all []client.Status) string {
	var rows [][]string
	for _, s := range all {
		row := []string{s.Address, s.ID, s.State, s.Leader, "", "", s.Build, s.Fault}
		if s.Fault == "" {
			row[4], row[5] = fmt.Sprint(s.Term), fmt.Sprintf("%d of %d", s.Applied, s.Last)
		}
		rows = append(rows, row)
	}
	return console.Table([]string{"ADDRESS", "ID", "STATE", "LEADER", "TERM", "APPLIED", "BUILD", "FAULT"}, rows)
}

// silent is an error if nobody answers.
func silent(all []client.Status) error {
	var tries []client.Try
	for _, s := range all {
		if s.Fault == "" {
			return nil
		}
		tries = append(tries, client.Try{Address: s.Address, Fault: s.Fault, Advice: "see the addresses and whether the coordinators run"})
	}
	return &client.UnreachableError{Tries: tries}
}

func newCoordinatorAdd(std streams) *cobra.Command {
	var cfg operatorConfig
	c := &cobra.Command{
		Use:   "add ID HOST:PORT",
		Short: "Make a coordinator that waits a member, or give a member a new address",
		Long: `Make a coordinator a member. It must run, with an empty folder and neither
--members nor --alone. A member that is named again gets the new address.`,
		Example: `  skein coordinator add c4 10.0.0.4:7401`,
		Args:    args("ID", "HOST:PORT"),
		RunE: func(c *cobra.Command, args []string) error {
			return cfg.cluster.with(c.Context(), std, func(ctx context.Context, c *client.Client) error {
				if err := c.AddCoordinator(ctx, args[0], args[1]); err != nil {
					return err
				}
				_, err := fmt.Fprintf(std.out, "%s  added at %s\n", args[0], args[1])
				return err
			})
		},
	}
	cfg.cluster.add(c)
	return c
}

func newCoordinatorRemove(std streams) *cobra.Command {
	var cfg operatorConfig
	c := &cobra.Command{
		Use:   "remove ID",
		Short: "Take a coordinator out of the cluster",
		Long: `Take a coordinator out of the cluster, whether it runs or is lost. Its folder cannot
be used again: a new coordinator begins with an empty one and another id. Refused if
too few of the others answer to decide anything afterwards; --force removes it all the
same.`,
		Example: `  skein coordinator remove c2`,
		Args:    args("ID"),
		RunE: func(c *cobra.Command, args []string) error {
			return cfg.cluster.with(c.Context(), std, func(ctx context.Context, c *client.Client) error {
				if err := c.RemoveCoordinator(ctx, args[0], cfg.Force); err != nil {
					return err
				}
				_, err := fmt.Fprintf(std.out, "%s  removed; stop it, if it still runs\n", args[0])
				return err
			})
		},
	}
	cfg.cluster.add(c)
	c.Flags().BoolVar(&cfg.Force, "force", false, "even if too few of the others answer; the cluster may stand still until they do")
	return c
}

func newCoordinatorTransfer(std streams) *cobra.Command {
	var cfg operatorConfig
	c := &cobra.Command{
		Use:   "transfer",
		Short: "Make another coordinator the leader",
		Long: `Make another coordinator the leader: the one of --to, or whoever is most up to date.
Jobs do not notice.`,
		Example: `  skein coordinator transfer --to c2`,
		Args:    args(),
		RunE: func(c *cobra.Command, _ []string) error {
			return cfg.cluster.with(c.Context(), std, func(ctx context.Context, c *client.Client) error {
				if err := c.TransferLeadership(ctx, cfg.ID); err != nil {
					return err
				}
				_, err := fmt.Fprintln(std.out, "leadership handed over")
				return err
			})
		},
	}
	cfg.cluster.add(c)
	c.Flags().StringVar(&cfg.ID, "to", "", "id of the next leader")
	return c
}

func newCoordinatorBackup(std streams) *cobra.Command {
	var cfg operatorConfig
	c := &cobra.Command{
		Use:   "backup FILE",
		Short: "Save the state of the coordinators",
		Long: `Save what the coordinators know: jobs, where they are in their lives, which
checkpoints are published. Checkpoints themselves lie in the jobs' stores. FILE must
not exist; it appears whole or not at all.`,
		Example: `  skein coordinator backup skein-monday.backup`,
		Args:    args("FILE"),
		RunE: func(c *cobra.Command, args []string) error {
			cfg.File = args[0]
			return runBackup(c.Context(), std, cfg)
		},
	}
	cfg.cluster.add(c)
	return c
}

func runBackup(ctx context.Context, std streams, cfg operatorConfig) error {
	return cfg.cluster.with(ctx, std, func(ctx context.Context, c *client.Client) error {
		size, err := c.BackupTo(ctx, cfg.File)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(std.out, "backup      %s, %s\n", cfg.File, console.Bytes(size))
		return err
	})
}

func newCoordinatorRestore(std streams) *cobra.Command {
	var cfg operatorConfig
	c := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make the folder of a coordinator out of a backup",
		Long: `Make a new folder --dir for coordinator --id, the only member of a cluster with the
state of FILE, reached at --advertise. Start it without --members, then add others.
What was decided since the backup is forgotten; jobs go on from the checkpoints that
it knows. No coordinator of the old cluster may run again.`,
		Example: `  skein coordinator restore skein-monday.backup --id c1 --advertise 10.0.0.1:7401 --dir /var/lib/skein/c1`,
		Args:    args("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			cfg.File = args[0]
			return runRestore(std, cfg)
		},
	}
	c.Flags().StringVar(&cfg.ID, "id", "", "name of the coordinator")
	c.Flags().StringVar(&cfg.Address, "advertise", "", "host:port where the others will reach it")
	c.Flags().StringVar(&cfg.Dir, "dir", "", "folder to make")
	return c
}

func runRestore(std streams, cfg operatorConfig) error {
	if cfg.ID == "" || cfg.Address == "" || cfg.Dir == "" {
		return usageError{errors.New("--id, --advertise and --dir are needed: who will have the state, and where")}
	}
	f, err := os.Open(cfg.File)
	if err != nil {
		return err
	}
	defer f.Close()
	head, err := coordinator.Restore(cfg.Dir, cfg.ID, cfg.Address, f)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(std.out, "restored    %s: cluster %s as %s had it on %s; start coordinator %s on it, then add others\n",
		cfg.Dir, head.Cluster, head.ID, time.UnixMilli(head.At).Local().Format(time.DateTime), cfg.ID)
	return err
}
