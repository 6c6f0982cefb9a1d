// Package table prints rows and files for a person.
package table

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"
)

// Line is a row as it is printed.
type Line struct {
	Path, Status string
	Took         time.Duration
	// Log is where a person finds the console.
	Log string
}

// Print writes the rows for a person.
func Print(w io.Writer, lines []Line) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "PATH\tSTATUS\tDURATION\tLOG")
	for _, l := range lines {
		took := "-"
		if l.Took > 0 {
			took = l.Took.Round(time.Millisecond).String()
		}
		log := l.Log
		if log == "" {
			log = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", l.Path, l.Status, took, log)
	}
	return t.Flush()
}

// Files lists what lies in a folder, for a person who wants to look.
func Files(w io.Writer, dir string) {
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
