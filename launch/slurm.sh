#!/usr/bin/env bash
#
# A job on GPU nodes under SLURM, a process for each GPU.
#
#   sbatch --nodes=2 launch/slurm.sh --flagfile=launch/flags/ml1m.flags \
#     --distributed --workdir=/shared/runs/ml1m
#
# --distributed joins the processes. The workdir must be a folder that all nodes
# see. JOB is the job file, default launch/job.sh. Two minutes before the time is
# over, and where the job is preempted, it saves and goes back into the queue; it
# goes on from its last checkpoint. Options of sbatch on the command line take
# the place of these:
#
#SBATCH --job-name=hsrl
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=hsrl-%j.log
set -euo pipefail
[[ -n "${SLURM_JOB_ID:-}" ]] || {
  sed -n '3,/^#SBATCH/s/^# \{0,1\}//p' "$0"
  echo "error: no SLURM job; expected sbatch launch/slurm.sh" >&2
  exit 2
}

# Before the job starts, which may be preempted at once.
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' TERM
# All GPUs of a node are seen by each of its processes; JAX picks one by the
# process's number on the node.
srun --kill-on-bad-exit=0 bash "${JOB:-launch/job.sh}" "$@" &
child=$!
while true; do
  status=0
  wait "$child" || status=$?
  kill -0 "$child" 2>/dev/null || break
done
if ((status == 75)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
