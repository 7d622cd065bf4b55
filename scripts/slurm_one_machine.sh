#!/usr/bin/env bash
# Start a real Slurm of two nodes, n1 and n2, on this one Debian machine, as root; stop it again.
#   scripts/slurm_one_machine.sh start DIR    then: export SLURM_CONF=DIR/slurm.conf
#   scripts/slurm_one_machine.sh stop DIR
# Partition "main" is preempted by "urgent": its jobs get SIGTERM, 30 s, and are requeued.
set -euo pipefail
[ $# = 2 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
dir="$(realpath -m "$2")"

if [ "$1" = stop ]; then
  # By the ids that they wrote down; munged only where this script started it.
  for file in "$dir"/run/*.pid; do
    [ -e "$file" ] && kill "$(cat "$file")" 2>/dev/null || true
  done
  exit 0
fi

if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurm-wlm munge
fi
host="$(hostname -s)"
mkdir -p "$dir"/{state,spool,log,run}
if [ ! -S /run/munge/munge.socket.2 ] || ! munge -n | unmunge >/dev/null 2>&1; then
  mkdir -p /run/munge
  chown munge:munge /run/munge
  chmod 755 /run/munge
  runuser -u munge -- /usr/sbin/munged --force
  cp /run/munge/munged.pid "$dir/run/munged.pid"
fi
# A requeued job waits until its credential has expired: seconds here, two minutes elsewhere.
cat >"$dir/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=/run/munge/munge.socket.2,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/%n.log
SlurmctldPort=16817
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=5,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=2 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL State=UP PriorityTier=2 PreemptMode=OFF
END
export SLURM_CONF="$dir/slurm.conf"
slurmctld -c
slurmd -N n1
slurmd -N n2
for _ in $(seq 30); do
  [ "$(sinfo --noheader --partition=main --states=idle --format=%D 2>/dev/null)" = 2 ] && break
  sleep 1
done
sinfo
