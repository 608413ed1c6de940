// Package client is the user's side of a cluster: it submits jobs and watches them
// through any coordinator, leader or not, and says in one line what to do when that
// cannot be done.
package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/skein-ml/skein/internal/reach"
	"github.com/skein-ml/skein/proto/leader"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// Config says which cluster, and who asks. Zero values mean the defaults.
type Config struct {
	Coordinators []string    // host:port of some of them
	TLS          *tls.Config // nil: plain
	Insecure     bool        // plain to other machines too
	Build        string      // version of this program

	// Dial reaches a coordinator's address; nil: over TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	// Advice is what to do about a coordinator that is not reached; "": start one.
	Advice string

	// Resolve says which job a word means to whoever keeps names of his own: its id, or
	// the word as it is; nil: nobody does.
	Resolve func(ctx context.Context, word string) (string, error)

	// Patience is how long a coordinator that leads is looked for; 10 s. A watcher that
	// has found one looks for the next for WatchPatience; 5 min.
	Patience      time.Duration
	WatchPatience time.Duration

	// Warn is told once of what the user should know and need not act on; may be nil.
	Warn func(text string)
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	if c.Patience == 0 {
		c.Patience = 10 * time.Second
	}
	if c.WatchPatience == 0 {
		c.WatchPatience = 5 * time.Minute
	}
	if c.Advice == "" {
		c.Advice = "start one with `skein coordinator`, or name others with --coordinator"
	}
	if c.Resolve == nil {
		c.Resolve = func(_ context.Context, word string) (string, error) { return word, nil }
	}
	if c.Warn == nil {
		c.Warn = func(string) {}
	}
}

// Validate names every conflict.
func (c *Config) Validate() error {
	if len(c.Coordinators) == 0 {
		return errors.New("which cluster? give --coordinator host:port,…, or set SKEIN_COORDINATOR")
	}
	var errs []error
	for _, a := range c.Coordinators {
		host, port, err := net.SplitHostPort(a)
		if err != nil || host == "" || port == "" {
			errs = append(errs, fmt.Errorf("--coordinator: %q is not host:port, such as 10.0.0.1:7401", a))
		} else if c.TLS == nil && !c.Insecure && !reach.Loopback(host) {
			errs = append(errs, fmt.Errorf("--coordinator: %s is another machine, which is spoken to with certificates; give --tls DIR (`skein certs issue client NAME` makes one), or --insecure for plain text", a))
		}
	}
	return errors.Join(errs...)
}

// Local tells whether all coordinators are on this machine: plain clusters are.
func (c *Config) Local() bool {
	for _, a := range c.Coordinators {
		if !reach.HereOnly(a) {
			return false
		}
	}
	return true
}

// Client talks to a cluster. It is safe for concurrent use. Close it.
type Client struct {
	config Config
	conn   *leader.Conn
	jobs   skeinv1.JobsClient
	ops    skeinv1.ClusterClient
}

// New makes a client. It connects when it is first used.
func New(c Config) (*Client, error) {
	c.EnsureDefaults()
	if err := c.Validate(); err != nil {
		return nil, err
	}
	warned := false
	conn, err := leader.New(leader.Config{Addresses: c.Coordinators, TLS: c.TLS, Build: c.Build, Dial: c.Dial, OtherBuild: func(address, build string) {
		if !warned { // one line, however many coordinators
			c.Warn(fmt.Sprintf("coordinator %s is of build %s, this is %s; the same version on all machines is safer", address, build, c.Build))
		}
		warned = true
	}})
	if err != nil {
		return nil, err
	}
	return &Client{config: c, conn: conn, jobs: skeinv1.NewJobsClient(conn), ops: skeinv1.NewClusterClient(conn)}, nil
}

// Close ends all connections.
func (c *Client) Close() error { return c.conn.Close() }

// Leader is the address of the coordinator that answered last.
func (c *Client) Leader() string { return c.conn.Address() }

// quiet is how long a call may take before somebody looks why.
const quiet = time.Second

// call runs a call within the client's patience. While it gets no answer, what keeps it
// is looked at: a cluster that will never answer is not waited for.
func (c *Client) call(ctx context.Context, do func(context.Context) error) error {
	return c.callFor(ctx, c.config.Patience, do)
}

