#!/usr/bin/env bash
#
# Deletes a TPU VM, its queued resource and what is on its disks. What a job
# left in the shared folder stays.
#
#   launch/tpu_vm_delete.sh NAME=hsrl ZONE=us-central2-b PROJECT=my-project
#
# NAME, ZONE, PROJECT  as for tpu_vm_create.sh
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"
need NAME ZONE PROJECT
no_arguments

tpus queued-resources delete "$NAME" --force --quiet
