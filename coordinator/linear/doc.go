// Package linear has no code but tests: clients, workers and coordinators under kills and
// partitions, and whether all that the clients were told can have happened in one order.
package linear
