package migrate

import (
	"context"
	"time"
)

// Journal keeps what a move was about to do, so that it can be found out after
// a crash. Every phase is written before its effect.
type Journal interface {
	// Append writes one entry. When it returns nil the entry survives a crash
	// of the program and of the host.
	Append(ctx context.Context, e Entry) error
}

// Entry is one line of a journal. It holds no secret.
type Entry struct {
	Job   string    `json:"job"`
	Guest string    `json:"guest"`
	Seq   uint64    `json:"seq"` // from 1, without gaps
	Time  time.Time `json:"time"`
	Phase Phase     `json:"phase"`
	// Epoch and Owner are the record of authority as it was last known.
	Epoch uint64 `json:"epoch"`
	Owner string `json:"owner"`
	// Cancelled says that the move goes back by the caller's wish.
	Cancelled bool `json:"cancelled,omitempty"`
}
