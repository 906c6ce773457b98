#!/usr/bin/env bash
#
# Asks for a TPU VM as a queued resource and waits until it is there. Run it
# again at any time: one that is there stays, one that was preempted or failed
# is made anew.
#
#   launch/tpu_vm_create.sh NAME=hsrl ZONE=us-central2-b PROJECT=my-project \
#     ACCELERATOR=v4-8 SPOT=true
#
# NAME         of the queued resource and of its node
# ZONE         such as us-central2-b (v4) or us-west4-a (v5e)
# PROJECT      of Google Cloud
# ACCELERATOR  v4-8 (1 host of 4 chips), v5litepod-16 (v5e, 4 hosts of 4), ...
# RUNTIME      software version; by default the one for the accelerator
# SPOT         true: cheaper, and may be preempted; default false
# POLL         seconds between looks at the state, default 30
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"
need NAME ZONE PROJECT ACCELERATOR
no_arguments

case "$ACCELERATOR" in
  v4-*) runtime=tpu-ubuntu2204-base ;;
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) need RUNTIME ;;
esac

options=(
  "--node-id=$NAME"
  "--accelerator-type=$ACCELERATOR"
  "--runtime-version=${RUNTIME:-${runtime:-}}"
)
if [[ "${SPOT:-false}" == true ]]; then
  options+=(--spot)
fi

asked=false
while found=$(state) && [[ "$found" != ACTIVE ]]; do
  case "$found" in
    '' | SUSPENDED | FAILED)
      if [[ "$asked" == true && "$found" == FAILED ]]; then
        echo "error: $NAME could not be made: gcloud compute tpus" \
          "queued-resources describe $NAME tells why" >&2
        exit 1
      fi
      if [[ -n "$found" ]]; then
        echo "$NAME is $found; it is made anew"
        tpus queued-resources delete "$NAME" --force --quiet
      fi
      tpus queued-resources create "$NAME" "${options[@]}"
      asked=true
      ;;
    *) echo "$NAME is $found" ;;
  esac
  sleep "${POLL:-30}"
done
echo "$NAME is ACTIVE"
