package coordinator

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/coordinator/raftlog"
	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/proto/leader"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

func newCA(t *testing.T, cluster string) *pki.CA {
	t.Helper()
	ca, err := pki.NewCA(cluster)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestAClusterWithCertificatesRunsAJob(t *testing.T) {
	r := newRig(t, 3, newCA(t, "test"))
	r.worker("w1", "p1", nil)
	r.eventually(r.submit("one", nil), "done", inPhase(skeinv1.Phase_PHASE_DONE))
}

// issue writes the certificate of somebody, of any authority, and reads it.
func issue(t *testing.T, ca *pki.CA, role pki.Role, name, host string) *pki.Files {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := ca.IssueTo(dir, role, name, []string{host}, time.Hour); err != nil {
		t.Fatal(err)
	}
	f, err := pki.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// pair is a certificate that pki.Load would refuse.
func pair(t *testing.T, ca *pki.CA, role pki.Role, validity time.Duration) tls.Certificate {
	t.Helper()
	cert, key, err := ca.Issue(role, "w1", []string{"127.0.0.1"}, validity)
	if err != nil {
		t.Fatal(err)
	}
	p, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestWithoutACertificateOfTheClusterNothingIsSaid(t *testing.T) {
	ca := newCA(t, "test")
	r := newRig(t, 1, ca)
	r.submit("one", nil)
	address := r.members[0].Address
	ours, theirs := issue(t, ca, pki.Worker, "w1", "127.0.0.1"), issue(t, newCA(t, "test"), pki.Worker, "w1", "127.0.0.1")
	showing := func(certificates ...tls.Certificate) *tls.Config { // trusts our server, whatever it shows itself
		c := ours.Config()
		c.Certificates = certificates
		return c
	}
	elsewhere := ours.Config()
	elsewhere.ServerName = "elsewhere.example"
	for what, secure := range map[string]*tls.Config{
		"plain text":         nil,
		"no certificate":     showing(),
		"another authority":  showing(theirs.Config().Certificates...),
		"expired":            showing(pair(t, ca, pki.Worker, time.Nanosecond)),
		"distrusts ours":     theirs.Config(),
		"expects other name": elsewhere,
		"expects a worker":   ours.Expect(pki.Worker),
	} {
		conn, err := leader.New(leader.Config{Addresses: []string{address}, TLS: secure, Build: "test"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if secure == nil { // that the other end wants TLS is not said in plain text
			ctx, cancel = context.WithTimeout(t.Context(), 500*time.Millisecond)
		}
		s, err := skeinv1.NewClusterClient(conn).Status(ctx, &skeinv1.StatusRequest{})
		if err == nil || secure != nil && (status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "skein certs")) {
			t.Errorf("%s: was told %v, %v", what, s, err)
		}
		cancel()
		conn.Close()
	}
}

// helloToTheLog says hello as a coordinator of another cluster, and returns the answer.
func helloToTheLog(t *testing.T, conn net.Conn) string {
	t.Helper()
	defer conn.Close()
	hello := []byte("SKNR\x02\x00\x05\x02otherc9")
	hello = binary.LittleEndian.AppendUint32(hello, crc32.Checksum(hello, crc32.MakeTable(crc32.Castagnoli)))
	if _, err := conn.Write(hello); err != nil {
		return ""
	}
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	answer, _ := io.ReadAll(conn) // whatever comes before it is closed
	return string(answer)
}

func TestTheLogTalksToCoordinatorsAlone(t *testing.T) {
	ca := newCA(t, "test")
	r := newRig(t, 1, ca)
	address := r.members[0].Address
	raw, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if answer := helloToTheLog(t, raw); strings.Contains(answer, "c1") {
		t.Errorf("the log answered in plain text: %q", answer)
	}
	for _, role := range pki.Roles {
		conn, err := tls.Dial("tcp", address, issue(t, ca, role, "x", "127.0.0.1").Config())
		if err != nil {
			t.Fatal(err)
		}
		if answer, talks := helloToTheLog(t, conn), role == pki.Coordinator; strings.Contains(answer, "c1 belongs to cluster") != talks {
			t.Errorf("a %s was told %q", role, answer)
		}
	}
}

func TestACoordinatorWithACertificateForAnotherNameIsNotTalkedTo(t *testing.T) {
	ca := newCA(t, "test")
	r := &rig{T: t, dir: t.TempDir(), ca: ca}
	c := r.config(raftlog.Server{ID: "c1", Address: freeAddress(t)})
	c.TLS, c.Alone, c.Members = issue(t, ca, pki.Coordinator, "c1", "elsewhere.example"), true, nil
	co, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = co.Stop() }()
	r.members = []raftlog.Server{{ID: "c1", Address: c.Listen}}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if s, err := skeinv1.NewClusterClient(r.dial(pki.Admin, "olga")).Status(ctx, &skeinv1.StatusRequest{}); err == nil {
		t.Fatalf("it was believed: %v", s)
	}
}

func TestCertificatesThatACoordinatorCannotServeWithAreRefusedAtItsStart(t *testing.T) {
	ca := newCA(t, "test")
	for what, c := range map[string]struct {
		files *pki.Files
		want  string
	}{
		"a worker's":        {issue(t, ca, pki.Worker, "c1", "127.0.0.1"), "needs one with role coordinator"},
		"another's":         {issue(t, ca, pki.Coordinator, "c2", "127.0.0.1"), "give each coordinator its own"},
		"another cluster's": {issue(t, newCA(t, "field"), pki.Coordinator, "c1", "127.0.0.1"), "of cluster field"},
	} {
		co, err := Start(Config{Cluster: "test", ID: "c1", Dir: t.TempDir(), Listen: "127.0.0.1:0", Alone: true, TLS: c.files})
		if err == nil {
			_ = co.Stop()
			t.Fatalf("%s: it started", what)
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
	}
}

// methods lists every method that a coordinator serves.
func methods() []string {
	var list []string
	for _, d := range []grpc.ServiceDesc{skeinv1.Jobs_ServiceDesc, skeinv1.Workers_ServiceDesc, skeinv1.Cluster_ServiceDesc} {
		for _, m := range d.Methods {
			list = append(list, "/"+d.ServiceName+"/"+m.MethodName)
		}
		for _, m := range d.Streams {
			list = append(list, "/"+d.ServiceName+"/"+m.StreamName)
		}
	}
	return list
}

func TestEveryMethodSaysWhoMayCallIt(t *testing.T) {
	list := methods()
	for _, m := range list {
		if len(mayCall[m]) == 0 {
			t.Errorf("nobody may call %s", m)
		}
	}
	if len(mayCall) != len(list) {
		t.Errorf("%d rules for %d methods", len(mayCall), len(list))
	}
}

// call makes an empty call of a method, as far as the role check.
func call(ctx context.Context, conn grpc.ClientConnInterface, method string) error {
	for _, d := range []grpc.ServiceDesc{skeinv1.Jobs_ServiceDesc, skeinv1.Workers_ServiceDesc, skeinv1.Cluster_ServiceDesc} {
		for _, m := range d.Streams {
			if "/"+d.ServiceName+"/"+m.StreamName != method {
				continue
			}
			s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
			if err != nil {
				return err
			}
			if err := s.SendMsg(&skeinv1.BackupRequest{}); err != nil && !errors.Is(err, io.EOF) {
				return err // EOF: it was refused already, and the answer says why
			}
			if err := s.CloseSend(); err != nil {
				return err
			}
			return s.RecvMsg(&skeinv1.StatusResponse{})
		}
	}
	return conn.Invoke(ctx, method, &skeinv1.BackupRequest{}, &skeinv1.StatusResponse{})
}

func TestEachRoleMayCallItsMethodsAndNoOthers(t *testing.T) {
	r := newRig(t, 1, newCA(t, "test"))
	r.leader()
	for _, role := range pki.Roles {
		conn := r.dial(role, "x1")
		for _, method := range methods() {
			if strings.HasSuffix(method, "/TransferLeadership") || strings.HasSuffix(method, "/Backup") {
				continue // allowed, they would do what they are for; below
			}
			allowed := false
			for _, a := range mayCall[method] {
				allowed = allowed || a == role
			}
			ctx, cancel := context.WithTimeout(r.ctx(), patience)
			err := call(ctx, conn, method)
			cancel()
			denied := status.Code(err) == codes.PermissionDenied && strings.Contains(err.Error(), "that takes one with role")
			if allowed == denied {
				t.Errorf("%s calls %s: %v", role, method, err)
			}
		}
	}
	for _, role := range []pki.Role{pki.Coordinator, pki.Worker, pki.Client} {
		ops := skeinv1.NewClusterClient(r.dial(role, "x1"))
		if _, err := ops.TransferLeadership(r.ctx(), &skeinv1.TransferLeadershipRequest{}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("a %s transfers leadership: %v", role, err)
		}
		if b, err := ops.Backup(r.ctx(), &skeinv1.BackupRequest{}); err != nil {
			t.Fatal(err)
		} else if _, err := b.Recv(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("a %s gets a backup: %v", role, err)
		}
	}
}

func TestAWorkerSpeaksOnlyForItself(t *testing.T) {
	r := newRig(t, 1, newCA(t, "test"))
	w1 := r.worker("w1", "p1", func(w *fakeWorker) { w.idle = true })
	r.joined(1)
	mallory := skeinv1.NewWorkersClient(r.dial(pki.Worker, "mallory"))
	s, err := mallory.Session(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	hello := &skeinv1.Hello{Cluster: "test", Worker: "w1", Incarnation: "p2", RingAddress: "a", StreamAddress: "b", NumericClasses: []string{"generic r1"}}
	if err := s.Send(&skeinv1.WorkerMessage{What: &skeinv1.WorkerMessage_Hello{Hello: hello}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), `worker mallory of cluster test calls itself "w1"`) {
		t.Errorf("mallory is w1: %v", err)
	}
	for what, try := range map[string]func() error{
		"drain": func() error { _, err := mallory.Drain(r.ctx(), &skeinv1.DrainRequest{Sender: w1.sender()}); return err },
		"fail":  func() error { _, err := mallory.Fail(r.ctx(), &skeinv1.FailRequest{Sender: w1.sender()}); return err },
		"broken": func() error {
			_, err := mallory.Broken(r.ctx(), &skeinv1.BrokenRequest{Sender: w1.sender()})
			return err
		},
		"prepared": func() error {
			_, err := mallory.Prepared(r.ctx(), &skeinv1.PreparedRequest{Sender: w1.sender()})
			return err
		},
		"publish": func() error {
			_, err := mallory.Publish(r.ctx(), &skeinv1.PublishRequest{Sender: w1.sender()})
			return err
		},
		"complete": func() error {
			_, err := mallory.Complete(r.ctx(), &skeinv1.CompleteRequest{Sender: w1.sender()})
			return err
		},
	} {
		if err := try(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("mallory reports %s for w1: %v", what, err)
		}
	}
}
