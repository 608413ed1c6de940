package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/coordinator"
	"github.com/skein-ml/skein/coordinator/raftlog"
	"github.com/skein-ml/skein/internal/gossip"
	"github.com/skein-ml/skein/internal/monitor"
	"github.com/skein-ml/skein/internal/reach"
)

// coordinatorConfig is skein coordinator.
type coordinatorConfig struct {
	coordinator.Config
	members   []string
	wait      bool
	tls       string
	monitor   string
	gossip    gossipFlags
	log       logFlags
	untilStop bool
}

func newCoordinator(std streams) *cobra.Command {
	var cfg coordinatorConfig
	c := &cobra.Command{
		Use:   "coordinator",
		Short: "Run one of the coordinators of a cluster",
		Long: `Run a coordinator. Three of them, on three machines, go on when any one is lost;
what they have acknowledged is on the disks of two. All are started with the same
--members; one alone with --alone; one that is to be added to a running cluster with
neither, and then named to skein coordinator add. The folder --dir is one
coordinator's own, for good. SIGTERM hands over leadership and ends.`,
		Example: `  skein coordinator --id c1 --listen 10.0.0.1:7401 --dir /var/lib/skein/c1 --tls /etc/skein --members c1=10.0.0.1:7401,c2=10.0.0.2:7401,c3=10.0.0.3:7401
  skein coordinator --id c1 --listen 127.0.0.1:7401 --dir ./c1 --alone
  skein coordinator status --coordinator 127.0.0.1:7401`,
		Args: args(),
		RunE: func(c *cobra.Command, _ []string) error { return runCoordinator(c.Context(), std, cfg) },
	}
	f := c.Flags()
	f.StringVar(&cfg.ID, "id", "", "name, unique in the cluster, for good")
	f.StringVar(&cfg.Cluster, "cluster", "", "name of the cluster; that of the certificates, or skein")
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:7401", "host:port for workers, clients and other coordinators")
	f.StringVar(&cfg.Advertise, "advertise", "", "host:port where the others reach it; --listen if left out")
	f.StringVar(&cfg.Dir, "dir", "", "folder of its own, on a disk that stays")
	f.StringSliceVar(&cfg.members, "members", nil, "the first coordinators of a new cluster, id=host:port,…; the same on each")
	f.BoolVar(&cfg.wait, "wait", false, "where --members does not list this coordinator, wait to be added: for all of a group to be started alike")
	f.BoolVar(&cfg.Alone, "alone", false, "a new cluster of this coordinator alone")
	f.StringVar(&cfg.tls, "tls", "", "folder of certificates, made by skein certs; default $"+tlsVariable)
	f.BoolVar(&cfg.Insecure, "insecure", false, "plain text on any address: for benchmarks")
	f.StringVar(&cfg.monitor, "monitor", "", "host:port for /metrics, /healthz and /readyz; none if left out")
	cfg.gossip.add(c)
	cfg.log.add(c)
	addLifeline(c, &cfg.untilStop)
	c.AddCommand(newCoordinatorStatus(std), newCoordinatorAdd(std), newCoordinatorRemove(std), newCoordinatorTransfer(std),
		newCoordinatorBackup(std), newCoordinatorRestore(std))
	return c
}

// servers reads id=host:port,….
func servers(list []string) ([]raftlog.Server, error) {
	var members []raftlog.Server
	for _, m := range list {
		id, address, ok := strings.Cut(m, "=")
		if !ok || id == "" || address == "" {
			return nil, usageError{fmt.Errorf("--members: %q is not id=host:port", m)}
		}
		members = append(members, raftlog.Server{ID: id, Address: address})
	}
	return members, nil
}

// complete reads the certificates and what follows from them.
func (c *coordinatorConfig) complete(std streams) (err error) {
	if c.ID == "" {
		return usageError{errors.New("which coordinator? give --id, unique in the cluster")}
	}
	if c.Dir == "" {
		return usageError{errors.New("--dir is missing; give a folder of its own on a disk that stays")}
	}
	if c.Members, err = servers(c.members); err != nil {
		return err
	}
	if c.TLS, err = certificates(c.tls); err != nil {
		return err
	}
	if c.TLS != nil && c.Cluster == "" {
		c.Cluster = c.TLS.Cluster
	}
	c.Build = version
	if c.Logger, err = c.log.logger(std); err != nil {
		return err
	}
	c.EnsureDefaults()
	return c.check()
}

// check refuses flags that cannot go together, before anything is started.
func (c *coordinatorConfig) check() error {
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil || port == "" {
		return usageError{fmt.Errorf("--listen: %q is not host:port, such as 10.0.0.1:7401", c.Listen)}
	}
	if err := c.Validate(); err != nil {
		return usageError{err}
	}
	if c.TLS == nil && !c.Insecure && !reach.Loopback(host) {
		return usageError{fmt.Errorf("--listen: %s can be reached from other machines, so it needs certificates; give --tls DIR (`skein certs` makes them), or, for benchmarks, --insecure", c.Listen)}
	}
	if err := c.gossip.check(c.TLS); err != nil {
		return err
	}
	return c.checkMembers()
}

// checkMembers refuses a list that does not have this coordinator where it is.
func (c *coordinatorConfig) checkMembers() error {
	if len(c.Members) == 0 {
		return nil
	}
	own := cmp.Or(c.Advertise, c.Listen)
	i := slices.IndexFunc(c.Members, func(m raftlog.Server) bool { return m.ID == c.ID })
	switch {
	case i < 0 && c.wait:
		c.Members = nil
	case i < 0:
		return usageError{fmt.Errorf("--members: %s is not among the first members; list it as %s=%s, or leave --members out to add it to a cluster that runs", c.ID, c.ID, own)}
	case c.Members[i].Address != own && !strings.HasSuffix(own, ":0"):
		return usageError{fmt.Errorf("--members: it lists %s at %s, but it is reached at %s; make --members and --listen (or --advertise) say the same", c.ID, c.Members[i].Address, own)}
	}
	return nil
}

func runCoordinator(ctx context.Context, std streams, cfg coordinatorConfig) (err error) {
	if err := cfg.complete(std); err != nil {
		return err
	}
	lifeline(std, cfg.untilStop)
	cfg.Registry = monitor.NewRegistry()
	co, err := coordinator.Start(cfg.Config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, co.Stop()) }()
	if cfg.monitor != "" {
		m, err := monitor.Serve(cfg.monitor, cfg.Registry, co.Ready, cfg.Logger)
		if err != nil {
			return err
		}
		defer m.Close()
	}
	g, err := cfg.gossip.start(gossip.Config{Cluster: cfg.Cluster, Role: gossip.Coordinator, Name: cfg.ID, Address: co.Address(), Logger: cfg.Logger}, cfg.TLS)
	if err != nil {
		return err
	}
	if g != nil {
		defer func() { err = errors.Join(err, g.Close()) }()
	}
	cfg.Logger.Info("coordinator started", "id", cfg.ID, "address", co.Address(), "dir", cfg.Dir)
	select {
	case <-ctx.Done():
		cfg.Logger.Info("asked to stop")
		return nil
	case <-co.Done():
		return co.Err()
	}
}
