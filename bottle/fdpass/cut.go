package fdpass

import (
	"errors"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Cut ends a connection for each process that holds it: the peer gets a reset, what was not read
// or sent yet is gone, and whoever reads or writes gets an error, never an end of file. (A
// shutdown(2) would read as one, and a close binds this process alone.) The caller still closes it.
// The error is that of a connection that is over, or of a kernel that refuses; nothing can be sent then either.
func Cut(c *net.TCPConn) error {
	return control(c, func(fd int) error {
		err := dissolve(fd)
		for range maxBusy {
			if !errors.Is(err, unix.EBUSY) {
				return err
			}
			// Some kernels refuse while another process waits in a blocking call, which this ends.
			_ = unix.Shutdown(fd, unix.SHUT_RDWR)
			err = dissolve(fd)
		}
		return err
	})
}

const maxBusy = 100

// dissolve is connect(2) to the family AF_UNSPEC.
func dissolve(fd int) error {
	none := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none)); errno != 0 { //nolint:gosec // G103: the kernel's interface
		return errno
	}
	return nil
}

// Drain discards what comes until the peer's end, an error, or c's read deadline. It never blocks
// the thread, whatever another holder of the connection made of its flags; a plain Read would.
func Drain(c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	b := make([]byte, 64<<10) // into which nothing is written: see MSG_TRUNC in tcp(7)
	_ = raw.Read(func(fd uintptr) bool {
		for {
			n, _, err := unix.Recvfrom(int(fd), b, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
			switch {
			case errors.Is(err, unix.EINTR):
			case errors.Is(err, unix.EAGAIN):
				return false
			case err != nil || n == 0:
				return true
			}
		}
	})
}

// Unsent is how many bytes the peer has yet to acknowledge.
func Unsent(c *net.TCPConn) (n int, err error) {
	err = control(c, func(fd int) error {
		n, err = unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		return err
	})
	return n, err
}
