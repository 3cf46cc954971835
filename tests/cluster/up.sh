#!/usr/bin/env bash
# A real Slurm with emulated nodes on this machine: Debian's packages, no systemd, no cgroups. Needs root.
#
#   LAB=DIR tests/cluster/up.sh       state, logs and pids go to DIR; then export SLURM_CONF=DIR/etc/slurm.conf
#   NODES=2 CPUS=1 MEMORY_MB=4000     of each node
#   tests/cluster/down.sh             ends it, by pid
#
# Each node is a slurmd with a host name and /etc/hosts of its own (UTS and mount name spaces) on its own loopback
# address. Partitions: main, and urgent, which takes main's nodes away from its jobs and puts those back into the queue.
set -euo pipefail
: "${LAB:?a directory for the state of the cluster}"
NODES=${NODES:-2} CPUS=${CPUS:-1} MEMORY_MB=${MEMORY_MB:-4000}
if [ -n "$(ls -A "$LAB/pid" 2>/dev/null)" ]; then
    echo "a cluster is up already in $LAB: run down.sh first" >&2
    exit 1
fi

"$(dirname "${BASH_SOURCE[0]}")/../install.sh" slurmctld slurmd slurm-client munge

mkdir -p "$LAB"/{etc,log,pid,state,spool}
chmod 755 "$LAB" "$LAB"/*
install -d -o munge -g munge -m 755 "$LAB/munge"
if [ ! -s "$LAB/munge/key" ]; then
    dd if=/dev/urandom of="$LAB/munge/key" bs=128 count=1 status=none
    chown munge:munge "$LAB/munge/key"
    chmod 400 "$LAB/munge/key"
fi

head=$(hostname -s)
mark="# pat-cluster"
sed "/$mark\$/d" /etc/hosts >"$LAB/etc/hosts"
lines=""
for i in $(seq "$NODES"); do
    echo "127.0.0.$((10 + i)) n$i $mark" >>"$LAB/etc/hosts"
    lines+="NodeName=n$i NodeHostname=n$i NodeAddr=127.0.0.$((10 + i)) Port=$((17010 + i)) CPUs=$CPUS RealMemory=$MEMORY_MB"$'\n'
done
cat "$LAB/etc/hosts" >/etc/hosts # srun and scontrol on this machine find the nodes, too; down.sh takes them out

cat >"$LAB/etc/slurm.conf" <<CONF
ClusterName=lab
SlurmctldHost=$head(127.0.0.1)
SlurmctldPort=17001
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that comes back into the queue waits for cred_expire: two minutes unless told otherwise.
AuthInfo=socket=$LAB/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$LAB/state
SlurmdSpoolDir=$LAB/spool/%n
SlurmctldPidFile=$LAB/pid/slurmctld.pid
SlurmdPidFile=$LAB/pid/slurmd-%n.pid
SlurmctldLogFile=$LAB/log/slurmctld.log
SlurmdLogFile=$LAB/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=100000,bf_interval=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Between SIGTERM and SIGKILL of a job that has to go.
KillWait=60
MinJobAge=3600
SlurmctldTimeout=30
SlurmdTimeout=30
${lines}PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=10 OverSubscribe=NO
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=20 PreemptMode=OFF
CONF
echo "CgroupPlugin=disabled" >"$LAB/etc/cgroup.conf" # or slurmd tries the machine's own cgroup tree
export SLURM_CONF=$LAB/etc/slurm.conf

fail() {
    echo "$1" >&2
    tail -n 5 "$LAB"/log/*.log >&2 || true
    LAB="$LAB" "$(dirname "${BASH_SOURCE[0]}")/down.sh" >&2
    exit 1
}
# One daemon and one key serve every node.
runuser -u munge -- /usr/sbin/munged --key-file="$LAB/munge/key" --socket="$LAB/munge/socket" \
    --pid-file="$LAB/munge/munged.pid" --log-file="$LAB/munge/munged.log" --seed-file="$LAB/munge/seed"
ln -sfn "$LAB/munge/munged.pid" "$LAB/pid/munged.pid"
munge -S "$LAB/munge/socket" -n | unmunge -S "$LAB/munge/socket" >/dev/null || fail "munged does not answer"

/usr/sbin/slurmctld -c
for _ in $(seq 600); do
    timeout 2 scontrol ping 2>/dev/null | grep -q 'is UP' && break
    sleep 0.1
done
[ -e "$LAB/pid/slurmctld.pid" ] || fail "slurmctld did not start"

"$(dirname "${BASH_SOURCE[0]}")/node_up.sh" $(seq -f 'n%g' "$NODES")
end=$((SECONDS + 240))
until [ "$(timeout 3 sinfo -h -N -t idle -p main -o %N 2>/dev/null | sort -u | wc -l)" -ge "$NODES" ]; do
    [ $SECONDS -lt $end ] || fail "the nodes are not idle after 240 s"
    sleep 0.2
done
