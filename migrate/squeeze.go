package migrate

import (
	"sync"
	"time"

	"github.com/vmferry/vmferry/internal/wire"
)

// squeezer decides for one connection, from what it measures, whether data is
// compressed on its way.
//
// Without compression a byte takes 1/link seconds. With it the processor takes
// 1/speed for it, and the link ratio/link; both go on at the same time, so the
// slower of the two counts. It pays if that is less. What is not in use is tried
// again from time to time, because data and links change.
type squeezer struct {
	policy Compression

	mu     sync.Mutex
	frames int
	link   float64 // bytes per second on the wire
	speed  float64 // bytes per second that are compressed
	ratio  float64 // compressed size to size

	since    time.Time // the begin of the stretch under way
	answered int       // bytes on the wire in it
}

const (
	// tryEvery is how many frames pass between two tries.
	tryEvery = 64
	// stretch is over how long the link's speed is measured.
	stretch = 50 * time.Millisecond
	// margin is what compression must gain to be used.
	margin = 0.9
)

var packed = sync.Pool{New: func() any { b := make([]byte, 0, wire.MaxPayload); return &b }}

// pack returns what to send for p, the flags that say so, and what gives the
// memory back.
func (s *squeezer) pack(p []byte) (sent []byte, flags uint8, give func()) {
	if !s.wanted() {
		return p, 0, func() {}
	}
	buf := packed.Get().(*[]byte)
	give = func() { packed.Put(buf) }
	begin := time.Now()
	out, err := wire.Compress((*buf)[:0], p)
	took := time.Since(begin)
	if err != nil {
		return p, 0, give
	}
	s.mu.Lock()
	s.speed = average(s.speed, float64(len(p))/max(took.Seconds(), 1e-9))
	s.ratio = average(s.ratio, float64(len(out))/float64(len(p)))
	s.mu.Unlock()
	if len(out) >= len(p) {
		return p, 0, give
	}
	return out, wire.Compressed, give
}

func (s *squeezer) wanted() bool {
	switch s.policy {
	case CompressNever:
		return false
	case CompressAlways:
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frames++
	if s.frames%tryEvery == 1 {
		return true // what it would bring now
	}
	return s.pays()
}

func (s *squeezer) pays() bool {
	if s.link == 0 || s.speed == 0 {
		return false
	}
	return max(1/s.speed, s.ratio/s.link) < margin/s.link
}

// observe notes that sent bytes of data were answered for. Requests overlap, so
// the link's speed is what was answered in a stretch of time, and not the time
// that one of them took.
func (s *squeezer) observe(sent int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.since.IsZero() {
		s.since = now
		return
	}
	s.answered += sent
	if took := now.Sub(s.since); took >= stretch {
		s.link = average(s.link, float64(s.answered)/took.Seconds())
		s.since, s.answered = now, 0
	}
}
