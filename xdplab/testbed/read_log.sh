#!/bin/sh
# Print what BPF programs log, line by line as it comes, until standard input ends.
#
#   sudo unshare --mount sh read_log.sh           reads
#   sudo unshare --mount sh read_log.sh sweep     only removes what killed readers left
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
	[ ! -d "$left" ] || [ -d "/proc/${left##*-}" ] || rmdir "$left"
done
[ "${1-}" != sweep ] || exit 0

event=events/bpf_trace/bpf_trace_printk/enable
mine=
reader=
leave() {
	trap '' HUP INT TERM # or the rest is not done
	# TERM can be lost on a shell that is about to become dd
	[ -z "$reader" ] || kill -KILL "$reader" 2>/dev/null || :
	[ -z "$reader" ] || wait "$reader" || : # until it is gone the instance is busy
	[ -z "$mine" ] || rmdir "$mine"
}
trap leave EXIT
trap : HUP INT TERM # these end cat below; an exit here could end leave half-way
trap '' PIPE # whoever was told has been killed: what is ours has to go all the same
if [ -e $event ]; then
	mine=$tracefs/instances/xdplab-$$
	mkdir "$mine"
	cd "$mine"
	echo 1 >$event
else
	echo "this kernel has one log for all: other readers lose the lines that are read here" >&2
fi
dd bs=4096 if=trace_pipe status=none & # a cat may splice, and then hold back what it has
reader=$!
echo reading
cat >/dev/null
