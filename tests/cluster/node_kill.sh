#!/usr/bin/env bash
# A node dies: its slurmd, and every process of a job on it, by SIGKILL. node_up.sh brings it back.
set -euo pipefail
: "${LAB:?the directory of the cluster}"
node=$1
daemon=$(cat "$LAB/pid/slurmd-$node.pid")
space=$(readlink "/proc/$daemon/ns/uts") # each node has its own
[ "$space" != "$(readlink /proc/$$/ns/uts)" ] || exit 1
for process in /proc/[0-9]*; do
    if [ "$(readlink "$process/ns/uts" 2>/dev/null)" = "$space" ]; then
        kill -9 "${process#/proc/}" 2>/dev/null || true
    fi
done
rm -f "$LAB/pid/slurmd-$node.pid"
