package allreduce

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/skein-ml/skein/shard"
)

// proxy stands before a worker's listener, reads what comes frame by frame, and lets a
// filter change it.
type proxy struct {
	t      testing.TB
	l      net.Listener
	to     string
	filter func(h header, frame []byte) (out [][]byte, end bool)
	wg     sync.WaitGroup
	mu     sync.Mutex
	conns  []net.Conn
}

func newProxy(t testing.TB, to string, filter func(header, []byte) ([][]byte, bool)) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, l: l, to: to, filter: filter}
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		for _, c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) serve(from net.Conn) {
	to, err := net.Dial("tcp", p.to)
	if err != nil {
		_ = from.Close()
		return
	}
	p.mu.Lock()
	p.conns = append(p.conns, from, to)
	p.mu.Unlock()
	p.wg.Go(func() {
		_, _ = io.Copy(from, to)
		_ = from.Close()
	})
	h, err := readOpening(from)
	if err != nil {
		_ = to.Close()
		return
	}
	if h.asks {
		_, _ = to.Write(question{h.FromName, h.ToName}.append(nil))
	} else {
		_, _ = to.Write(h.hello.append(nil))
	}
	for {
		frame := make([]byte, headerSize)
		if _, err := io.ReadFull(from, frame); err != nil {
			_ = to.Close()
			return
		}
		var h header
		if err := h.decode(frame); err != nil {
			p.t.Error(err)
			return
		}
		frame = append(frame, make([]byte, h.Length)...)
		if _, err := io.ReadFull(from, frame[headerSize:]); err != nil {
			_ = to.Close()
			return
		}
		out, end := p.filter(h, frame)
		for _, b := range out {
			if _, err := to.Write(b); err != nil {
				return // what the other side said last still comes back
			}
		}
		if end {
			_ = to.Close()
			_ = from.Close()
			return
		}
	}
}

// TestEveryFaultBreaksTheLinkOnceAndNamesTheWorkerAndTheFrame puts a proxy between w0
// and w1 and lets it do one thing wrong.
func TestEveryFaultBreaksTheLinkOnceAndNamesTheWorkerAndTheFrame(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	pass := func(f []byte) [][]byte { return [][]byte{f} }
	remade := func(h header, f []byte) [][]byte {
		f = bytes.Clone(f)
		h.encode(f)
		return pass(f)
	}
	otherFrom := func(h header, f []byte) ([][]byte, bool) {
		h.From = 9
		return remade(h, f), false
	}
	for _, c := range []struct {
		name   string
		kind   kind
		spoil  func(h header, f []byte) ([][]byte, bool)
		text   string
		anyone bool // who is accused depends on who notices first
	}{
		{"closed in a frame", kindReduce, func(_ header, f []byte) ([][]byte, bool) { return pass(f[:len(f)/2]), true }, "w", true},
		{"closed between frames", kindReduce, func(header, []byte) ([][]byte, bool) { return nil, true }, "w", true},
		{"a flipped bit in a payload", kindReduce, func(_ header, f []byte) ([][]byte, bool) {
			f[len(f)-1] ^= 4
			return pass(f), false
		}, "checksum of its payload differs", false},
		{"a flipped bit in gathered bytes", kindGather, func(_ header, f []byte) ([][]byte, bool) {
			f[headerSize] ^= 1
			return pass(f), false
		}, "checksum of its payload differs", false},
		{"a flipped bit in a header", kindReduce, func(_ header, f []byte) ([][]byte, bool) {
			f[20] ^= 1
			return pass(f), false
		}, "checksum of its header differs", false},
		{"a reduce frame twice", kindReduce, func(_ header, f []byte) ([][]byte, bool) { return [][]byte{f, f}, false }, "expected elements from", false},
		{"a gather frame twice", kindGather, func(_ header, f []byte) ([][]byte, bool) { return [][]byte{f, f}, false }, "gather, step 1", false},
		{"a decision twice", kindDecision, func(_ header, f []byte) ([][]byte, bool) { return [][]byte{f, f}, false }, "decided: true", false},
		{"rows twice", kindRows, func(_ header, f []byte) ([][]byte, bool) { return [][]byte{f, f}, false }, "rows, step 1", false},
		{"weights ahead of the decision", kindReduce, func(h header, f []byte) ([][]byte, bool) {
			h.Kind = kindGather
			return remade(h, f), false
		}, "a decision travels ahead", false},
		{"a frame of another step", kindReduce, func(h header, f []byte) ([][]byte, bool) {
			h.Step += 2
			return remade(h, f), false
		}, "another step", false},
		{"a frame cut otherwise", kindReduce, func(h header, f []byte) ([][]byte, bool) {
			h.Lo++
			return remade(h, f), false
		}, "are not a frame", false},
		{"no such bucket", kindReduce, func(h header, f []byte) ([][]byte, bool) {
			h.Bucket = 70
			return remade(h, f), false
		}, "there are 2 buckets", false},
		{"a vote of the decider", kindDecision, func(h header, f []byte) ([][]byte, bool) {
			h.Kind, h.Length = kindVote, 4
			return remade(h, f[:headerSize+4]), false
		}, "vote", false},
		{"a message against all limits", kindReduce, func(h header, f []byte) ([][]byte, bool) {
			h.Kind, h.Lo, h.Hi = kindPass, 0, blobMax+1
			return remade(h, f), false
		}, "not a frame", false},
		{"a reduce frame of somebody else", kindReduce, otherFrom, "it is of worker 0, and says 9", false},
		{"a gather frame of somebody else", kindGather, otherFrom, "it is of worker 0, and says 9", false},
		{"rows of somebody else", kindRows, otherFrom, ", and says 9", false},
		{"a decision of somebody else", kindDecision, otherFrom, "it is of worker 0, and says 9", false},
		{"silence", kindReduce, func() func(header, []byte) ([][]byte, bool) {
			return func(_ header, _ []byte) ([][]byte, bool) { return nil, false }
		}(), "silent for", false},
	} {
		t.Run(c.name, func(t *testing.T) { spoilt(t, c.kind, c.name == "silence", c.spoil, c.text, c.anyone) })
	}
}

