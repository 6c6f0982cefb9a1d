package pullab

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"
)

// line is a row as it is printed.
type line struct {
	path, status, log string
	took              time.Duration
}

// printTable writes the rows for a person.
func printTable(w io.Writer, lines []line) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "PATH\tSTATUS\tDURATION\tLOG")
	for _, l := range lines {
		took := "-"
		if l.took > 0 {
			took = l.took.Round(time.Millisecond).String()
		}
		log := l.log
		if log == "" {
			log = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", l.path, l.status, took, log)
	}
	return t.Flush()
}

// printFiles lists what lies in a folder, for a person who wants to look.
func printFiles(w io.Writer, dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		fmt.Fprintf(w, "no files: %v\n", err)
		return
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			fmt.Fprintf(w, "  %s (%d bytes)\n", filepath.Join(dir, e.Name()), info.Size())
		}
	}
}
