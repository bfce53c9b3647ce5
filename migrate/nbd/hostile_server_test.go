package nbd_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/migrate/nbd"
	"github.com/vmferry/vmferry/share"
)

// The client, with servers that lie, cheat and fall silent.

func TestHostileHandshake(t *testing.T) {
	// greeted runs f with the first option of the client.
	greeted := func(f func(w wire, o uint32)) func(w wire) {
		return func(w wire) {
			if w.greet() {
				o, _ := w.option()
				f(w, o)
			}
		}
	}
	// going negotiates up to GO, and runs f for it.
	going := func(f func(w wire)) func(w wire) {
		return func(w wire) {
			if !w.greet() {
				return
			}
			for {
				switch o, _ := w.option(); o {
				case 0:
					return
				case 7:
					f(w)
				default:
					w.answer(o, 1<<31+1)
				}
			}
		}
	}
	silent := func(w wire) { w.gone() }
	size := be(uint16(0), uint64(1<<20), uint16(1))
	for name, k := range map[string]struct {
		script func(w wire)
		want   error
	}{
		"closes":                 {func(w wire) {}, share.ErrUnavailable},
		"truncated greeting":     {func(w wire) { w.put(uint64(wInit), uint16(1)) }, share.ErrUnavailable},
		"not NBD":                {func(w wire) { w.put("SSH-2.0-OpenSSH_9.9\r\n........") }, share.ErrCorrupt},
		"other second magic":     {func(w wire) { w.put(uint64(wInit), uint64(1), uint16(3)) }, share.ErrCorrupt},
		"oldstyle":               {func(w wire) { w.put(uint64(wInit), uint64(0x420281861253), uint64(1<<20), make([]byte, 128)) }, errors.ErrUnsupported},
		"not fixed":              {func(w wire) { w.put(uint64(wInit), uint64(wOption), uint16(2)) }, errors.ErrUnsupported},
		"silent":                 {silent, share.ErrUnavailable},
		"silent after greeting":  {func(w wire) { w.greet(); silent(w) }, share.ErrUnavailable},
		"silent in an answer":    {greeted(func(w wire, o uint32) { w.put(uint64(wReply), o, 1); silent(w) }), share.ErrUnavailable},
		"bad answer magic":       {greeted(func(w wire, o uint32) { w.put(uint64(1), o, 1, 0) }), share.ErrCorrupt},
		"answer to other option": {greeted(func(w wire, o uint32) { w.answer(99, 1) }), share.ErrCorrupt},
		"huge answer":            {greeted(func(w wire, o uint32) { w.put(uint64(wReply), o, 1, uint32(0xffffffff)) }), share.ErrCorrupt},
		"huge refusal":           {greeted(func(w wire, o uint32) { w.put(uint64(wReply), o, uint32(1<<31+1), uint32(0xffffffff)) }), share.ErrCorrupt},
		"unexpected answer":      {greeted(func(w wire, o uint32) { w.answer(o, 2, 0) }), share.ErrCorrupt},
		"flood of answers": {going(func(w wire) {
			for range 20000 {
				w.answer(7, 3, uint16(9))
			}
		}), share.ErrCorrupt},
		"no size":                  {going(func(w wire) { w.answer(7, 1) }), share.ErrCorrupt},
		"short size":               {going(func(w wire) { w.answer(7, 3, uint16(0), 1) }), share.ErrCorrupt},
		"huge size":                {going(func(w wire) { w.answer(7, 3, uint16(0), uint64(1<<63), uint16(1)) }), share.ErrCorrupt},
		"empty information":        {going(func(w wire) { w.answer(7, 3); w.answer(7, 3, size); w.answer(7, 1) }), share.ErrCorrupt},
		"block size 0":             {going(func(w wire) { w.answer(7, 3, uint16(3), 0, 4096, 1<<25) }), share.ErrCorrupt},
		"block size 3":             {going(func(w wire) { w.answer(7, 3, uint16(3), 3, 4096, 1<<25) }), share.ErrCorrupt},
		"maximum below minimum":    {going(func(w wire) { w.answer(7, 3, uint16(3), 4096, 4096, 512) }), share.ErrCorrupt},
		"refused: unknown":         {going(func(w wire) { w.answer(7, 1<<31+6, "no such thing\x1b[2J") }), share.ErrNotExist},
		"refused: policy":          {going(func(w wire) { w.answer(7, 1<<31+2) }), share.ErrDenied},
		"refused: TLS":             {going(func(w wire) { w.answer(7, 1<<31+5) }), share.ErrDenied},
		"refused: shutdown":        {going(func(w wire) { w.answer(7, 1<<31+7) }), share.ErrUnavailable},
		"refused: invalid":         {going(func(w wire) { w.answer(7, 1<<31+3) }), share.ErrInvalid},
		"export name closes":       {going(func(w wire) { w.answer(7, 1<<31+1); w.option(); w.Close() }), share.ErrUnavailable},
		"context twice":            {func(w wire) { context2(w, "base:allocation", "base:allocation") }, share.ErrCorrupt},
		"context not asked for":    {func(w wire) { context2(w, "base:other") }, share.ErrCorrupt},
		"context name of 5000":     {func(w wire) { context2(w, strings.Repeat("x", 5000)) }, share.ErrCorrupt},
		"two contexts, one number": {func(w wire) { context2(w, "base:allocation", "x:y") }, share.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			_, err := nbd.Dial(timed(t), fake(t, k.script), &nbd.ClientOptions{HandshakeTimeout: 2 * time.Second})
			require.ErrorIs(t, err, k.want)
			require.NotContains(t, err.Error(), "\x1b")
			require.Less(t, len(err.Error()), 700)
			require.Less(t, time.Since(start), 10*time.Second)
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		_, err := nbd.Dial(ctx, fake(t, silent), nil)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

// context2 answers the selection of contexts with names, all of number 7.
func context2(w wire, names ...string) {
	if !w.greet() {
		return
	}
	o, _ := w.option()
	w.answer(o, 1)
	o, _ = w.option()
	for _, n := range names {
		w.answer(o, 4, 7, n)
	}
	w.answer(o, 1)
	w.gone()
}

func TestHostileReplies(t *testing.T) {
	type script = func(w wire, a asked)
	const data, hole, status, fail, failAt = 1, 2, 5, 1<<15 + 1, 1<<15 + 2
	kib := make([]byte, 1024)
	for name, k := range map[string]struct {
		answer script
		want   error
	}{
		"wrong magic":      {func(w wire, a asked) { w.put(1, 2, a.cookie, 3, 4) }, share.ErrCorrupt},
		"closes":           {func(w wire, a asked) {}, share.ErrUnavailable},
		"truncated header": {func(w wire, a asked) { w.put(0x668e33ef, 1) }, share.ErrUnavailable},
		"truncated chunk":  {func(w wire, a asked) { w.put(0x668e33ef, uint16(1), uint16(data), a.cookie, 4096+8, a.off, kib) }, share.ErrUnavailable},
		"unknown cookie":   {func(w wire, a asked) { w.chunk(true, 0, a.cookie+1) }, share.ErrCorrupt},
		"far cookie":       {func(w wire, a asked) { w.chunk(true, 0, ^uint64(0)) }, share.ErrCorrupt},
		"simple to a read": {func(w wire, a asked) { w.put(0x67446698, 0, a.cookie, make([]byte, 4096)) }, share.ErrCorrupt},
		"simple error":     {func(w wire, a asked) { w.put(0x67446698, 5, a.cookie) }, share.ErrCorrupt},
		"no data":          {func(w wire, a asked) { w.chunk(true, 0, a.cookie) }, share.ErrCorrupt},
		"half the data":    {func(w wire, a asked) { w.chunk(true, data, a.cookie, a.off, kib) }, share.ErrCorrupt},
		"empty data":       {func(w wire, a asked) { w.chunk(true, data, a.cookie, a.off) }, share.ErrCorrupt},
		"data of 3 bytes":  {func(w wire, a asked) { w.chunk(true, data, a.cookie, "abc") }, share.ErrCorrupt},
		"data before":      {func(w wire, a asked) { w.chunk(true, data, a.cookie, a.off-512, kib) }, share.ErrCorrupt},
		"data behind":      {func(w wire, a asked) { w.chunk(true, data, a.cookie, a.off+4096-512, kib) }, share.ErrCorrupt},
		"data far away":    {func(w wire, a asked) { w.chunk(true, data, a.cookie, ^uint64(0)-100, kib) }, share.ErrCorrupt},
		"huge data":        {func(w wire, a asked) { w.put(0x668e33ef, uint16(1), uint16(data), a.cookie, uint32(0xffffffff), a.off) }, share.ErrCorrupt},
		"overlapping data": {func(w wire, a asked) {
			w.chunk(false, data, a.cookie, a.off, kib)
			w.chunk(true, data, a.cookie, a.off+512, kib)
		}, share.ErrCorrupt},
		"overlapping before": {func(w wire, a asked) {
			w.chunk(false, data, a.cookie, a.off+512, kib)
			w.chunk(true, data, a.cookie, a.off, kib)
		}, share.ErrCorrupt},
		"overlapping hole": {func(w wire, a asked) {
			w.chunk(false, data, a.cookie, a.off, kib)
			w.chunk(true, hole, a.cookie, a.off, 4096)
		}, share.ErrCorrupt},
		"empty hole":       {func(w wire, a asked) { w.chunk(true, hole, a.cookie, a.off, 0) }, share.ErrCorrupt},
		"hole behind":      {func(w wire, a asked) { w.chunk(true, hole, a.cookie, a.off, 8192) }, share.ErrCorrupt},
		"hole of 11 bytes": {func(w wire, a asked) { w.chunk(true, hole, a.cookie, "abcdefghijk") }, share.ErrCorrupt},
		"huge hole chunk":  {func(w wire, a asked) { w.put(0x668e33ef, uint16(1), uint16(hole), a.cookie, uint32(0xffffffff)) }, share.ErrCorrupt},
		"none, not last":   {func(w wire, a asked) { w.chunk(false, 0, a.cookie) }, share.ErrCorrupt},
		"none with bytes":  {func(w wire, a asked) { w.chunk(true, 0, a.cookie, 1) }, share.ErrCorrupt},
		"status to a read": {func(w wire, a asked) { w.chunk(true, status, a.cookie, 1, 4096, 0) }, share.ErrCorrupt},
		"unknown chunk":    {func(w wire, a asked) { w.chunk(true, 77, a.cookie, 1, 4096, 0) }, share.ErrCorrupt},
		"huge error":       {func(w wire, a asked) { w.put(0x668e33ef, uint16(1), uint16(fail), a.cookie, uint32(0xffffffff)) }, share.ErrCorrupt},
		"short error":      {func(w wire, a asked) { w.chunk(true, fail, a.cookie, 5) }, share.ErrCorrupt},
		"error 0":          {func(w wire, a asked) { w.chunk(true, fail, a.cookie, 0, uint16(0)) }, share.ErrCorrupt},
		"long message":     {func(w wire, a asked) { w.chunk(true, fail, a.cookie, 5, uint16(9), "short") }, share.ErrCorrupt},
		"error elsewhere":  {func(w wire, a asked) { w.chunk(true, failAt, a.cookie, 5, uint16(0), a.off+9000) }, share.ErrCorrupt},
		"scattered for ever": {func(w wire, a asked) {
			for i := range uint64(2000) {
				w.chunk(false, data, a.cookie, a.off+2*i, "x")
			}
		}, share.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := dial(t, fake(t, func(w wire) {
				if !w.enter() {
					return
				}
				w.request()
				if a, ok := w.request(); ok {
					k.answer(w, a)
				}
			}), &nbd.ClientOptions{Connections: 1})
			other := make(chan error, 1)
			go func() { other <- c.ReadAt(timed(t), make([]byte, 512), 0) }()
			for i := 0; i < 100 && len(other) == 0; i++ { // the other is sent first
				time.Sleep(time.Millisecond / 2)
			}
			require.ErrorIs(t, c.ReadAt(timed(t), make([]byte, 4096), 65536), k.want)
			require.Error(t, <-other, "all requests in flight fail")
			<-c.Done()
			require.ErrorIs(t, c.Flush(timed(t)), k.want)
		})
	}
}

// TestAnsweredTwice: the second answer is nobody's, also when the place in the
// table has been taken again.
func TestAnsweredTwice(t *testing.T) {
	for _, again := range []bool{false, true} {
		c := dial(t, fake(t, func(w wire) {
			if !w.enter() {
				return
			}
			a, _ := w.request()
			w.chunk(true, 1, a.cookie, a.off, make([]byte, a.n))
			if again {
				w.request()
			}
			w.chunk(true, 1, a.cookie, a.off, make([]byte, a.n))
			w.gone()
		}), &nbd.ClientOptions{Connections: 1})
		require.NoError(t, c.ReadAt(timed(t), make([]byte, 512), 0))
		if !again {
			<-c.Done()
		}
		require.ErrorIs(t, c.ReadAt(timed(t), make([]byte, 512), 0), share.ErrCorrupt)
	}
}

func TestHostileBlockStatus(t *testing.T) {
	long := make([]byte, 8<<20+100)
	for name, answer := range map[string]func(w wire, a asked){
		"simple":         func(w wire, a asked) { w.put(0x67446698, 0, a.cookie) },
		"none":           func(w wire, a asked) { w.chunk(true, 0, a.cookie) },
		"other context":  func(w wire, a asked) { w.chunk(true, 5, a.cookie, 99, 4096, 0) },
		"twice":          func(w wire, a asked) { w.chunk(false, 5, a.cookie, 1, 4096, 0); w.chunk(true, 5, a.cookie, 1, 4096, 0) },
		"no extents":     func(w wire, a asked) { w.chunk(true, 5, a.cookie, 1) },
		"half an extent": func(w wire, a asked) { w.chunk(true, 5, a.cookie, 1, 4096, uint16(0)) },
		"empty extent":   func(w wire, a asked) { w.chunk(true, 5, a.cookie, 1, 0, 0) },
		"beyond":         func(w wire, a asked) { w.chunk(true, 5, a.cookie, 1, 1<<20, 0, 4096, 1) },
		"huge":           func(w wire, a asked) { w.chunk(true, 5, a.cookie, long) },
		"data":           func(w wire, a asked) { w.chunk(true, 1, a.cookie, a.off, "xx") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := dial(t, fake(t, func(w wire) {
				if w.enter() {
					if a, ok := w.request(); ok {
						answer(w, a)
					}
				}
			}), &nbd.ClientOptions{Connections: 1})
			_, err := c.Extents(timed(t), 0, 1<<20)
			require.ErrorIs(t, err, share.ErrCorrupt)
		})
	}
}

// TestOddReplies are unusual but right.
func TestOddReplies(t *testing.T) {
	half := make([]byte, 2048)
	for i := range half {
		half[i] = 7
	}
	c := dial(t, fake(t, func(w wire) {
		if !w.enter() {
			return
		}
		for n := 0; ; n++ {
			a, ok := w.request()
			switch {
			case !ok || a.cmd == 2:
				return
			case a.cmd == 7:
				// The last extent may reach beyond the range asked for.
				w.chunk(true, 5, a.cookie, 1, 512, 3, 1<<20, 0)
			case a.cmd == 1:
				w.put(0x67446698, 0, a.cookie)
			case n == 0: // in any order, with a hole
				w.chunk(false, 1, a.cookie, a.off+2048, half)
				w.chunk(false, 2, a.cookie, a.off, 1024)
				w.chunk(false, 1, a.cookie, a.off+1024, half[:1024])
				w.chunk(true, 0, a.cookie)
			case n == 1: // an error of a kind to come, among data
				w.chunk(false, 1, a.cookie, a.off, half)
				w.chunk(true, 1<<15+99, a.cookie, 28, uint16(2), "no", "more fields")
			case n == 2:
				w.chunk(false, 1<<15+2, a.cookie, 5, uint16(3), "bad", a.off+10)
				w.chunk(true, 1, a.cookie, a.off, half, half)
			}
		}
	}), &nbd.ClientOptions{Connections: 1})
	ctx := timed(t)
	p := make([]byte, 4096)
	p[0] = 1
	require.NoError(t, c.ReadAt(ctx, p, 4096))
	same(t, append(make([]byte, 1024), append(half[:1024:1024], half...)...), p)
	err := c.ReadAt(ctx, p, 4096)
	require.ErrorIs(t, err, share.ErrNoSpace)
	require.ErrorContains(t, err, "no")
	var e *nbd.Error
	require.ErrorAs(t, c.ReadAt(ctx, p, 4096), &e)
	require.Equal(t, nbd.Error{Cmd: nbd.CmdRead, Code: nbd.EIO, Message: "bad"}, *e)
	require.NoError(t, c.WriteAt(ctx, p, 0))
	got, err := c.Extents(ctx, 0, 4096)
	require.NoError(t, err)
	require.Equal(t, []share.Extent{{Off: 0, Len: 512, State: 3}, {Off: 512, Len: 3584}}, got)
}

// TestCancelHalfWay: a cancelled read whose data is arriving ends the
// connection rather than wait for it, and leaves the buffer alone afterwards.
func TestCancelHalfWay(t *testing.T) {
	half, goOn := make(chan struct{}), make(chan struct{})
	c := dial(t, fake(t, func(w wire) {
		if !w.enter() {
			return
		}
		a, _ := w.request()
		w.put(0x668e33ef, uint16(1), uint16(1), a.cookie, 4096+8, a.off, strings.Repeat("x", 2000))
		close(half)
		<-goOn
		w.put(strings.Repeat("x", 2096))
		w.gone()
	}), &nbd.ClientOptions{Connections: 1})
	ctx, cancel := context.WithCancel(context.Background())
	p := make([]byte, 4096)
	got := make(chan error, 1)
	go func() { got <- c.ReadAt(ctx, p, 0) }()
	<-half
	time.Sleep(20 * time.Millisecond)
	cancel()
	require.ErrorIs(t, <-got, context.Canceled)
	clear(p)
	close(goOn)
	<-c.Done()
	require.ErrorIs(t, c.ReadAt(timed(t), p, 0), share.ErrUnavailable)
	same(t, make([]byte, 4096), p)
}

// TestCancelPrompt: cancelled calls return while the server is silent, the
// late answers go nowhere, and the connection lives.
func TestCancelPrompt(t *testing.T) {
	goOn := make(chan struct{})
	c := dial(t, fake(t, func(w wire) {
		if !w.enter() {
			return
		}
		<-goOn
		for {
			a, ok := w.request()
			if !ok || a.cmd == 2 {
				return
			}
			if a.cmd == 0 {
				w.chunk(true, 1, a.cookie, a.off, strings.Repeat("x", int(a.n)))
			} else {
				w.chunk(true, 0, a.cookie)
			}
		}
	}), &nbd.ClientOptions{Connections: 1})
	bufs := make([][]byte, 20)
	got := make(chan error, len(bufs))
	ctx, cancel := context.WithCancel(context.Background())
	for i := range bufs {
		bufs[i] = make([]byte, 4096)
		go func() {
			if i%2 == 0 {
				got <- c.ReadAt(ctx, bufs[i], 0)
			} else {
				got <- c.WriteAt(ctx, bufs[i], 0)
			}
		}()
	}
	time.Sleep(50 * time.Millisecond)
	start := time.Now()
	cancel()
	wedged := 0
	for range bufs {
		err := <-got
		require.ErrorIs(t, err, context.Canceled)
		if errors.Is(err, share.ErrWedged) {
			wedged++
		}
	}
	require.Equal(t, len(bufs)/2, wedged, "the writes, and only they, may still land")
	require.Less(t, time.Since(start), time.Second)
	close(goOn)
	require.Equal(t, strings.Repeat("x", 512), string(read(t, c, 0, 512)))
	for _, b := range bufs {
		same(t, make([]byte, 4096), b)
	}
}

// TestCancelStuckWrite: a write that the server does not even read.
func TestCancelStuckWrite(t *testing.T) {
	end := make(chan struct{})
	defer close(end)
	c := dial(t, fake(t, func(w wire) {
		if w.enter() {
			<-end
		}
	}), &nbd.ClientOptions{Connections: 1})
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	require.ErrorIs(t, c.WriteAt(ctx, make([]byte, 1<<20), 0), context.DeadlineExceeded)
	require.Less(t, time.Since(start), 5*time.Second)
}
