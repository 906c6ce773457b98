# shellcheck shell=bash
# What the tpu_vm_*.sh scripts share; they source it with their arguments.

# The comment at the head of a script is its help.
usage() {
  sed -n '3,/^[^#]/s/^# \{0,1\}//p' "$0"
}

fail() {
  echo "error: $*" >&2
  exit 2
}

# Settings are environment variables or arguments, NAME=value; all other
# arguments are left in ARGS.
ARGS=()
for argument in "$@"; do
  case "$argument" in
    -h | --help)
      usage
      exit 0
      ;;
    NAME=* | ZONE=* | PROJECT=* | ACCELERATOR=* | RUNTIME=* | SPOT=* | \
      SHARED=* | BUCKET=* | JOB=* | WATCH=* | WORKER=* | FOLLOW=* | POLL=*)
      export "${argument?}"
      ;;
    *) ARGS+=("$argument") ;;
  esac
done

# Ends with one line where a setting is missing.
need() {
  local setting missing=()
  for setting in "$@"; do
    [[ -n "${!setting:-}" ]] || missing+=("$setting")
  done
  if ((${#missing[@]})); then
    fail "missing ${missing[*]}; expected variables or arguments such as" \
      "${missing[0]}=value: see $0 --help"
  fi
}

no_arguments() {
  ((${#ARGS[@]} == 0)) ||
    fail "unexpected argument ${ARGS[0]}; expected settings: see $0 --help"
}

tpus() {
  gcloud compute tpus "$@" "--zone=$ZONE" "--project=$PROJECT"
}

# The state of the queued resource; nothing where there is none.
state() {
  tpus queued-resources describe "$NAME" '--format=value(state.state)' \
    2>/dev/null || true
}

# Runs launch/tpu_vm_worker.sh on workers: WHICH COMMAND [ARGUMENT...].
on_worker() {
  local which=$1 command
  shift
  command=$(printf '%q ' env "SHARED=${SHARED:-}" "BUCKET=${BUCKET:-}" \
    bash hsrl/launch/tpu_vm_worker.sh "$@")
  tpus tpu-vm ssh "$NAME" "--worker=$which" "--command=${command% }"
}
