package operator

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	"github.com/skein-ml/skein/k8s/policy"
)

// owner is the operator's one name among the owners of fields.
const owner = client.FieldOwner("skein-operator")

// shared is what both controllers work with.
type shared struct {
	client.Client
	live     client.Reader // past the cache
	events   events.EventRecorder
	contacts *contacts
	config   Config
}

// apply makes an object as it should be. Only what is set is the operator's: what others
// set beside it stays.
func (s shared) apply(ctx context.Context, o client.Object) error {
	u, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return err
	}
	delete(u, "status")
	prune(u)
	err = s.Apply(ctx, client.ApplyConfigurationFromUnstructured(&unstructured.Unstructured{Object: u}), owner, client.ForceOwnership)
	if err != nil {
		return fmt.Errorf("%s %s: %w", o.GetObjectKind().GroupVersionKind().Kind, o.GetName(), err)
	}
	return nil
}

// prune removes what is null or an empty object: Go's zero values, which nobody wished
// for. An empty volume is a wish.
func prune(u map[string]any) {
	for key, value := range u {
		switch v := value.(type) {
		case nil:
			delete(u, key)
		case map[string]any:
			prune(v)
			if len(v) == 0 && key != "emptyDir" {
				delete(u, key)
			}
		case []any:
			for _, item := range v {
				if o, ok := item.(map[string]any); ok {
					prune(o)
				}
			}
		}
	}
}

// blocking is what a user has to do about an error of the API server; nil if it is for
// the operator to try again.
func blocking(err error) *policy.Refusal {
	switch {
	case err == nil:
		return nil
	case apierrors.IsForbidden(err) && strings.Contains(err.Error(), "exceeded quota"):
		return &policy.Refusal{Reason: v1alpha1.ReasonQuotaExceeded, Message: err.Error() + "; raise the quota of the namespace, or ask for less"}
	case apierrors.IsForbidden(err) || apierrors.IsInvalid(err):
		return &policy.Refusal{Reason: v1alpha1.ReasonRefused, Message: "the API server refuses: " + err.Error()}
	}
	return nil
}

// tell leaves an event at an object.
func (s shared) tell(about client.Object, bad bool, reason, action, text string) {
	kind := corev1.EventTypeNormal
	if bad {
		kind = corev1.EventTypeWarning
	}
	const eventBytesMax = 1024
	s.events.Eventf(about, nil, kind, reason, action, "%s", text[:min(len(text), eventBytesMax)])
}

// tellConditions leaves an event for each condition whose status or reason has changed.
func (s shared) tellConditions(about client.Object, was, is []metav1.Condition) {
	for _, c := range is {
		before := meta.FindStatusCondition(was, c.Type)
		if before != nil && before.Status == c.Status && before.Reason == c.Reason || before == nil && c.Status == metav1.ConditionFalse {
			continue
		}
		bad := c.Type == v1alpha1.ConditionDegraded && c.Status == metav1.ConditionTrue || c.Type == v1alpha1.ConditionFailed && c.Status == metav1.ConditionTrue ||
			(c.Type == v1alpha1.ConditionReady || c.Type == v1alpha1.ConditionAccepted) && c.Status == metav1.ConditionFalse
		s.tell(about, bad, c.Reason, c.Type, cmp.Or(c.Message, c.Type+" is "+string(c.Status)))
	}
}
