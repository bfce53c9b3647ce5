package migrate_test

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/vmferry/vmferry/internal/wire"
	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/sharetest"
)

// Verify names exactly the blocks that differ, near and far.
func TestVerifyFindsWhatDiffers(t *testing.T) {
	ctx := context.Background()
	const size, block = 300*4096 + 100, 4096
	a, b := sharetest.NewDevice(size), sharetest.NewDevice(size+512)
	_, remote := receive(t, b, nil)
	rapid.Check(t, func(t *rapid.T) {
		want := map[int64]bool{}
		require.NoError(t, share.ZeroRange(ctx, a, 0, size, 0))
		require.NoError(t, share.ZeroRange(ctx, b, 0, size, 0))
		for range rapid.IntRange(0, 5).Draw(t, "changes") {
			off := rapid.Int64Range(0, size-1).Draw(t, "off")
			if !want[off/block] {
				require.NoError(t, b.WriteAt(ctx, []byte{1}, off))
				want[off/block] = true
			}
		}
		for _, verify := range []func() ([]migrate.Range, error){
			func() ([]migrate.Range, error) {
				return migrate.Verify(ctx, a, remote, &migrate.VerifyOptions{Block: block})
			},
			func() ([]migrate.Range, error) {
				return migrate.VerifyDevices(ctx, a, b, &migrate.VerifyOptions{Block: block})
			},
		} {
			ranges, err := verify()
			require.NoError(t, err)
			got := map[int64]bool{}
			for _, r := range ranges {
				for off := r.Off; off < r.End(); off += block {
					got[off/block] = true
				}
			}
			require.Equal(t, want, got)
		}
	})
	_, err := migrate.VerifyDevices(ctx, b, a, nil)
	require.ErrorIs(t, err, share.ErrInvalid)
	_, err = migrate.Verify(ctx, a, remote, &migrate.VerifyOptions{Block: 1000})
	require.ErrorIs(t, err, share.ErrInvalid)
}

// Who asks for hashes does not disturb the sender, and cannot write.
func TestVerifyDisturbsNobody(t *testing.T) {
	ctx := context.Background()
	d := sharetest.NewDevice(1 << 20)
	_, remote := receive(t, d, nil)
	sender := dialRaw(t, remote, hello(5))
	_, _, err := sender.next()
	require.NoError(t, err)
	_, err = migrate.Verify(ctx, sharetest.NewDevice(1<<20), remote, nil)
	require.NoError(t, err)
	h, _, err := sender.ask(wire.Header{Type: wire.Data, ID: 2, Len: 4096, Epoch: 5, Generation: 1}, make([]byte, 4096))
	require.NoError(t, err)
	require.Equal(t, wire.Done, h.Type)

	body := hello(0)
	body.ReadOnly = true
	reader := dialRaw(t, remote, body)
	h, _, err = reader.next()
	require.NoError(t, err)
	require.Equal(t, wire.Welcome, h.Type)
	for _, q := range []wire.Header{{Type: wire.Zero, ID: 2, Len: 4096}, {Type: wire.Discard, ID: 3, Len: 4096}, {Type: wire.Flush, ID: 4}} {
		_, f, err := reader.ask(q, nil)
		require.NoError(t, err)
		require.Equal(t, wire.CodeDenied, f.Code)
	}
}

// A receipt that was stored tells a copy that is still the same from one that
// is not.
func TestReceipt(t *testing.T) {
	ctx := context.Background()
	r := newRig(t, 1, nil)
	for range 500 {
		require.NoError(t, r.writer.Step(ctx, r.tracked))
	}
	res, err := r.wait(r.start(nil))
	require.NoError(t, err)
	require.NotNil(t, res.Receipt)
	stored, err := json.Marshal(res.Receipt)
	require.NoError(t, err)
	receipt, err := migrate.ParseReceipt(stored)
	require.NoError(t, err)
	require.Equal(t, "guest", receipt.Guest)
	require.Equal(t, uint64(2), receipt.Epoch)

	require.NoError(t, receipt.Check(ctx, "vda", r.to))
	require.NoError(t, receipt.Check(ctx, "vda", r.from), "the source was left as it was")
	require.ErrorIs(t, receipt.Check(ctx, "vdb", r.to), share.ErrNotExist)
	require.ErrorIs(t, receipt.Check(ctx, "vda", sharetest.NewDevice(512)), share.ErrCorrupt)
	require.NoError(t, r.to.WriteAt(ctx, []byte{0x77}, diskSize+511))
	require.ErrorIs(t, receipt.Check(ctx, "vda", r.to), share.ErrCorrupt)

	for _, bad := range []string{"", "{", `{"disks":[{"block_bytes":7}]}`, `{"disks":[{"block_bytes":4096,"root":"x"}]}`} {
		_, err := migrate.ParseReceipt([]byte(bad))
		require.ErrorIs(t, err, share.ErrInvalid, bad)
	}
}
