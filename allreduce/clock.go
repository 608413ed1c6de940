package allreduce

import "time"

// The clock of the connections: deadlines, pings, and how long callers waited. No
// frame's content, place or order depends on it.

func now() time.Time { return time.Now() }

func since(t time.Time) time.Duration { return time.Since(t) }

func after(d time.Duration) <-chan time.Time { return time.After(d) }

func ticker(d time.Duration) *time.Ticker { return time.NewTicker(d) }
