#!/usr/bin/env bash
#
# Starts a job on all workers of a TPU VM and comes back. The job goes on by
# itself where it failed or where the machine comes up again, from its last
# checkpoint; the same command again does so by hand.
#
#   launch/tpu_vm_submit.sh NAME=hsrl ZONE=us-central2-b PROJECT=my-project \
#     SHARED=/mnt/hsrl --flagfile=launch/flags/tpu_v4_8.flags \
#     --workdir=/mnt/hsrl/runs/first
#
# NAME, ZONE, PROJECT, SHARED, BUCKET  as for tpu_vm_setup.sh
# JOB    the job file, default launch/job.sh; it gets the other arguments, and
#        runs on one machine just as well: bash launch/job.sh --flagfile=...
# WATCH  true: stay until the job is finished, and where the TPU VM is
#        preempted make, set up and start it again; needs what
#        tpu_vm_create.sh needs. Default false
# POLL   seconds between looks when watching, default 60
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"
need NAME ZONE PROJECT SHARED
here=$(cd "$(dirname "$0")" && pwd)
job=${JOB:-launch/job.sh}
[[ -f "$here/../$job" ]] || fail "JOB=$job; expected a file of this checkout"
[[ " ${ARGS[*]} " == *" --workdir=${SHARED%/}/"* ]] ||
  fail "the workers share ${SHARED%/} alone; expected --workdir=${SHARED%/}/..."

if [[ "${WATCH:-false}" != true ]]; then
  on_worker all start "$job" "${ARGS[@]}"
  echo "started; launch/tpu_vm_logs.sh shows how it goes"
  exit
fi

need ACCELERATOR
status=
while true; do
  if [[ "$(state)" != ACTIVE ]]; then
    status=
    "$here/tpu_vm_create.sh"
    "$here/tpu_vm_setup.sh"
  fi
  if [[ -z "$status" ]]; then
    on_worker all start "$job" "${ARGS[@]}"
  fi
  sleep "${POLL:-60}"
  # Of a machine that is just being taken away there is no answer.
  status=$(on_worker 0 status || echo unknown)
  case "$status" in
    finished) break ;;
    refused)
      echo "error: the job was refused, launch/tpu_vm_logs.sh tells why" >&2
      exit 1
      ;;
  esac
done
echo "finished"
