package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/k8s/access"
	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	"github.com/skein-ml/skein/k8s/policy"
)

// kubeFlags are the flags by which a command finds its cluster in a Kubernetes.
type kubeFlags struct {
	on     bool
	config access.Config

	// patient commands wait for a job that the coordinators do not have yet.
	patient bool
}

func (f *kubeFlags) add(c *cobra.Command) {
	c.Flags().BoolVar(&f.on, "kube", false, "find the cluster in Kubernetes, and reach it through the API server")
	c.Flags().StringVar(&f.config.Cluster, "cluster", "", "with --kube: name of the SkeinCluster; the only one of the namespace if left out")
	c.Flags().StringVarP(&f.config.Namespace, "namespace", "n", "", "with --kube: where the SkeinCluster is; that of the context if left out")
	c.Flags().StringVar(&f.config.Context, "context", "", "with --kube: of the kubeconfig; its current one if left out")
	c.Flags().StringVar(&f.config.Kubeconfig, "kubeconfig", "", "with --kube: file that says how to reach the API server; as kubectl finds it if left out")
}

// check refuses flags that do not go together.
func (f *kubeFlags) check(all *clusterFlags) error {
	switch {
	case f.on && len(all.coordinators) > 0:
		return usageError{errors.New("--kube and --coordinator exclude each other: with --kube the coordinators are found")}
	case f.on && all.insecure:
		return usageError{errors.New("--kube and --insecure exclude each other: in Kubernetes there are certificates")}
	case !f.on && f.again() != "":
		return usageError{errors.New("--cluster, --namespace, --context and --kubeconfig say where a cluster is in Kubernetes; give --kube too")}
	}
	return nil
}

// again is how a command line goes on to talk to the same cluster.
func (f *kubeFlags) again() string {
	text := ""
	if f.on {
		text = " --kube"
	}
	for _, flag := range [][2]string{{"cluster", f.config.Cluster}, {"namespace", f.config.Namespace}, {"context", f.config.Context}, {"kubeconfig", f.config.Kubeconfig}} {
		if flag[1] != "" {
			text += " --" + flag[0] + " " + flag[1]
		}
	}
	return text
}

// find opens the API server and finds the cluster.
func (f *clusterFlags) find(ctx context.Context, warn func(string)) (*access.Kube, *v1alpha1.SkeinCluster, error) {
	if err := f.kube.check(f); err != nil {
		return nil, nil, err
	}
	config := f.kube.config
	config.Build, config.Patience, config.Warn = version, f.patience, warn
	k, err := access.Open(config)
	if err != nil {
		return nil, nil, err
	}
	c, err := k.Cluster(ctx)
	return k, c, err
}

// kubeConfig completes the configuration of a client whose cluster is in Kubernetes.
func (f *clusterFlags) kubeConfig(ctx context.Context, c client.Config) (client.Config, error) {
	k, cluster, err := f.find(ctx, c.Warn)
	if err != nil {
		return c, err
	}
	var files *pki.Files
	if f.tls != "" { // who may not read secrets has certificates of his own
		files, err = certificates(f.tls)
	} else {
		files, err = k.Credentials(ctx, cluster)
	}
	if err != nil {
		return c, err
	}
	c.Coordinators, c.TLS = policy.Addresses(cluster, policy.Replicas(cluster)), expect(files, pki.Coordinator)
	c.Dial, c.Advice = k.Dialer(cluster), fmt.Sprintf("see `kubectl describe skeincluster %s --namespace %s`", cluster.Name, k.Namespace())
	c.Resolve = func(ctx context.Context, word string) (string, error) {
		return f.resolve(ctx, c, word, func() (string, error) { return k.Resolve(ctx, cluster, word) })
	}
	c.EnsureDefaults()
	return c, nil
}

// lookAgain is how often it is looked whether the coordinators have a job now.
const lookAgain = 500 * time.Millisecond

