package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/internal/machine"
	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/worker/agent"
)

// workerConfig is skein worker.
type workerConfig struct {
	agent.Config
	memory    jobspec.ByteSize
	class     string
	tls       string
	gossip    gossipFlags
	log       logFlags
	untilStop bool
}

func newWorker(std streams) *cobra.Command {
	var cfg workerConfig
	var memory string
	c := &cobra.Command{
		Use:   "worker",
		Short: "Run a worker of a cluster",
		Long: `Run a worker: it registers with the coordinators, hosts ranks of jobs as they order,
serves prepared data to other workers, and finds the next leader by itself. SIGTERM
drains it: its job publishes a checkpoint, goes on without it, and it ends; a second
one ends it at once. It needs one port for gradients and one for data that other
workers reach, and the folders of the jobs' stores, under the same paths.`,
		Example: `  skein worker --name w1 --coordinator 10.0.0.1:7401,10.0.0.2:7401 --ring-listen 10.0.0.4:7411 --stream-listen 10.0.0.4:7412 --tls /etc/skein
  skein worker --name w1 --coordinator 127.0.0.1:7401 --threads 2`,
		Args: args(),
		RunE: func(c *cobra.Command, _ []string) error {
			if memory != "" {
				if err := cfg.memory.UnmarshalText([]byte(memory)); err != nil || cfg.memory <= 0 {
					return usageError{fmt.Errorf("--memory is %q; give a size such as 8GiB", memory)}
				}
			}
			return runWorker(c.Context(), std, cfg)
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.Name, "name", "", "unique in the cluster")
	f.StringVar(&cfg.Cluster, "cluster", "", "name of the cluster; that of the certificates, or skein")
	f.StringVar(&cfg.Node, "node", "", "machine, whose workers are lost together; the host's name")
	f.StringVar(&cfg.Zone, "zone", "", "of the machine: what is lost together with others beside it, such as a rack or an availability zone; default $"+zoneVariable)
	f.StringSliceVar(&cfg.Coordinators, "coordinator", nil, "some of the coordinators, host:port,…; default $"+coordinatorVariable)
	f.StringVar(&cfg.RingListen, "ring-listen", "", "host:port for gradients; a free port of 127.0.0.1 if left out")
	f.StringVar(&cfg.RingAdvertise, "ring-advertise", "", "host:port where other workers reach it; --ring-listen if left out")
	f.StringVar(&cfg.StreamListen, "stream-listen", "", "host:port for batches; a free port of 127.0.0.1 if left out")
	f.StringVar(&cfg.StreamAdvertise, "stream-advertise", "", "host:port where other workers reach it; --stream-listen if left out")
	f.StringVar(&cfg.Dir, "dir", "", "folder of its own for prepared data; one in the user's cache if left out")
	f.StringVar(&memory, "memory", "", "what jobs may use, such as 8GiB; what is free now if left out")
	f.IntVar(&cfg.Threads, "threads", 0, "compute threads; 0 is one per core")
	f.StringVar(&cfg.class, "numeric-class", jobspec.Auto, "kernels to offer; auto is all that this machine can run, see skein doctor")
	f.StringVar(&cfg.tls, "tls", "", "folder of certificates, made by skein certs; default $"+tlsVariable)
	f.BoolVar(&cfg.Insecure, "insecure", false, "plain text on any address: for benchmarks")
	f.StringVar(&cfg.MonitorListen, "monitor", "", "host:port for /metrics, /healthz and /readyz; none if left out")
	f.DurationVar(&cfg.DrainWait, "drain-wait", 0, "how long to wait for being released after SIGTERM; 50s if left out, for which a stop timeout has to be 60s or more")
	cfg.gossip.add(c)
	cfg.log.add(c)
	addLifeline(c, &cfg.untilStop)
	return c
}

// zoneVariable names the zone of a machine, where something sets it for all its processes.
const zoneVariable = "SKEIN_ZONE"

// complete fills in what the machine and the environment say.
func (c *workerConfig) complete(std streams) (err error) {
	if c.Name == "" {
		return usageError{errors.New("which worker? give --name, unique in the cluster")}
	}
	if c.Threads < 0 {
		return usageError{fmt.Errorf("--threads is %d; 0 is one per core", c.Threads)}
	}
	if c.Coordinators = addresses(c.Coordinators, os.Getenv(coordinatorVariable)); len(c.Coordinators) == 0 {
		return usageError{errors.New("which cluster? give --coordinator host:port,…, or set " + coordinatorVariable)}
	}
	if c.Dir == "" {
		c.Dir = filepath.Join(filepath.Dir(defaultCache()), "worker-"+c.Name)
	}
	if c.Zone == "" {
		c.Zone = os.Getenv(zoneVariable)
	}
	m := machine.Look(".")
	if c.Threads == 0 {
		c.Threads = m.Threads()
	}
	if c.Memory = int64(c.memory); c.Memory == 0 {
		c.Memory = m.MemoryFree
	}
	if c.Classes, err = classes(c.class); err != nil {
		return usageError{err}
	}
	if c.TLS, err = certificates(c.tls); err != nil {
		return err
	}
	if c.TLS != nil && c.Cluster == "" {
		c.Cluster = c.TLS.Cluster
	}
	c.Build = version
	c.GossipListen, c.GossipAdvertise, c.GossipJoin = c.gossip.listen, c.gossip.advertise, c.gossip.join
	c.Tasks = newTasks(c.Dir, c.Memory, c.Threads)
	if c.Logger, err = c.log.logger(std); err != nil {
		return err
	}
	c.EnsureDefaults()
	if err := c.Validate(); err != nil {
		return usageError{err}
	}
	return c.gossip.check(c.TLS)
}

func runWorker(ctx context.Context, std streams, cfg workerConfig) error {
	if err := cfg.complete(std); err != nil {
		return err
	}
	lifeline(std, cfg.untilStop)
	look := client.Config{Coordinators: cfg.Coordinators, Insecure: cfg.Insecure, Build: version}
	if cfg.TLS != nil {
		look.TLS = expect(cfg.TLS, pki.Coordinator)
	}
	looker, err := client.New(look)
	if err != nil {
		return usageError{err}
	}
	defer looker.Close()
	cfg.Why = looker.Why
	return agent.Run(ctx, cfg.Config)
}
