//go:build linux

package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Port is the device that the guest reports on. Tests do not inherit it, and
// its node is gone from /dev, so that a test which walks over all terminals
// does not write on it by accident.
type Port struct{ *os.File }

// FindPort gives the device node of a port: ttyS1, hvc0, vport0p1, or the name
// that a virtio-serial port was given.
func FindPort(name string) (string, error) {
	node := filepath.Join("/dev", filepath.Base(name))
	if _, err := os.Stat(node); err == nil {
		return node, nil
	}
	ports, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, p := range ports {
		if text, err := os.ReadFile(p); err == nil && strings.TrimSpace(string(text)) == name {
			return filepath.Join("/dev", filepath.Base(filepath.Dir(p))), nil
		}
	}
	return "", fmt.Errorf("%s: %w", node, os.ErrNotExist)
}

// OpenPort opens node for writing, raw if it is a terminal.
func OpenPort(node string) (*Port, error) {
	// Not to wait for a carrier in open, but to wait in write: half a line is
	// no line.
	fd, err := unix.Open(node, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: node, Err: err}
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	p := &Port{os.NewFile(uintptr(fd), node)}
	if err := p.raw(); err != nil {
		p.Close()
		return nil, err
	}
	_ = os.Remove(node)
	return p, nil
}

// raw makes a terminal pass bytes as they are (cfmakeraw(3)), 115200 baud.
func (p *Port) raw() error {
	fd := int(p.Fd())
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) {
		return nil // a virtio-serial port is no terminal
	}
	if err != nil {
		return fmt.Errorf("reading the terminal settings of %s: there is no such port in the machine: %w", p.Name(), err)
	}
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag &^= unix.CSIZE | unix.PARENB | unix.CBAUD | unix.CRTSCTS
	t.Cflag |= unix.CS8 | unix.CLOCAL | unix.CREAD | unix.B115200
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return fmt.Errorf("setting %s raw: %w", p.Name(), err)
	}
	return nil
}

// Drain waits until all bytes have left (tcdrain(3)).
func (p *Port) Drain() error {
	err := unix.IoctlSetInt(int(p.Fd()), unix.TCSBRK, 1)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}
