#!/usr/bin/env bash
#
# Installs the last commit of this checkout on all workers of a TPU VM, and
# checks that they see one shared folder. Run it again to bring another commit.
#
#   launch/tpu_vm_setup.sh NAME=hsrl ZONE=us-central2-b PROJECT=my-project \
#     SHARED=/mnt/hsrl BUCKET=my-bucket
#
# NAME, ZONE, PROJECT  as for tpu_vm_create.sh
# SHARED  a folder that all workers see, for the workdirs of runs: Filestore or
#         another NFS that is mounted there, or what BUCKET is mounted on
# BUCKET  optional: a bucket that is mounted on SHARED with gcsfuse. It must
#         have a hierarchical namespace, so that a folder is renamed at once,
#         and gcsfuse must be on the machine
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"
need NAME ZONE PROJECT SHARED
no_arguments

root=$(cd "$(dirname "$0")/.." && pwd)
archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git -C "$root" archive --format=tar.gz -o "$archive" HEAD
tpus tpu-vm scp "$archive" "$NAME:hsrl.tar.gz" --worker=all
tpus tpu-vm ssh "$NAME" --worker=all \
  '--command=mkdir -p hsrl && tar -xzf hsrl.tar.gz -C hsrl'
on_worker all install

# Each worker leaves a mark, then each looks for the marks of all.
workers=$(tpus tpu-vm describe "$NAME" \
  '--format=value(networkEndpoints[].ipAddress)' | tr ';' '\n' | wc -l)
check="$SHARED/.hsrl_check_$(date +%s)_$$"
on_worker all mark "$check"
on_worker all marks "$check" "$workers"
on_worker 0 clean "$check"
echo "$NAME is ready: $workers workers, which share $SHARED"
