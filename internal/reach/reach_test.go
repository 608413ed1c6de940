package reach

import "testing"

func TestOnlyLoopbackIsOutOfReachOfOthers(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:1": true, "localhost:1": true,
		"10.0.0.1:1": false, "0.0.0.0:1": false, "[::]:1": false, ":1": false, "example.com:1": false,
		"localhost.example.com:1": false, "127.0.0.1": false, "": false,
	} {
		if got := HereOnly(address); got != want {
			t.Errorf("HereOnly(%q) = %v", address, got)
		}
	}
	for host, want := range map[string]bool{"": true, "0.0.0.0": true, "::": true, "127.0.0.1": false, "10.0.0.1": false, "localhost": false} {
		if got := Everywhere(host); got != want {
			t.Errorf("Everywhere(%q) = %v", host, got)
		}
	}
}