// resolve asks for a job's id: patient commands until there is one.
func (f *clusterFlags) resolve(ctx context.Context, c client.Config, word string, ask func() (string, error)) (string, error) {
	said := ""
	for {
		id, err := ask()
		pending, ok := errors.AsType[*access.PendingError](err)
		if !ok || !f.kube.patient {
			return id, err
		}
		if pending.Why != said {
			c.Warn(pending.Error())
			said = pending.Why
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return "", stoppedError{fmt.Sprintf("stopped waiting; FineTuneJob %s stays as it is; wait again with: skein watch %s%s", word, word, f.again()), ctx.Err()}
			}
			return "", ctx.Err()
		case <-time.After(lookAgain):
		}
	}
}

// submittedKube is what skein submit --kube reports.
type submittedKube struct {
	Event     string `json:"event"`
	Job       string `json:"job"`
	Namespace string `json:"namespace"`
	Cluster   string `json:"cluster"`
}

// submitKube makes a FineTuneJob of the job file.
func submitKube(ctx context.Context, std streams, cfg submitConfig) error {
	if cfg.Request != "" {
		return usageError{errors.New("--request is not for --kube: there a job is told by its name, and made once however often it is asked for")}
	}
	if cfg.Upload != nil && *cfg.Upload {
		return usageError{errors.New("--upload is not for --kube: copy model and data into the storage that the workers share, and name them from there")}
	}
	warn := func(text string) { fmt.Fprintf(std.err, "skein: warning: %s\n", text) }
	k, c, err := cfg.cluster.find(ctx, warn)
	if err != nil {
		return unsent(ctx, err)
	}
	for _, key := range access.Elsewhere(cfg.Job, c) {
		warn(fmt.Sprintf("%s is not below %s, which is all that workers of SkeinCluster %s can see", key, policy.MountPath(c), c.Name))
	}
	j, err := k.Submit(ctx, c, cfg.Job)
	if err != nil {
		return err
	}
	switch cfg.output {
	case outputName:
		_, err = fmt.Fprintln(std.out, j.Name)
	case outputJSON:
		err = std.object(submittedKube{"submitted", j.Name, k.Namespace(), c.Name})
	default:
		_, err = fmt.Fprintf(std.out, "%s  submitted to SkeinCluster %s in namespace %s\n", j.Name, c.Name, k.Namespace())
	}
	if err != nil || !cfg.Watch {
		return err
	}
	w := watchConfig{cluster: cfg.cluster, Job: j.Name, Lines: -1, output: cfg.output}
	if w.output == outputName {
		w.output = outputText
	}
	w.cluster.kube.config.Cluster = c.Name
	return runWatch(ctx, std, w)
}

// scaleKube changes the FineTuneJob of a job, which the operator follows; false: the job
// has none, so the coordinators alone know it.
func scaleKube(ctx context.Context, std streams, cfg scaleConfig) (bool, error) {
	k, c, err := cfg.cluster.find(ctx, nil)
	if err != nil {
		return false, err
	}
	j, err := k.Owner(ctx, c, cfg.Job)
	if err != nil || j == nil {
		return false, err
	}
	if err := k.Scale(ctx, j.Name, cfg.Workers); err != nil {
		return true, err
	}
	_, err = fmt.Fprintf(std.out, "%s  at most %d workers\n", j.Name, cfg.Workers)
	return true, err
}

// heldKube refuses to resume what its FineTuneJob suspends: the operator would stop it
// again.
func heldKube(ctx context.Context, cluster clusterFlags, word string) error {
	k, c, err := cluster.find(ctx, nil)
	if err != nil {
		return err
	}
	j, err := k.Owner(ctx, c, word)
	if err != nil || j == nil {
		return err
	}
	if held, _, why := policy.Held(j); held {
		return fmt.Errorf("FineTuneJob %s is suspended: %s", j.Name, why)
	}
	return nil
}

// awaitedKube says of each FineTuneJob that the coordinators do not have why that is so.
func awaitedKube(ctx context.Context, cluster clusterFlags, say func(string)) error {
	k, c, err := cluster.find(ctx, nil)
	if err != nil {
		return err
	}
	list, err := k.Jobs(ctx, c)
	if err != nil {
		return err
	}
	for i := range list {
		if j := &list[i]; j.Status.Job == "" {
			say((&access.PendingError{Name: j.Name, Why: access.Why(j)}).Error())
		}
	}
	return nil
}
