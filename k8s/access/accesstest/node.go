package accesstest

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// Node is where pods are: what a kubelet is to the API server, as far as forwarding goes.
type Node struct {
	mu    sync.Mutex
	ports map[string]string // pod → where its process listens
}

// Listens says where the one port of a pod leads. Without a pod's process, "" says that
// nobody listens there.
func (n *Node) Listens(pod, address string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ports == nil {
		n.ports = map[string]string{}
	}
	n.ports[pod] = address
}

func (n *Node) has(pod string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, there := n.ports[pod]
	return there
}

// ServePod forwards to a pod until the caller goes.
func (n *Node) ServePod(w http.ResponseWriter, r *http.Request, pod string) {
	if _, err := httpstream.Handshake(r, w, []string{portforward.PortForwardProtocolV1Name}); err != nil {
		return
	}
	streams := make(chan httpstream.Stream, 2)
	up := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, _ <-chan struct{}) error {
		select {
		case streams <- s:
			return nil
		default:
			return fmt.Errorf("more than one connection at a time")
		}
	})
	if up == nil {
		return
	}
	defer up.Close()
	var data, trouble httpstream.Stream
	for data == nil || trouble == nil {
		select {
		case s := <-streams:
			if s.Headers().Get(corev1.StreamType) == corev1.StreamTypeData {
				data = s
			} else {
				trouble = s
			}
		case <-up.CloseChan():
			return
		}
	}
	n.mu.Lock()
	address := n.ports[pod]
	n.mu.Unlock()
	far, err := net.Dial("tcp", address)
	if err != nil {
		fmt.Fprintf(trouble, "connection refused at port %s of pod %s", data.Headers().Get(corev1.PortHeader), pod)
		_ = trouble.Close()
		_ = data.Close()
		<-up.CloseChan() // the caller goes when it has read that
		return
	}
	defer far.Close()
	_ = trouble.Close()
	ended := make(chan struct{}, 2)
	go func() { _, _ = io.Copy(far, data); ended <- struct{}{} }()
	go func() { _, _ = io.Copy(data, far); _ = data.Close(); ended <- struct{}{} }()
	select {
	case <-ended:
	case <-up.CloseChan():
	}
}