func spoilt(t *testing.T, k kind, always bool, spoil func(header, []byte) ([][]byte, bool), text string, anyone bool) {
	var once sync.Once
	done := false
	filter := func(h header, f []byte) (out [][]byte, end bool) {
		out = [][]byte{f}
		if done && always {
			return nil, false
		}
		if h.Kind == k {
			once.Do(func() {
				out, end = spoil(h, f)
				done = true
			})
		}
		return out, end
	}
	ring := newRing(t, ringOptions{worldSize: 3, workers: 3, elem: 4, chunk: 2000, elems: []int64{3000, 300}, seed: 1,
		change: func(c *LinkConfig) {
			if always {
				c.Silence = 400 * time.Millisecond
			}
		},
		address: func(worker int, addr string) string {
			if worker == 1 {
				return newProxy(t, addr, filter).l.Addr().String()
			}
			return addr
		}})
	errs := make([]error, len(ring))
	var wg sync.WaitGroup
	for i, w := range ring {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, 1))
			if _, errs[i] = w.reduce(t.Context(), 1, r); errs[i] == nil {
				errs[i] = w.gather(t.Context(), 1, r)
			}
			for errs[i] == nil { // a frame too many may come when all is gathered
				_, errs[i] = w.link.Take(t.Context(), 1)
			}
		})
	}
	wg.Wait()
	for i, err := range errs {
		var broken *LinkError
		if !errors.As(err, &broken) || !errors.Is(ring[i].link.Err(), err) {
			t.Fatalf("worker %d: %v; the link: %v", i, err, ring[i].link.Err())
		}
		if broken.Accused != 0 && !anyone {
			t.Errorf("worker %d accuses %d: %v", i, broken.Accused, err)
		}
		<-ring[i].link.Broken()
	}
	if !strings.Contains(errs[1].Error(), text) {
		t.Errorf("%q does not say %q", errs[1], text)
	}
	closeAll(ring)
}

