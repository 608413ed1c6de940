package skeinv1

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Protocol is the version of what is said here. Both ends send it with every call
// under ProtocolKey, and an end that meets another version refuses.
const Protocol = "1"

// Metadata keys of every call.
const (
	ProtocolKey = "skein-protocol"
	BuildKey    = "skein-build" // version of the program; another one is only warned of
)

// Refuse makes the error of a call that is refused.
func Refuse(code codes.Code, r *Refusal, text string) error {
	s, err := status.New(code, text).WithDetails(r)
	if err != nil {
		panic("skeinv1: a refusal does not fit into a status: " + err.Error())
	}
	return s.Err()
}

// RefusalOf finds the refusal in the error of a call; nil if there is none.
func RefusalOf(err error) *Refusal {
	s, ok := status.FromError(err)
	if !ok {
		return nil
	}
	for _, d := range s.Details() {
		if r, ok := d.(*Refusal); ok {
			return r
		}
	}
	return nil
}
