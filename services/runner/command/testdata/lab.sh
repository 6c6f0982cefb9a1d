#!/bin/sh
# An example program for the command executor, and the one its tests run. It
# plays a board instead of driving one: where it plays, yours would switch the
# power, load the kernel of plan.boot.kernel.url, and read the serial port.
input=$(cat)
say() { printf '%s\n' "$1"; }
want() { printf '%s' "$input" | grep -q "\"scenario\":\"$1\""; }

echo "attempt of a run, in $(pwd)" >&2
say '{"progress": {"phase": "booting", "detail": "power on"}}'

if want panic; then
	echo 'Kernel panic - not syncing: Attempted to kill init!' >console.log
	say '{"file": {"name": "console.log", "log": true}}'
	say '{"kernel": {"fate": "failed", "reason": "Kernel panic - not syncing: Attempted to kill init!"}}'
	say '{"done": {}}'
elif want hang; then
	sleep 1000
elif want stubborn; then
	trap '' TERM
	echo 'deaf now' >&2
	while :; do sleep 1000; done
elif want break; then
	say '{"lab_error": {"reason": "power", "message": "the board does not answer", "fix": "Look at its plug."}}'
elif want quit; then
	echo 'segmentation fault, or so' >&2
	exit 3
elif want garbage; then
	say 'Linux version 6.12.0'
else
	echo 'Linux version 6.12.0-lab' >console.log
	say '{"kernel": {"fate": "booted", "release": "6.12.0-lab"}}'
	say '{"progress": {"phase": "testing", "detail": "boot"}}'
	say '{"row": {"path": "boot", "status": "PASS", "test_id": "boot", "duration_s": 0.5}}'
	say '{"file": {"name": "console.log", "log": true}}'
	say '{"done": {"device": "board-1", "facts": {"firmware": "2.1"}}}'
fi