// TestAKilledWorkerIsNamedByBothNeighbours ends a worker's connections as the kernel
// does for a dead process.
func TestAKilledWorkerIsNamedByBothNeighbours(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	ring := newRing(t, ringOptions{worldSize: 4, workers: 4, elem: 4, chunk: 2000, elems: []int64{3000}, seed: 1})
	for _, w := range ring {
		if err := w.link.Begin(t.Context(), 7); err != nil {
			t.Fatal(err)
		}
		if w.c.Worker != 2 {
			for _, r := range w.ranks() {
				w.link.Ready(r, 0)
			}
		}
	}
	for ring[3].link.Stats().Reduce.SentFrames == 0 || ring[2].link.Stats().Reduce.ReceivedFrames == 0 {
		time.Sleep(time.Millisecond)
	}
	dead := ring[2].link
	dead.mu.Lock() // a dead process says nothing between the two
	dead.in.abort()
	dead.out.abort()
	dead.mu.Unlock()
	for _, i := range []int{1, 3, 0} {
		err := ring[i].link.WaitReduced(t.Context(), 0)
		var broken *LinkError
		if !errors.As(err, &broken) || broken.Accused != 2 || !strings.Contains(err.Error(), "w2") {
			t.Errorf("worker %d: %v", i, err)
		}
		t.Log(err)
	}
	closeAll(ring)
	for _, w := range ring {
		_ = w.listener.Close()
	}
}

func TestWrongGreetingsAreRefusedByName(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for _, c := range []struct {
		name, text string
		change     func(*LinkConfig)
	}{
		{"an older generation", "generation 2 is over, this worker is in 3", func(c *LinkConfig) { c.Key.Generation = 2 }},
		{"another spec", "spec hash other", func(c *LinkConfig) { c.Key.SpecHash = "other" }},
		{"another class", "numeric class avx512-1, the job runs in generic-1", func(c *LinkConfig) { c.Key.Class = "avx512-1" }},
		{"another cut", "frames of 256 elements", func(c *LinkConfig) { c.ChunkBytes = 1024 }},
		{"another wire", "wire type 1", func(c *LinkConfig) { c.Wire = WireBF16 }},
		{"mirrors on one side", "mirrors: true", func(c *LinkConfig) { c.Mirror = true }},
		{"another order of the step", "gather before the vote: true", func(c *LinkConfig) { c.GatherFirst = true }},
		{"another name", "(w9)", func(c *LinkConfig) { c.Names = []string{"w0", "w9"} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			workers := newWorkers(t, ringOptions{worldSize: 2, workers: 2, elem: 4, chunk: 2000, elems: []int64{300}, seed: 1})
			c.change(&workers[0].c)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			right := make(chan error, 1)
			rightCtx, stop := context.WithCancel(ctx)
			go func() {
				_, err := Connect(rightCtx, workers[1].listener, workers[1].c)
				right <- err
			}()
			for known := false; !known; {
				workers[1].listener.mu.Lock()
				known = len(workers[1].listener.jobs) > 0
				workers[1].listener.mu.Unlock()
				runtime.Gosched()
			}
			_, err := Connect(ctx, workers[0].listener, workers[0].c)
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.text) || strings.Count(err.Error(), "\n") != 0 {
				t.Errorf("error %v", err)
			}
			stop()
			if err := <-right; err == nil { // it was refused, or has nobody to talk to
				t.Error("the worker that is right has a ring with one that is wrong")
			}
		})
	}
}

