package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/internal/pki"
)

// certsConfig is skein certs.
type certsConfig struct {
	Cluster  string
	CA       string // folder of the authority
	Role     pki.Role
	Name     string
	Hosts    []string
	Out      string
	Validity time.Duration
	output   string
}

func newCerts(std streams) *cobra.Command {
	c := &cobra.Command{
		Use:   "certs",
		Short: "Make the certificates of a cluster",
		Long: `Make the small certificate authority of a cluster and, with it, the files that each
process shows the others: without one of them nobody gets in. Keep the authority's
folder off the cluster's machines; copy to each process only its own folder.`,
		Example: `  skein certs init --cluster lab --ca ./ca
  skein certs issue coordinator c1 --ca ./ca --hosts 10.0.0.1,c1.lab --out ./certs/c1
  skein certs show ./certs/c1`,
		Args: args(),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newCertsInit(std), newCertsIssue(std), newCertsShow(std))
	return c
}

func newCertsInit(std streams) *cobra.Command {
	var cfg certsConfig
	c := &cobra.Command{
		Use:   "init",
		Short: "Make the authority of a new cluster",
		Long: `Make the certificate authority of a cluster and the key of its gossip, in a folder
that does not have one yet. It is valid for ten years. Whoever has ca.key can make
certificates: keep it safe.`,
		Example: `  skein certs init --cluster lab --ca ./ca`,
		Args:    args(),
		RunE:    func(*cobra.Command, []string) error { return runCertsInit(std, cfg) },
	}
	c.Flags().StringVar(&cfg.Cluster, "cluster", "skein", "name of the cluster; its members refuse those of another name")
	c.Flags().StringVar(&cfg.CA, "ca", "ca", "folder to make")
	return c
}

func runCertsInit(std streams, cfg certsConfig) error {
	ca, err := pki.NewCA(cfg.Cluster)
	if err != nil {
		return usageError{err}
	}
	if err := ca.Save(cfg.CA); err != nil {
		return err
	}
	_, err = fmt.Fprintf(std.out, "authority   %s of cluster %s; next: skein certs issue coordinator NAME --ca %s --hosts …\n", cfg.CA, cfg.Cluster, cfg.CA)
	return err
}

func newCertsIssue(std streams) *cobra.Command {
	var cfg certsConfig
	c := &cobra.Command{
		Use:   "issue ROLE NAME",
		Short: "Make the certificate of one process or person",
		Long: `Make the certificate of a coordinator, a worker, a client (who submits and watches
jobs) or an admin (a client who may also change and back up the coordinators), and
write what its holder needs into a folder. NAME is a coordinator's --id or a worker's
--name. --hosts are the names and addresses under which others reach a coordinator
or worker.`,
		Example: `  skein certs issue coordinator c1 --ca ./ca --hosts 10.0.0.1,c1.lab --out ./certs/c1
  skein certs issue worker w1 --ca ./ca --hosts 10.0.0.4 --out ./certs/w1
  skein certs issue client ana --ca ./ca --out ./certs/ana`,
		Args: args("ROLE", "NAME"),
		RunE: func(_ *cobra.Command, args []string) error {
			cfg.Role, cfg.Name = pki.Role(args[0]), args[1]
			return runCertsIssue(std, cfg)
		},
	}
	c.Flags().StringVar(&cfg.CA, "ca", "ca", "folder of the authority")
	c.Flags().StringSliceVar(&cfg.Hosts, "hosts", nil, "names and addresses of the holder, such as 10.0.0.1,c1.lab")
	c.Flags().StringVar(&cfg.Out, "out", "", "folder to write; ./ROLE-NAME if left out")
	c.Flags().DurationVar(&cfg.Validity, "valid", 365*24*time.Hour, "for how long, such as 8760h")
	return c
}

func runCertsIssue(std streams, cfg certsConfig) error {
	var roles []string
	for _, r := range pki.Roles {
		roles = append(roles, string(r))
	}
	if !strings.Contains(" "+strings.Join(roles, " ")+" ", " "+string(cfg.Role)+" ") {
		return usageError{fmt.Errorf("role %q; it is one of %s", cfg.Role, strings.Join(roles, ", "))}
	}
	if err := (pki.Identity{Cluster: "skein", Role: cfg.Role, Name: cfg.Name}).Check(); err != nil {
		return usageError{err}
	}
	if (cfg.Role == pki.Coordinator || cfg.Role == pki.Worker) && len(cfg.Hosts) == 0 {
		return usageError{fmt.Errorf("a %s is called by others: give --hosts with the names and addresses under which they reach it", cfg.Role)}
	}
	if cfg.Validity < time.Minute {
		return usageError{fmt.Errorf("--valid is %s; give a time such as 8760h", cfg.Validity)}
	}
	ca, err := pki.LoadCA(cfg.CA)
	if err != nil {
		return err
	}
	if cfg.Out == "" {
		cfg.Out = fmt.Sprintf("%s-%s", cfg.Role, cfg.Name)
	}
	if err := ca.IssueTo(cfg.Out, cfg.Role, cfg.Name, cfg.Hosts, cfg.Validity); err != nil {
		return err
	}
	_, err = fmt.Fprintf(std.out, "issued      %s %s of cluster %s, valid until %s → %s; copy that folder to where it is used, as --tls\n",
		cfg.Role, cfg.Name, ca.Cluster(), time.Now().Add(cfg.Validity).Format(time.DateOnly), filepath.Clean(cfg.Out))
	return err
}

func newCertsShow(std streams) *cobra.Command {
	var cfg certsConfig
	c := &cobra.Command{
		Use:   "show DIR",
		Short: "Check a folder of certificates and say whose it is",
		Long: `Check that a folder's certificate, key and authority belong together and are valid
now, and say whose they are and until when.`,
		Example: `  skein certs show ./certs/c1`,
		Args:    args("DIR"),
		RunE: func(_ *cobra.Command, args []string) error {
			return runCertsShow(std, args[0], cfg.output)
		},
	}
	outputFlag(c, &cfg.output)
	return c
}

// holder is what skein certs show reports.
type holder struct {
	Cluster string    `json:"cluster"`
	Role    pki.Role  `json:"role"`
	Name    string    `json:"name"`
	Expires time.Time `json:"expires"`
	Gossip  bool      `json:"gossip"` // has the key to it
}

func runCertsShow(std streams, dir, output string) error {
	if err := oneOf("output", output, outputText, outputJSON); err != nil {
		return err
	}
	f, err := pki.Load(dir)
	if err != nil {
		return err
	}
	h := holder{f.Cluster, f.Role, f.Name, f.Expires.UTC(), f.GossipKey != nil}
	return one(std, output, h, func() string {
		return fmt.Sprintf("%s  valid until %s\n", f.Identity, f.Expires.Format(time.DateTime))
	})
}
