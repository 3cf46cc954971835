#!/usr/bin/env bash
# Starts slurmd as the nodes named: at the start of the cluster, or when one comes back.
set -euo pipefail
: "${LAB:?the directory of the cluster}"
export SLURM_CONF=$LAB/etc/slurm.conf
for node in "$@"; do
    mkdir -p "$LAB/spool/$node"
    unshare --uts --mount --propagation slave sh -c \
        "hostname $node && mount --bind $LAB/etc/hosts /etc/hosts && exec /usr/sbin/slurmd -N $node"
done
