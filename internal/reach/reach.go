// Package reach tells from where an address can be reached, which decides whether plain
// text may be spoken there.
package reach

import "net"

// Loopback tells whether a host cannot be reached from other machines.
func Loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Everywhere tells whether a host stands for every address of its machine.
func Everywhere(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// HereOnly tells whether a host:port cannot be reached from other machines; what is no
// host:port may well be.
func HereOnly(address string) bool {
	host, _, err := net.SplitHostPort(address)
	return err == nil && Loopback(host)
}
