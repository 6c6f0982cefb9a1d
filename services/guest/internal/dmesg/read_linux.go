package dmesg

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// maxRecords bounds a log that grows while it is read.
const maxRecords = 1 << 18

// Read gives all records that the kernel still has. Not through os.File: its
// poller would wait for the next record.
func Read() ([]Record, error) {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening /dev/kmsg: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	var records []Record
	buf := make([]byte, 16<<10)
	for len(records) < maxRecords {
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return records, nil
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EINTR):
			continue // EPIPE: the record was overwritten, the next read gives the oldest one left
		case err != nil:
			return records, fmt.Errorf("reading /dev/kmsg: %w", err)
		case n == 0:
			return records, nil
		}
		r, err := Parse(buf[:n])
		if err != nil {
			return records, err
		}
		records = append(records, r)
	}
	return records, nil
}
