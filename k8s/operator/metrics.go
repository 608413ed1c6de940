package operator

import (
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
)

// What an autoscaler of nodes or an alert looks at.
var (
	wantedWorkers = gauge("skein_operator_wanted_workers", "Workers that the active jobs of a SkeinCluster would use.")
	poolWorkers   = gauge("skein_operator_workers", "Pods of workers that a SkeinCluster has.")
	queuedJobs    = gauge("skein_operator_queued_jobs", "Jobs of a SkeinCluster that wait for workers.")
)

func gauge(name, help string) *prometheus.GaugeVec {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"namespace", "cluster"})
	metrics.Registry.MustRegister(g)
	return g
}

func setMetrics(c types.NamespacedName, s v1alpha1.SkeinClusterStatus) {
	wantedWorkers.WithLabelValues(c.Namespace, c.Name).Set(float64(s.WantedWorkers))
	poolWorkers.WithLabelValues(c.Namespace, c.Name).Set(float64(s.Workers))
	queuedJobs.WithLabelValues(c.Namespace, c.Name).Set(float64(s.QueuedJobs))
}

func forgetMetrics(c types.NamespacedName) {
	for _, g := range []*prometheus.GaugeVec{wantedWorkers, poolWorkers, queuedJobs} {
		g.DeleteLabelValues(c.Namespace, c.Name)
	}
}