func TestAHigherGenerationIsHeldForItsAssignment(t *testing.T) {
	workers := newWorkers(t, ringOptions{worldSize: 2, workers: 2, elem: 4, chunk: 2000, elems: []int64{300}, seed: 1})
	connect(t, workers)
	first := []*testWorker{{link: workers[0].link}, {link: workers[1].link}}
	for _, w := range workers {
		w.c.Key.Generation = 4
	}
	each(t, workers, func(w *testWorker) error {
		if w.c.Worker == 1 {
			time.Sleep(200 * time.Millisecond)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		link, err := Connect(ctx, w.listener, w.c)
		w.link = link
		return err
	})
	closeAll(first)
	each(t, workers, func(w *testWorker) error {
		_, err := w.link.Exchange(t.Context(), "hello", []byte{1})
		return err
	})
	if _, err := Connect(t.Context(), workers[0].listener, workers[0].c); err == nil {
		t.Error("a generation was connected twice")
	}
	workers[0].c.Key.Generation = 3
	if _, err := Connect(t.Context(), workers[0].listener, workers[0].c); err == nil || !strings.Contains(err.Error(), "generation 3 is over") {
		t.Errorf("error %v", err)
	}
}

// TestStrangersDoNoHarm talks nonsense to a listener, some of it for ever, while
// workers connect through it.
func TestStrangersDoNoHarm(t *testing.T) {
	workers := newWorkers(t, ringOptions{worldSize: 2, workers: 2, elem: 4, chunk: 2000, elems: []int64{300}, seed: 1})
	addr := workers[1].listener.Addr()
	h := hello{Key: Key{Job: "another", Generation: 9}, FromName: "x"}
	noise := [][]byte{[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), {0}, {}, bytes.Repeat([]byte{0xFF}, 5000), []byte("SKNR\x02\x00\xFF\xFF"),
		[]byte("SKNR\x07\x00\x00\x01"), h.append(nil), h.append(nil)[:20]}
	var open []net.Conn
	for i := range 3 * pendingMax {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
		_, _ = c.Write(noise[i%len(noise)])
	}
	connect(t, workers)
	each(t, workers, func(w *testWorker) error {
		_, err := w.link.Exchange(t.Context(), "hello", []byte{1})
		return err
	})
	if n := runtime.NumGoroutine(); n > 4*pendingMax {
		t.Errorf("%d goroutines", n)
	}
	_ = open[0].SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := open[0].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a web client is still connected: %v", err)
	}
	for _, c := range open {
		_ = c.Close()
	}
}

func TestConnectEndsWithItsListener(t *testing.T) {
	workers := newWorkers(t, ringOptions{worldSize: 2, workers: 2, elem: 4, chunk: 2000, elems: []int64{300}, seed: 1})
	failed := make(chan error, 1)
	go func() {
		_, err := Connect(t.Context(), workers[0].listener, workers[0].c)
		failed <- err
	}()
	time.Sleep(20 * time.Millisecond)
	_ = workers[0].listener.Close()
	if err := <-failed; !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v", err)
	}
}

func TestConnectSaysWhoIsMissing(t *testing.T) {
	workers := newWorkers(t, ringOptions{worldSize: 2, workers: 2, elem: 4, chunk: 2000, elems: []int64{300}, seed: 1})
	_ = workers[1].listener.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := Connect(ctx, workers[0].listener, workers[0].c)
	if err == nil || !strings.Contains(err.Error(), "w1") {
		t.Errorf("error %v", err)
	}
}

func TestConfigurationsThatCannotBeAreRefused(t *testing.T) {
	workers := newWorkers(t, ringOptions{worldSize: 2, workers: 2, elem: 4, chunk: 2000, elems: []int64{300}, seed: 1})
	one, err := shard.EvenPlacement(2, 1)
	if err != nil {
		t.Fatal(err)
	}
	for why, change := range map[string]func(*LinkConfig){
		"one worker":   func(c *LinkConfig) { c.Placement = one },
		"no such":      func(c *LinkConfig) { c.Worker = 2 },
		"no memory":    func(c *LinkConfig) { c.Memory = nil },
		"no decider":   func(c *LinkConfig) { c.Decide = nil },
		"odd chunk":    func(c *LinkConfig) { c.ChunkBytes = 6 },
		"large chunk":  func(c *LinkConfig) { c.ChunkBytes = 1 << 30 },
		"long name":    func(c *LinkConfig) { c.Key.Job = strings.Repeat("j", 300) },
		"unknown wire": func(c *LinkConfig) { c.Wire = 9 },
		"no mirror":    func(c *LinkConfig) { c.Mirror, c.Memory = true, struct{ LinkMemory }{c.Memory} },
		"both":         func(c *LinkConfig) { c.Mirror, c.GatherFirst = true, true },
		"gather half":  func(c *LinkConfig) { c.GatherFirst, c.Memory = true, halves{c.Memory} },
	} {
		c := workers[0].c
		change(&c)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if _, err := Connect(ctx, workers[0].listener, c); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", why, err)
		}
		cancel()
	}
}

