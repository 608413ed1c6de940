package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/jobspec"
)

const (
	outputText = "text"
	outputJSON = "json"
)

func newRoot(std streams, eng engine) *cobra.Command {
	root := &cobra.Command{
		Use:   "skein",
		Short: "Fine-tune language models: same bits always, nothing lost",
		Long: `Skein fine-tunes language models. A job file says what to train; the weights
that come out depend on it alone, not on threads, workers or interruptions.

Exit status:
  0    done
  1    failed; standard error says in one line what to do
  2    the command line or the job file is wrong; nothing was started
  3    the job needs more memory than it may use; nothing was started
  4    there is no such job, or several could be meant
  5    no coordinator answers that could
  6    what was waited for has not come in the given time
  7    the job was canceled
  130  interrupted; a job of this process goes on when the same command is given
       again, and a job of a cluster has not noticed`,
		Example: `  skein import SmolLM2-135M-Instruct.Q4_1.gguf ./SmolLM2-135M-Instruct
  skein plan -f job.yaml
  skein train -f job.yaml
  skein submit -f job.yaml --watch --coordinator 10.0.0.1:7401,10.0.0.2:7401`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return usageError{fmt.Errorf("unknown command %q; `skein --help` lists the commands", args[0])}
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetIn(std.in)
	root.SetOut(std.out)
	root.SetErr(std.err)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())}
	})
	group(root, "On this machine:", newTrain(std, eng), newPlan(std, eng), newGenerate(std, eng), newEval(std, eng), newExport(std, eng),
		newImport(std), newData(std), newDoctor(std), newBench(std), newVersion(std))
	group(root, "On a cluster, from any machine:", newSubmit(std), newJobs(std), newDescribe(std), newLogs(std), newWatch(std), newWait(std),
		newScale(std), newPause(std), newResume(std), newCancel(std), newNodes(std))
	group(root, "To run a cluster:", newCoordinator(std), newWorker(std), newCerts(std))
	return root
}

// group adds commands that the help shows together.
func group(root *cobra.Command, title string, commands ...*cobra.Command) {
	root.AddGroup(&cobra.Group{ID: title, Title: title})
	for _, c := range commands {
		c.GroupID = title
		root.AddCommand(c)
	}
}

// args refuses a wrong count of arguments, naming those that the command takes.
func args(want ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, got []string) error {
		atLeast := len(want)
		open := atLeast > 0 && strings.HasSuffix(want[atLeast-1], "…")
		if len(got) == atLeast || open && len(got) >= atLeast {
			return nil
		}
		if atLeast == 0 {
			return usageError{fmt.Errorf("%s takes no arguments, but was given %q; see `%s --help`", c.CommandPath(), got[0], c.CommandPath())}
		}
		plural := "s"
		if len(got) == 1 {
			plural = ""
		}
		return usageError{fmt.Errorf("%s takes %s, but was given %d argument%s; see `%s --help`", c.CommandPath(), strings.Join(want, " "), len(got), plural, c.CommandPath())}
	}
}

// jobFlags are the flags of every command that reads a job file.
type jobFlags struct {
	file     string
	settings []string
}

func (f *jobFlags) add(c *cobra.Command) {
	c.Flags().StringVarP(&f.file, "file", "f", "", "the job file; - is standard input")
	c.Flags().StringArrayVar(&f.settings, "set", nil, "set a key of the job file, such as train.steps=8; may be repeated")
}

// read returns the job, completed and validated.
func (f *jobFlags) read(std streams) (*jobspec.Job, error) {
	switch f.file {
	case "":
		return nil, usageError{fmt.Errorf("which job? give -f job.yaml")}
	case "-":
		return jobspec.Read("standard input", std.in, f.settings...)
	}
	job, err := jobspec.ReadFile(f.file, f.settings...)
	switch failed, ok := errors.AsType[*fs.PathError](err); {
	case ok && errors.Is(err, fs.ErrNotExist):
		return nil, usageError{fmt.Errorf("job file %s: no such file; check the path", f.file)}
	case ok:
		return nil, usageError{fmt.Errorf("job file %s: %w; give a file that can be read", f.file, failed.Err)}
	}
	return job, err
}

// reading runs do. Its error is a usageError if the job named a model or data that were
// not there: nothing was started.
func reading(job *jobspec.Job, do func() error) error {
	missing := client.Missing(vfs.OS, job)
	err := do()
	if err != nil && missing && !errors.Is(err, context.Canceled) {
		return usageError{err}
	}
	return err
}

// cacheFlag adds --cache.
func cacheFlag(c *cobra.Command, dir *string) {
	c.Flags().StringVar(dir, "cache", defaultCache(), "folder of prepared data sets")
}

// defaultCache is the user's cache folder, or a temporary one for a process
// that has no home.
func defaultCache() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = os.TempDir()
	}
	return filepath.Join(dir, "skein", "data")
}

// outputFlag adds -o.
func outputFlag(c *cobra.Command, output *string) {
	c.Flags().StringVarP(output, "output", "o", outputText, "text, or json for machines")
}

// oneOf refuses a flag whose value is none of the words.
func oneOf(flag, value string, words ...string) error {
	if slices.Contains(words, value) {
		return nil
	}
	return usageError{fmt.Errorf("--%s is %q; it is one of %s", flag, value, strings.Join(words, ", "))}
}

// object prints a value as JSON on one line.
func (s streams) object(v any) error {
	enc := json.NewEncoder(s.out)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// report prints a result: as one JSON object, or as text.
func (s streams) report(output string, v any, text string) error {
	if output != outputJSON {
		_, err := fmt.Fprint(s.out, text)
		return err
	}
	enc := json.NewEncoder(s.out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
