// Package stream carries prepared data sets between machines as Arrow record batches, over Arrow Flight.
//
// A Server serves data sets by content hash. A Client reads one data set from several servers and gives the batches that
// data.Dataset would give, bit for bit. What travels is the record of the data set, because that is what has a hash: the client
// computes from the order (shard.Order is a pure function) which packs come next, asks for the records that hold them, checks
// each against the data set's content hash, and keeps them in bounded memory and, if told so, on disk. So no server has to be
// trusted or to remember anything, and any server will do for any record: one that dies, stalls or lies costs a retry.
//
// docs/formats/stream.md has the bytes.
package stream

import (
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Limits of the protocol, the same for both sides.
const (
	// ticketRecordsMax records go into one ticket: half a gigabyte at the longest packs, some 32 MB at common ones.
	ticketRecordsMax = 64
	// ticketBytesMax is the size of the largest ticket.
	ticketBytesMax = ticketHead + 8*ticketRecordsMax + 4
	// indexBytesMax holds two million records, a terabyte of packs.
	indexBytesMax = 64 << 20
	// indexChunk is the most that one result of the index action carries.
	indexChunk = 1 << 20
	// requestBytesMax is the largest message that a server reads; tickets, descriptors and actions are far smaller.
	requestBytesMax = 16 << 10
	// headerBytesMax bounds the headers of a call.
	headerBytesMax = 16 << 10
	// frameBytes is what a Flight message adds to the record that it carries.
	frameBytes = 4 << 10
	// windowBytes is how much of a stream may be under way unread. Fixed, so that memory has a bound; it fills a link of
	// 1 Gbit/s at 16 ms.
	windowBytes = 2 << 20
	// connWindowBytes is the same for all streams of a connection together.
	connWindowBytes = 4 << 20
)

// indexAction is the Flight action whose results are the index of a data set; its body is the content hash in hexadecimal.
const indexAction = "skein.index"

// Security says how a server or a client speaks: TLS, or plain text where the caller says so.
type Security struct {
	// TLS is used as it is, with TLS 1.3 at least; for mutual TLS it has certificates and ClientCAs or RootCAs.
	TLS *tls.Config
	// PlainText sends everything as it is. It is for loopback and for networks that are secured otherwise.
	PlainText bool
}

// Validate refuses to guess.
func (s Security) Validate() error {
	switch {
	case s.TLS == nil && !s.PlainText:
		return errors.New("data stream: no TLS configuration; give one, or ask for plain text")
	case s.TLS != nil && s.PlainText:
		return errors.New("data stream: both TLS and plain text asked for; choose one")
	}
	return nil
}

func (s Security) credentials() credentials.TransportCredentials {
	if s.TLS == nil {
		return insecure.NewCredentials()
	}
	c := s.TLS.Clone()
	c.MinVersion = max(c.MinVersion, tls.VersionTLS13)
	return credentials.NewTLS(c)
}

// keepalive finds connections whose other end is gone without a word.
const (
	keepaliveEvery = 10 * time.Second
	keepaliveWait  = 5 * time.Second
)

// short is the part of a hash that people read.
func short(hash string) string { return fmt.Sprintf("%.12s…", hash) }
