package main

import (
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/internal/gossip"
	"github.com/skein-ml/skein/internal/pki"
)

// logFlags are the flags of commands that run until they are told to stop.
type logFlags struct {
	format, level string
}

func (f *logFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.format, "log-format", outputText, "text or json, on standard error")
	c.Flags().StringVar(&f.level, "log-level", "info", "debug, info, warn or error")
}

// logger writes to standard error.
func (f *logFlags) logger(std streams) (*slog.Logger, error) {
	if err := oneOf("log-format", f.format, outputText, outputJSON); err != nil {
		return nil, err
	}
	if err := oneOf("log-level", f.level, "debug", "info", "warn", "error"); err != nil {
		return nil, err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.level)); err != nil {
		return nil, err
	}
	options := slog.HandlerOptions{Level: level}
	if f.format == outputJSON {
		return slog.New(slog.NewJSONHandler(std.err, &options)), nil
	}
	return slog.New(slog.NewTextHandler(std.err, &options)), nil
}

// gossipFlags are the flags of processes that tell each other where they are.
type gossipFlags struct {
	listen, advertise string
	join              []string
}

func (f *gossipFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.listen, "gossip-listen", "", "host:port, UDP and TCP, to spread addresses on; nobody gossips if left out")
	c.Flags().StringVar(&f.advertise, "gossip-advertise", "", "host:port where others reach it; --gossip-listen if left out")
	c.Flags().StringSliceVar(&f.join, "gossip-join", nil, "some members to begin with, host:port,…")
}

// check refuses flags that would not do. Files may be nil.
func (f *gossipFlags) check(files *pki.Files) error {
	if f.listen == "" {
		return nil
	}
	c := gossip.Config{Role: gossip.Worker, Name: "check", Listen: f.listen, Advertise: f.advertise}
	if files != nil {
		c.Key = files.GossipKey
	}
	if err := c.Validate(); err != nil {
		return usageError{err}
	}
	return nil
}

// start takes part, if the flags say so; nil if not.
func (f *gossipFlags) start(c gossip.Config, files *pki.Files) (*gossip.Gossip, error) {
	if f.listen == "" {
		return nil, nil
	}
	c.Listen, c.Advertise, c.Join = f.listen, f.advertise, f.join
	if files != nil {
		c.Key = files.GossipKey
	}
	return gossip.Start(c)
}

// addLifeline adds the flag by which a process ends with the one that started it.
func addLifeline(c *cobra.Command, on *bool) {
	c.Flags().BoolVar(on, "until-stdin-ends", false, "end at once when standard input does: with the process that holds it")
	_ = c.Flags().MarkHidden("until-stdin-ends") // it is there
}

// lifeline ends the process when whoever holds the other end of its standard input is
// gone, however that happened.
func lifeline(std streams, on bool) {
	if on {
		go func() {
			_, _ = io.Copy(io.Discard, std.in) // it ends, and that is all that counts
			os.Exit(exitInterrupted)
		}()
	}
}
