package stream

import (
	"bytes"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/internal/vfs"
)

func TestTicketsAreReadAsTheyWereWritten(t *testing.T) {
	for n := 1; n <= ticketRecordsMax; n++ {
		want := ticket{hash: [32]byte{1, byte(n)}}
		for i := range n {
			want.records = append(want.records, int64(i*i)<<uint(i%20))
		}
		b := want.encode()
		got, err := decodeTicket(b)
		must(t, err)
		if got.hash != want.hash || !slices.Equal(got.records, want.records) {
			t.Fatalf("%v became %v", want, got)
		}
		for i := range b {
			b[i] ^= 0x10
			if _, err := decodeTicket(b); err == nil {
				t.Errorf("byte %d of %d may change", i, len(b))
			}
			b[i] ^= 0x10
		}
	}
}

// The bytes of docs/formats/stream.md, for good: servers and clients of different builds meet.
func TestATicketOfVersion1IsReadForEver(t *testing.T) {
	want := "SKEINTKT\x01\x00\x00\x00\x02\x00\x00\x00" + string(bytes.Repeat([]byte{0xab}, 32)) +
		"\x07\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00" + "1\xa3D\xf1"
	k := ticket{records: []int64{7, 256}}
	copy(k.hash[:], bytes.Repeat([]byte{0xab}, 32))
	if got := string(k.encode()); got != want {
		t.Errorf("ticket %q, want %q", got, want)
	}
}

func FuzzTicket(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(ticket{records: []int64{0}}.encode())
	f.Add(ticket{records: []int64{5, 1 << 39}}.encode())
	f.Add(ticket{records: make([]int64, ticketRecordsMax+1)}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := decodeTicket(b)
		if err != nil {
			return
		}
		if !bytes.Equal(k.encode(), b) {
			t.Errorf("%v is not what it was read from", k)
		}
	})
}

func FuzzIndex(f *testing.F) {
	x := small().Manifest().Index()
	f.Add(encodeIndex(x))
	f.Add(encodeIndex(x)[:40])
	f.Add([]byte("SKEINIDX\x01\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeIndex(b, x.ContentHash)
		if err == nil && !bytes.Equal(encodeIndex(got), encodeIndex(x)) {
			t.Error("two indexes of one content hash")
		}
	})
}

// What a server sends as a record: the two parts of an Arrow message.
func FuzzRecordMessage(f *testing.F) {
	d := openSet(f, 16, 5, 9)
	x := d.Manifest().Index()
	meta, body, _, err := d.ReadRecord(0, nil)
	must(f, err)
	r, err := data.NewRecordReader(x, 257)
	must(f, err)
	good, err := r.Read(0, meta, body)
	must(f, err)
	f.Add(meta, body)
	f.Add(meta[:7], body)
	f.Add([]byte(nil), []byte(nil))
	f.Fuzz(func(t *testing.T, meta, body []byte) {
		if rec, err := r.Read(0, meta, body); err == nil && !reflect.DeepEqual(rec, good) {
			t.Error("another record passes for the genuine one")
		}
	})
}

func FuzzDiskRecord(f *testing.F) {
	leaf := make([]byte, 32)
	fsys := vfs.NewMem()
	d, err := openDisk(fsys, "/c", 1<<30)
	must(f, err)
	must(f, d.put(leaf, []byte("meta"), []byte("body")))
	good, err := vfs.ReadFile(fsys, "/c/"+diskName(leaf), 1<<20)
	must(f, err)
	f.Add(good)
	f.Add(good[:diskHead])
	f.Fuzz(func(t *testing.T, b []byte) {
		must(t, vfs.WriteFile(fsys, "/c/"+diskName(leaf), b))
		meta, body, err := d.get(leaf, 1<<20)
		if err == nil && len(meta)+len(body)+diskHead != len(b) {
			t.Errorf("%d and %d bytes of %d", len(meta), len(body), len(b))
		}
	})
}