// halves is memory that gathers bfloat16.
type halves struct{ LinkMemory }

func (halves) ElemBytes() int { return 2 }

func FuzzDecodeHeader(f *testing.F) {
	for k := range kindEnd {
		h := header{Kind: k, Length: 4, Step: 7, Lo: 3, Hi: 90, Bucket: 2, Piece: 1, From: 2, Sum: 9}
		b := make([]byte, headerSize)
		h.encode(b)
		f.Add(b)
		h = header{Kind: k, Step: -1, Hi: 1 << 62, Length: DecisionSize}
		h.encode(b)
		f.Add(bytes.Clone(b))
	}
	f.Add([]byte("SK"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var h header
		if err := h.decode(b); err != nil {
			if !errors.Is(err, errHeader) {
				t.Fatalf("error %v", err)
			}
			return
		}
		again := make([]byte, headerSize)
		h.encode(again)
		if !bytes.Equal(again, b) {
			t.Fatalf("%x was read and written as %x", b, again)
		}
		if h.String() == "" || h.Length > payloadMax {
			t.Fatalf("%+v", h)
		}
	})
}

func FuzzReadOpening(f *testing.F) {
	h := hello{Key: Key{"job-1", 3, "5bec", "generic-1"}, From: 1, To: 2, Workers: 3, WorldSize: 8, Wire: WireBF16, ElemBytes: 2, Chunk: 100, FromName: "a", ToName: "b"}
	f.Add(h.append(nil))
	f.Add(answer{refusedJob, "spec hash"}.append(nil))
	f.Add(question{"w1", "w2"}.append(nil))
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Add(appendLetter(nil, helloMagic, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := readOpening(bytes.NewReader(b))
		if err == nil {
			again := o.hello.append(nil)
			if o.asks {
				again = question{o.FromName, o.ToName}.append(nil)
			}
			if !bytes.Equal(again, b[:len(again)]) {
				t.Fatalf("%x was read and written as %x", b, again)
			}
		}
		a, err := readAnswer(bytes.NewReader(b))
		if err == nil {
			if again := a.append(nil); !bytes.Equal(again, b[:len(again)]) {
				t.Fatalf("%x was read and written as %x", b, again)
			}
		}
	})
}

func FuzzDecodeVote(f *testing.F) {
	f.Add(appendVote(nil, testVotes()[1]))
	f.Add(appendVote(nil, Vote{}))
	f.Add(appendVote(nil, Vote{Compute: -1})) // no time is below zero
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := decodeVote(b, nil)
		if err != nil {
			if !errors.Is(err, errVote) {
				t.Fatalf("error %v", err)
			}
			return
		}
		if again := appendVote(nil, v); !bytes.Equal(again, b) {
			t.Fatalf("%x was read and written as %x", b, again)
		}
	})
}

// TestTheHandshakeReadsBack makes sure that the seeds above say something.
func TestTheHandshakeReadsBack(t *testing.T) {
	h := hello{Key: Key{"job-1", 3, "5bec", "generic-1"}, From: 1, To: 2, Workers: 3, WorldSize: 8, Wire: WireBF16, ElemBytes: 2, Mirror: true, Chunk: 100, FromName: "a", ToName: "b"}
	got, err := readOpening(bytes.NewReader(h.append(nil)))
	if err != nil || got.hello != h || got.asks {
		t.Errorf("%+v, %v", got, err)
	}
	a, err := readAnswer(bytes.NewReader(answer{refusedJob, "why"}.append(nil)))
	if err != nil || a != (answer{refusedJob, "why"}) {
		t.Errorf("%+v, %v", a, err)
	}
	q, err := readOpening(bytes.NewReader(question{"w1", "w2"}.append(nil)))
	if err != nil || !q.asks || q.FromName != "w1" || q.ToName != "w2" {
		t.Errorf("%+v, %v", q, err)
	}
	if _, err := readOpening(bytes.NewReader([]byte("SKNR\x01\x00\x00\x00"))); !errors.Is(err, errVersion) {
		t.Errorf("another version: %v", err)
	}
}