func (c *Client) callFor(ctx context.Context, patience time.Duration, do func(context.Context) error) error {
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	done := make(chan error, 1) // do always returns
	go func() { done <- do(within) }()
	var tries []Try
	select {
	case err := <-done:
		return c.explain(ctx, err, nil)
	case <-time.After(quiet):
		tries = c.look(within)
		if hopeless(tries) {
			cancel()
		}
	}
	return c.explain(ctx, <-done, tries)
}

// Nodes lists coordinators and workers.
func (c *Client) Nodes(ctx context.Context) (nodes *skeinv1.NodesResponse, err error) {
	err = c.call(ctx, func(ctx context.Context) error {
		nodes, err = c.ops.Nodes(ctx, &skeinv1.NodesRequest{})
		return err
	})
	return nodes, err
}

// Get returns all that is known of a job, by its id.
func (c *Client) Get(ctx context.Context, id string) (got *skeinv1.GetResponse, err error) {
	err = c.call(ctx, func(ctx context.Context) error {
		got, err = c.jobs.Get(ctx, &skeinv1.GetRequest{Job: id})
		return err
	})
	return got, err
}

// List returns the jobs in order of submission.
func (c *Client) List(ctx context.Context, activeOnly bool) ([]*skeinv1.Job, error) {
	var got *skeinv1.ListResponse
	err := c.call(ctx, func(ctx context.Context) (err error) {
		got, err = c.jobs.List(ctx, &skeinv1.ListRequest{ActiveOnly: activeOnly})
		return err
	})
	return got.GetJobs(), err
}

// Cancel ends a job that is not over, by its id.
func (c *Client) Cancel(ctx context.Context, id, reason string) error {
	return c.call(ctx, func(ctx context.Context) error {
		_, err := c.jobs.Cancel(ctx, &skeinv1.CancelRequest{Job: id, Reason: reason})
		return err
	})
}

// Scale changes the most workers that a job uses, and returns how many of them shorten a
// step.
func (c *Client) Scale(ctx context.Context, id string, workers int32) (useful int32, err error) {
	err = c.call(ctx, func(ctx context.Context) error {
		out, err := c.jobs.Scale(ctx, &skeinv1.ScaleRequest{Job: id, Workers: workers})
		useful = out.GetUseful()
		return err
	})
	return useful, err
}

// Pause has a job stop at a step boundary, with a checkpoint, and give its workers back.
func (c *Client) Pause(ctx context.Context, id, reason string) error {
	return c.call(ctx, func(ctx context.Context) error {
		_, err := c.jobs.Pause(ctx, &skeinv1.PauseRequest{Job: id, Reason: reason})
		return err
	})
}

// Resume lets a paused job go on.
func (c *Client) Resume(ctx context.Context, id string) error {
	return c.call(ctx, func(ctx context.Context) error {
		_, err := c.jobs.Resume(ctx, &skeinv1.ResumeRequest{Job: id})
		return err
	})
}

// Find returns the job that a user means: by its id, by the beginning of an id that no
// other job's has, or by a name that only one active job has.
func (c *Client) Find(ctx context.Context, word string) (*skeinv1.Job, error) {
	word, err := c.config.Resolve(ctx, word)
	if err != nil {
		return nil, err
	}
	jobs, err := c.List(ctx, false)
	if err != nil {
		return nil, err
	}
	return choose(jobs, word)
}

func choose(jobs []*skeinv1.Job, word string) (*skeinv1.Job, error) {
	var begin, named []*skeinv1.Job
	for _, j := range jobs {
		if j.GetId() == word {
			return j, nil
		}
		if word != "" && strings.HasPrefix(j.GetId(), word) {
			begin = append(begin, j)
		}
		if j.GetName() == word && !Over(j.GetPhase()) {
			named = append(named, j)
		}
	}
	switch {
	case len(named) == 1:
		return named[0], nil
	case len(begin) == 1:
		return begin[0], nil
	case len(begin) == 0:
		return nil, &NotFoundError{word}
	}
	e := &AmbiguousError{Word: word}
	for _, j := range begin {
		e.Jobs = append(e.Jobs, j.GetId())
	}
	return nil, e
}
