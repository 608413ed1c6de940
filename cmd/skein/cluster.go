package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/internal/pki"
)

// What a client takes from its environment where a flag is left out.
const (
	coordinatorVariable = "SKEIN_COORDINATOR"
	tlsVariable         = "SKEIN_TLS"
)

// clusterFlags are the flags of every command that talks to a cluster.
type clusterFlags struct {
	coordinators []string
	tls          string
	insecure     bool
	patience     time.Duration
	kube         kubeFlags
}

func (f *clusterFlags) add(c *cobra.Command) {
	c.Flags().StringSliceVar(&f.coordinators, "coordinator", nil, "some of the coordinators, host:port,…; default $"+coordinatorVariable)
	c.Flags().StringVar(&f.tls, "tls", "", "folder of certificates, made by skein certs; default $"+tlsVariable)
	c.Flags().BoolVar(&f.insecure, "insecure", false, "speak plain text to other machines too")
	c.Flags().DurationVar(&f.patience, "connect-timeout", 10*time.Second, "how long to look for a coordinator")
	f.kube.add(c)
}

// config fills in the environment and reads the certificates.
func (f *clusterFlags) config(ctx context.Context, std streams) (client.Config, error) {
	c := client.Config{
		Coordinators: addresses(f.coordinators, os.Getenv(coordinatorVariable)), Insecure: f.insecure, Build: version, Patience: f.patience,
		Warn: func(text string) { fmt.Fprintf(std.err, "skein: warning: %s\n", text) },
	}
	if f.patience <= 0 {
		return c, usageError{fmt.Errorf("--connect-timeout is %s; give a time such as 10s", f.patience)}
	}
	if err := f.kube.check(f); err != nil {
		return c, err
	}
	if f.kube.on {
		return f.kubeConfig(ctx, c)
	}
	files, err := certificates(f.tls)
	if err != nil {
		return c, err
	}
	if files != nil {
		c.TLS = expect(files, pki.Coordinator)
	}
	c.EnsureDefaults()
	if err := c.Validate(); err != nil {
		return c, usageError{err}
	}
	return c, nil
}

// open connects to the cluster when it is first used. Close the client.
func (f *clusterFlags) open(ctx context.Context, std streams) (*client.Client, error) {
	c, err := f.config(ctx, std)
	if err != nil {
		return nil, err
	}
	return client.New(c)
}

// with runs do with a client.
func (f *clusterFlags) with(ctx context.Context, std streams, do func(context.Context, *client.Client) error) error {
	c, err := f.open(ctx, std)
	if err != nil {
		return err
	}
	defer c.Close()
	return do(ctx, c)
}

// again is how a command line goes on to talk to the same cluster.
func (f *clusterFlags) again() string {
	text := ""
	if len(f.coordinators) > 0 {
		text += " --coordinator " + strings.Join(f.coordinators, ",")
	}
	if f.tls != "" {
		text += " --tls " + f.tls
	}
	if f.insecure {
		text += " --insecure"
	}
	return text + f.kube.again()
}

func addresses(flag []string, variable string) []string {
	if len(flag) > 0 {
		return flag
	}
	return strings.FieldsFunc(variable, func(r rune) bool { return r == ',' || r == ' ' })
}

// certificates reads those of a folder, or of the environment's; nil if neither is named.
func certificates(dir string) (*pki.Files, error) {
	if dir == "" {
		dir = os.Getenv(tlsVariable)
	}
	if dir == "" {
		return nil, nil
	}
	files, err := pki.Load(dir)
	if err != nil {
		return nil, usageError{fmt.Errorf("--tls: %w", err)}
	}
	return files, nil
}

func expect(files *pki.Files, roles ...pki.Role) *tls.Config { return files.Expect(roles...) }

// stoppedError says that this command was interrupted and the job was not.
type stoppedError struct {
	text string
	err  error // the context's
}

func (e stoppedError) Error() string { return e.text }

// Unwrap gives the context's error.
func (e stoppedError) Unwrap() error { return e.err }

// Formats of lists.
const (
	outputWide = "wide"
	outputYAML = "yaml"
)

// listFlag adds -o of a command that lists.
func listFlag(c *cobra.Command, output *string) {
	c.Flags().StringVarP(output, "output", "o", outputText, "text, wide, yaml, or json for machines: an object on a line for each")
}

func checkList(output string) error {
	return oneOf("output", output, outputText, outputWide, outputJSON, outputYAML)
}

// list prints items: as a table, as objects on lines, or as YAML.
func list[T any](std streams, output string, items []T, table func() string) error {
	switch output {
	case outputJSON:
		for _, item := range items {
			if err := std.object(item); err != nil {
				return err
			}
		}
		return nil
	case outputYAML:
		if len(items) == 0 {
			_, err := fmt.Fprintln(std.out, "[]")
			return err
		}
		text, err := console.YAML(items)
		if err != nil {
			return err
		}
		_, err = fmt.Fprint(std.out, text)
		return err
	}
	_, err := fmt.Fprint(std.out, table())
	return err
}

// one prints one thing: as text, an object on a line, or YAML.
func one(std streams, output string, v any, text func() string) error {
	switch output {
	case outputJSON:
		return std.object(v)
	case outputYAML:
		y, err := console.YAML(v)
		if err != nil {
			return err
		}
		_, err = fmt.Fprint(std.out, y)
		return err
	}
	_, err := fmt.Fprint(std.out, text())
	return err
}
