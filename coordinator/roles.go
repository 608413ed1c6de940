package coordinator

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/internal/pki"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// mayCall lists who may call what, service by service. What is not listed nobody may.
// Without TLS, on loopback, there are no roles.
var mayCall = map[string][]pki.Role{
	skeinv1.Jobs_Submit_FullMethodName:  {pki.Client, pki.Admin},
	skeinv1.Jobs_Get_FullMethodName:     {pki.Client, pki.Admin},
	skeinv1.Jobs_List_FullMethodName:    {pki.Client, pki.Admin},
	skeinv1.Jobs_Cancel_FullMethodName:  {pki.Client, pki.Admin},
	skeinv1.Jobs_Scale_FullMethodName:   {pki.Client, pki.Admin},
	skeinv1.Jobs_Pause_FullMethodName:   {pki.Client, pki.Admin},
	skeinv1.Jobs_Resume_FullMethodName:  {pki.Client, pki.Admin},
	skeinv1.Jobs_Watch_FullMethodName:   {pki.Client, pki.Admin},
	skeinv1.Jobs_Lineage_FullMethodName: {pki.Client, pki.Admin},

	skeinv1.Workers_Session_FullMethodName:  {pki.Worker},
	skeinv1.Workers_Prepared_FullMethodName: {pki.Worker},
	skeinv1.Workers_Publish_FullMethodName:  {pki.Worker},
	skeinv1.Workers_Complete_FullMethodName: {pki.Worker},
	skeinv1.Workers_Fail_FullMethodName:     {pki.Worker},
	skeinv1.Workers_Broken_FullMethodName:   {pki.Worker},
	skeinv1.Workers_Drain_FullMethodName:    {pki.Worker},

	skeinv1.Cluster_Nodes_FullMethodName:              {pki.Client, pki.Admin},
	skeinv1.Cluster_Status_FullMethodName:             pki.Roles, // who leads is what every caller must know
	skeinv1.Cluster_AddCoordinator_FullMethodName:     {pki.Admin},
	skeinv1.Cluster_RemoveCoordinator_FullMethodName:  {pki.Admin},
	skeinv1.Cluster_TransferLeadership_FullMethodName: {pki.Admin},
	skeinv1.Cluster_Backup_FullMethodName:             {pki.Admin},
}

// caller is who calls; ok is false without TLS.
func (c *Coordinator) caller(ctx context.Context) (who pki.Identity, ok bool, err error) {
	if c.config.TLS == nil {
		return who, false, nil
	}
	p, _ := peer.FromContext(ctx)
	info, secured := p.AuthInfo.(credentials.TLSInfo)
	if !secured {
		return who, false, status.Error(codes.Unauthenticated, pki.ErrPlain.Error())
	}
	if who, err = pki.Peer(info.State); err != nil {
		return who, false, status.Error(codes.Unauthenticated, err.Error())
	}
	return who, true, nil
}

// checkRole refuses a caller whose role may not call the method.
func (c *Coordinator) checkRole(ctx context.Context, method string) error {
	who, known, err := c.caller(ctx)
	if err != nil || !known {
		return err
	}
	allowed := mayCall[method]
	if slices.Contains(allowed, who.Role) {
		return nil
	}
	var need []string
	for _, r := range allowed {
		need = append(need, string(r))
	}
	return status.Errorf(codes.PermissionDenied, "the certificate of %s may not call %s; that takes one with role %s: make it with `skein certs`",
		who, strings.TrimPrefix(method, "/skein.v1."), strings.Join(need, " or "))
}

// checkWorker refuses a caller that speaks for another worker than its certificate names.
func (c *Coordinator) checkWorker(ctx context.Context, worker string) error {
	who, known, err := c.caller(ctx)
	if err != nil || !known || who.Name == worker {
		return err
	}
	return status.Errorf(codes.PermissionDenied, "%s calls itself %q; a worker's name is that in its certificate", who, worker)
}

// checkFiles refuses certificates that this coordinator cannot serve with.
func checkFiles(f *pki.Files, cluster, id string) error {
	if f.Role != pki.Coordinator {
		return fmt.Errorf("tls: the certificate is of %s; a coordinator needs one with role coordinator: make it with `skein certs`", f.Identity)
	}
	if f.Cluster != cluster {
		return fmt.Errorf("tls: the certificate is of %s, and this coordinator of cluster %s; make one with `skein certs`, or correct the name of the cluster", f.Identity, cluster)
	}
	if f.Name != id {
		return fmt.Errorf("tls: the certificate is of %s, and this one is %s; give each coordinator its own", f.Identity, id)
	}
	return nil
}
