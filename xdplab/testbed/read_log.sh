#!/bin/sh
# Print what BPF programs log, line by line as it comes, until standard input ends.
#
#   sudo unshare --mount sh read_log.sh           reads
#   sudo unshare --mount sh read_log.sh sweep     only removes what is left of killed ones
#
# The mount namespace is for tracefs: where nobody has mounted it, it is there for
# this process alone.  From v5.9 on the log is an event (ac5a72ea5c89 "bpf: Use
# dedicated bpf_trace_printk event instead of trace_printk()"), and is read through
# a tracefs instance of our own, so that no other reader loses lines to this one.
set -eu
tracefs=/sys/kernel/tracing
[ -e $tracefs/trace_pipe ] || mount -t tracefs tracefs $tracefs
cd $tracefs
for left in instances/xdplab-*; do
	[ ! -d "$left" ] || [ -d "/proc/${left##*-}" ] || rmdir "$left" || : # another was faster
done
[ "${1-}" != sweep ] || exit 0

event=events/bpf_trace/bpf_trace_printk/enable
mine=
if [ -e $event ]; then
	mine=$tracefs/instances/xdplab-$$
else
	echo "this kernel has one log for all: other readers lose the lines that are read here" >&2
fi
trap : HUP INT TERM # they end what is below, and this waits for the guard
trap '' PIPE # whoever was told has been killed: what is ours has to go all the same

# In a session of its own the guard outlives what kills all else.  Once nobody has the other
# end of its pipe open, the reader goes, or the instance were busy, and then the instance.
guard='
	trap "" HUP INT TERM
	read -r reader
	cat
	[ "$(cat "/proc/$reader/comm")" != dd ] || kill -KILL "$reader"
	for _ in $(seq 100); do
		[ -d "$1" ] && ! rmdir "$1" || exit
		sleep 0.1
	done
'
exec 3>&1
{
	exec 4>&1 >&3 3>&-
	if [ "$mine" ]; then
		mkdir "$mine"
		cd "$mine"
		echo 1 >$event
	fi
	# a cat may splice, and then hold back what it has
	sh -c 'echo $$ >&4; exec dd bs=4096 if=trace_pipe status=none 4>&-' &
	echo reading
	cat >/dev/null
} | setsid sh -c "$guard" guard "$mine" >/dev/null 2>&1 3>&-
