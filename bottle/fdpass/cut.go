package fdpass

import (
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Cut ends a connection for each process that holds it: the peer gets a reset, what was not read
// or sent yet is gone, and whoever reads or writes gets an error, never an end of file. (A
// shutdown(2) would read as one, and a close binds this process alone.) The caller still closes it.
func Cut(c *net.TCPConn) error {
	return control(c, func(fd int) error {
		// connect(2): the family AF_UNSPEC dissolves the association.
		none := unix.RawSockaddr{Family: unix.AF_UNSPEC}
		_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none)) //nolint:gosec // G103: the kernel's interface
		if errno != 0 {
			return errno
		}
		return nil
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
