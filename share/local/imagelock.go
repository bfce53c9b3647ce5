package local

import (
	"fmt"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmferry/vmferry/share"
)

// QEMU's image locking, so that QEMU and this package exclude each other.
//
// Each permission has a bit. Who uses an image holds a read lock (F_OFD_SETLK,
// F_RDLCK) on byte 100+bit for each permission that it uses, and on byte
// 200+bit for each that it does not let others use. Having taken its locks it
// looks (F_OFD_GETLK) whether anyone forbids what it uses or uses what it
// forbids, and gives up if so. The locks are of the open file, so they end
// with its last descriptor.
//
// QEMU describes this in its documentation of the raw driver's "locking" and
// uses it in qemu-img, qemu-nbd and every guest.
type permission uint64

const (
	permRead      permission = 1 << iota // read a consistent content
	permWrite                            // write
	permUnchanged                        // write what is there already
	permResize                           // change the size
	permAll       = permRead | permWrite | permUnchanged | permResize
)

const (
	usesBase    = 100
	forbidsBase = 200
)

// use says which permissions a handle uses and which it leaves to others.
type use struct{ uses, allows permission }

var (
	// readerOf: a reader, beside any number of others and one writer.
	readerOf = use{permRead, permAll}
	// writerOf: the one writer, as QEMU opens the disk of a guest.
	writerOf = use{permRead | permWrite, permRead | permUnchanged}
	// aloneOn: nobody else, not even readers.
	aloneOn = use{permRead | permWrite | permResize, 0}
)

// lockImage takes the locks on an open image, or returns ErrInUse without
// having waited. They are held until f is closed.
func lockImage(f *os.File, u use) error {
	err := control(f, func(fd int) error {
		forbids := permAll &^ u.allows
		err := eachBit(u.uses, func(bit int64) error { return lockByte(fd, usesBase+bit) })
		if err == nil {
			err = eachBit(forbids, func(bit int64) error { return lockByte(fd, forbidsBase+bit) })
		}
		if err == nil {
			err = eachBit(u.uses, func(bit int64) error { return byteIsFree(fd, forbidsBase+bit) })
		}
		if err == nil {
			err = eachBit(forbids, func(bit int64) error { return byteIsFree(fd, usesBase+bit) })
		}
		if err != nil {
			_ = unlockBytes(fd)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("locking the image: %w", err)
	}
	return nil
}

// unlockImage gives the locks back before f is closed: to a program that gets
// the image from here and takes them for itself.
func unlockImage(f *os.File) error { return control(f, unlockBytes) }

func unlockBytes(fd int) error {
	return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK, Start: usesBase, Len: 2 * (forbidsBase - usesBase)})
}

func eachBit(p permission, f func(bit int64) error) error {
	for ; p != 0; p &= p - 1 {
		if err := f(int64(bits.TrailingZeros64(uint64(p)))); err != nil {
			return err
		}
	}
	return nil
}

func lockByte(fd int, at int64) error {
	err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: at, Len: 1})
	if err == unix.EAGAIN || err == unix.EACCES {
		return fmt.Errorf("%w: another program locks all of it", share.ErrInUse)
	}
	return err
}

func byteIsFree(fd int, at int64) error {
	lk := unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lk); err != nil {
		return err
	}
	if lk.Type != unix.F_UNLCK {
		return fmt.Errorf("%w: QEMU or another program of this kind holds it open", share.ErrInUse)
	}
	return nil
}
