#!/usr/bin/env bash
#
# A training job: the stages that are left, from where they were stopped. The
# same file runs on one machine, on each worker of a TPU VM and under SLURM.
#
#   bash launch/job.sh --flagfile=launch/flags/quickstart.flags [FLAG...]
#
# PYTHON  the interpreter; default .venv/bin/python where there is one
#
# SIGTERM and SIGINT are handed on. Exit status: 0 finished; 75 stopped, with
# work left: the same command goes on; 2 bad input; others as of the command.
set -euo pipefail

python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || python=python3

# The workdir, by the last flag that names it.
workdir=$(
  for flag in "$@"; do
    case "$flag" in
      --workdir=*) echo "$flag" ;;
      --flagfile=*) grep -s '^--workdir=' "${flag#*=}" || true ;;
    esac
  done | tail -n 1 | cut -d= -f2-
)

# An experiment has no stages of its own.
finished() {
  [[ -e "$workdir/.done/report" ]] ||
    [[ -e "$workdir/results.json" && ! -e "$workdir/.done" ]]
}

child=
stopped=false
stop() {
  stopped=true
  [[ -z "$child" ]] || kill -TERM "$child" 2>/dev/null || true
}
trap stop TERM INT
"$python" -m hsrl_jax.launch "$@" &
child=$!
if $stopped; then stop; fi  # A signal came before the child had a number.
while true; do
  status=0
  wait "$child" || status=$?
  # A signal ends `wait`, not the child.
  kill -0 "$child" 2>/dev/null || break
done
((status == 0)) || exit "$status"

# A signal to one of many hosts stops them all. What another host has written
# may take a while to be seen here.
for ((seconds = 0; seconds < 60; seconds++)); do
  if finished; then exit 0; fi
  if $stopped; then break; fi
  sleep 1
done
echo "stopped with work left; the same command goes on" >&2
exit 75
