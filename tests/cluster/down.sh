#!/usr/bin/env bash
# Ends the cluster that up.sh started in LAB: its jobs, then its daemons by their pids. Logs stay.
set -u
: "${LAB:?the directory of the cluster}"
export SLURM_CONF=$LAB/etc/slurm.conf

stop() { # only a daemon of Slurm or munge: a pid may have a new owner
    local pid
    pid=$(cat "$1" 2>/dev/null) || return 0
    case $(readlink "/proc/$pid/exe" 2>/dev/null) in
    *slurm* | *munged*)
        kill "$pid"
        for _ in $(seq 100); do
            [ -d "/proc/$pid" ] || return 0
            sleep 0.1
        done
        kill -9 "$pid"
        ;;
    esac
}

if [ -e "$LAB/pid/slurmctld.pid" ]; then
    timeout 5 scancel --quiet --full --user=root 2>/dev/null
    timeout 5 scancel --quiet --signal=KILL --full --user=root 2>/dev/null
    end=$((SECONDS + 20))
    while [ $SECONDS -lt $end ] && [ -n "$(timeout 3 squeue --noheader 2>/dev/null)" ]; do
        sleep 0.2
    done
fi
for file in "$LAB"/pid/slurmd-*.pid; do # with what is left of jobs
    name=${file##*/slurmd-}
    [ ! -e "$file" ] || "$(dirname "${BASH_SOURCE[0]}")/node_kill.sh" "${name%.pid}"
done
for file in "$LAB/pid/slurmctld.pid" "$LAB/pid/munged.pid"; do
    stop "$file"
done
rm -f "$LAB"/pid/*
sed '/# pat-cluster$/d' /etc/hosts >"$LAB/etc/hosts" && cat "$LAB/etc/hosts" >/etc/hosts