func TestTheCacheFolderStaysWithinItsLimit(t *testing.T) {
	fsys := vfs.NewMem()
	must(t, fsys.MkdirAll("/c"))
	must(t, vfs.WriteFile(fsys, "/c/something.else", make([]byte, 1000)))
	must(t, vfs.WriteFile(fsys, "/c/left"+diskTemp, make([]byte, 1000)))
	leaf := func(i int) []byte { return append([]byte{byte(i)}, make([]byte, 31)...) }
	size := diskHead + 1000
	d, err := openDisk(fsys, "/c", int64(4*size))
	must(t, err)
	for i := range 20 {
		must(t, d.put(leaf(i), make([]byte, 100), make([]byte, 900)))
		d.has(leaf(0)) // used all the time
	}
	names := func() (list []string) {
		all, err := fsys.ReadDir("/c")
		must(t, err)
		return all
	}
	want := []string{diskName(leaf(0)), diskName(leaf(17)), diskName(leaf(18)), diskName(leaf(19)), "something.else"}
	if got := names(); !slices.Equal(got, want) {
		t.Errorf("files %v, want %v", got, want)
	}
	d, err = openDisk(fsys, "/c", int64(2*size)) // a smaller limit at the next start
	must(t, err)
	if got := names(); len(got) != 3 || d.bytes != int64(2*size) {
		t.Errorf("files %v, %d bytes", got, d.bytes)
	}
}

func TestAFullDiskDoesNotStopTheStream(t *testing.T) {
	fsys := vfs.NewFault(vfs.NewMem()).LimitSpace(1 << 10)
	d, err := openDisk(fsys, "/c", 1<<30)
	must(t, err)
	if err := d.put(make([]byte, 32), nil, make([]byte, 4<<10)); err == nil {
		t.Fatal("the disk is not full")
	}
	set := small()
	addr, _ := serve(t, plainText, set)
	c := open(t, Config{Servers: []string{addr}, ContentHash: hashOf(set)})
	c.mu.Lock()
	c.disk = d // before the first record is asked for
	c.mu.Unlock()
	samePacks(t, set, c, []int64{1, 300, 600})
	waitFor(t, "the folder to be given up", c.diskFull.Load)
	if names, err := fsys.ReadDir("/c"); err != nil || len(names) != 0 {
		t.Errorf("left behind: %v (%v)", names, err)
	}
}

func TestHealthDecidesWhoIsAsked(t *testing.T) {
	now := time.Unix(1000, 0)
	servers := make([]health, 3)
	for i := range servers {
		servers[i].patience = time.Second
	}
	check := func(start, want int, wantWait time.Duration) {
		t.Helper()
		if i, wait := pick(now, servers, start); i != want || wait != wantWait {
			t.Errorf("asks %d after %v, want %d after %v", i, wait, want, wantWait)
		}
	}
	probe := func(want int, wantWait time.Duration) {
		t.Helper()
		if i, wait := pickProbe(now, servers); i != want || wait != wantWait {
			t.Errorf("probes %d after %v, want %d after %v", i, wait, want, wantWait)
		}
	}
	check(0, 0, 0)
	check(1, 1, 0)
	servers[1].streams = 2
	check(1, 2, 0) // the fewest streams
	servers[0].failed(now, errStalled)
	servers[2].failed(now, lie("other bytes"))
	check(0, 1, 0)
	probe(-1, 200*time.Millisecond)
	now = now.Add(200 * time.Millisecond)
	check(0, 1, 0) // its pause is over, but another works: it is probed first
	probe(0, 0)
	if patient(servers, 0, time.Second) != time.Second || patient(servers, 1, time.Second) != time.Second {
		t.Error("patience with a server that works")
	}
	servers[1].failed(now, errStalled)
	check(0, 0, 0)
	probe(-1, 0) // nobody works: the work is the probe
	if patient(servers, 0, time.Second) != 2*time.Second {
		t.Error("no patience where all failed")
	}
	servers[0].failed(now, errStalled)
	check(0, -1, 200*time.Millisecond)
	servers[0].answered()
	check(1, 0, 0)
	if servers[0].failures != 2 {
		t.Error("an answer to a probe forgives all")
	}
	servers[0].succeeded(time.Minute, time.Second)
	if servers[0].failures != 0 || servers[0].patience != patienceMax {
		t.Errorf("after a success: %+v", servers[0])
	}
}

func TestPausesGrowToAnEnd(t *testing.T) {
	for f, want := range map[fault][3]time.Duration{
		gone:    {200 * time.Millisecond, 400 * time.Millisecond, 5 * time.Second},
		refused: {time.Second, 2 * time.Second, 30 * time.Second},
		lied:    {5 * time.Second, 10 * time.Second, 5 * time.Minute},
	} {
		if got := [3]time.Duration{f.pause(1), f.pause(2), f.pause(1 << 30)}; got != want {
			t.Errorf("pauses %v, want %v", got, want)
		}
	}
}
