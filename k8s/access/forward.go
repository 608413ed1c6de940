package access

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	"github.com/skein-ml/skein/k8s/policy"
)

// Dialer returns what reaches the coordinators of a cluster at the addresses that they
// have among themselves: through the API server, which forwards to the port of a pod.
// Whoever follows one coordinator to another by its address is forwarded there too.
func (k *Kube) Dialer(c *v1alpha1.SkeinCluster) func(ctx context.Context, address string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		pod, _, _ := strings.Cut(host, ".")
		if policy.Ordinal(c, pod) < 0 || host != policy.Host(c, policy.Coordinators(c), pod) {
			return nil, fmt.Errorf("%s is no coordinator of SkeinCluster %s", host, c.Name)
		}
		return k.forward(ctx, pod, port)
	}
}

// forward connects to a port of a pod.
func (k *Kube) forward(ctx context.Context, pod, port string) (net.Conn, error) {
	dialer, err := k.upgrader(pod)
	if err != nil {
		return nil, err
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() { // the library knows no context
		up, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
		if err != nil {
			done <- result{nil, fmt.Errorf("pod %s: %w", pod, err)}
			return
		}
		conn, err := newForwarded(up, port)
		done <- result{conn, err}
	}()
	select {
	case r := <-done:
		return r.conn, r.err
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				_ = r.conn.Close() // nobody has it
			}
		}()
		return nil, fmt.Errorf("pod %s: the API server does not forward to it: %w", pod, ctx.Err())
	}
}

// upgrader makes connections on which streams are forwarded: over a WebSocket, which
// proxies let through, or by SPDY where the API server is older.
func (k *Kube) upgrader(pod string) (httpstream.Dialer, error) {
	to := k.http.Post().AbsPath("api", "v1", "namespaces", k.namespace, "pods", pod, "portforward").URL()
	transport, upgrade, err := spdy.RoundTripperFor(k.rest)
	if err != nil {
		return nil, err
	}
	socket, err := portforward.NewSPDYOverWebsocketDialerForStreaming(to, k.rest)
	if err != nil {
		return nil, err
	}
	plain := spdy.NewDialerForStreaming(upgrade, &http.Client{Transport: transport}, http.MethodPost, to)
	return portforward.NewFallbackDialerForStreaming(socket, plain, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	}), nil
}

// forwarded is a connection to a port of a pod. It is one end of a pipe, which has the
// deadlines that streams lack; the other end is carried to the pod and back.
type forwarded struct {
	net.Conn

	mu      sync.Mutex
	trouble string // what the other end says of the port
}

// farewell is how long what the other end says of a port may come after the port's end.
const farewell = 10 * time.Second

func newForwarded(up httpstream.Connection, port string) (net.Conn, error) {
	headers := http.Header{}
	headers.Set(corev1.PortHeader, port)
	headers.Set(corev1.PortForwardRequestIDHeader, "0")
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	trouble, err := up.CreateStream(headers)
	if err != nil {
		return nil, errors.Join(err, up.Close())
	}
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := up.CreateStream(headers)
	if err = errors.Join(err, trouble.Close()); err != nil { // nothing is said on it from here
		return nil, errors.Join(err, up.Close())
	}
	near, far := net.Pipe()
	f := &forwarded{Conn: near}
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		text, _ := io.ReadAll(io.LimitReader(trouble, 4<<10)) // it ends with the connection
		f.mu.Lock()
		f.trouble = strings.Join(strings.Fields(string(text)), " ")
		f.mu.Unlock()
	}()
	var carrying sync.WaitGroup
	carrying.Go(func() {
		_, _ = io.Copy(data, far) // it ends when either end does
		_ = far.Close()           // of a pipe: it cannot fail
		_ = data.Reset()
	})
	carrying.Go(func() {
		_, _ = io.Copy(far, data)
		select {
		case <-heard:
		case <-time.After(farewell):
		}
		_ = far.Close() // of a pipe: it cannot fail
	})
	go func() {
		carrying.Wait()
		_ = up.Close() // nothing is lost with it
	}()
	return f, nil
}

// Read implements net.Conn.
func (f *forwarded) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	if errors.Is(err, io.EOF) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.trouble != "" {
			return n, errors.New(f.trouble)
		}
	}
	return n, err
}
