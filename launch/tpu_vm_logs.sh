#!/usr/bin/env bash
#
# Shows the end of a job's log.
#
#   launch/tpu_vm_logs.sh NAME=hsrl ZONE=us-central2-b PROJECT=my-project
#
# NAME, ZONE, PROJECT  as for tpu_vm_create.sh
# WORKER  a number or all, default 0
# FOLLOW  true: go on showing what comes; default false
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"
need NAME ZONE PROJECT
no_arguments

command='tail -n 100 hsrl.log'
if [[ "${FOLLOW:-false}" == true ]]; then
  command='tail -n 100 -F hsrl.log'
fi
tpus tpu-vm ssh "$NAME" "--worker=${WORKER:-0}" "--command=$command"
