// Package skeinv1 is what clients, workers and coordinators say to each other:
// the messages and services of the .proto files beside it, generated. Protocol is
// the version that both ends must share; refusal.go is how an end says no.
package skeinv1

//go:generate go run -C ../../../tools/proto . ../../proto skein/v1/job.proto skein/v1/jobs.proto skein/v1/workers.proto skein/v1/cluster.proto skein/v1/refusal.proto
