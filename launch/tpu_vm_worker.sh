#!/usr/bin/env bash
#
# What happens on the workers of a TPU VM; the other scripts call it there.
#
#   tpu_vm_worker.sh install               packages, and the shared folder
#   tpu_vm_worker.sh mount                 BUCKET on SHARED, if it is not there
#   tpu_vm_worker.sh mark FOLDER           leaves a mark of this worker
#   tpu_vm_worker.sh marks FOLDER COUNT    checks that all left theirs
#   tpu_vm_worker.sh clean FOLDER          removes them
#   tpu_vm_worker.sh start JOB [FLAG...]   (re)starts the job as a service
#   tpu_vm_worker.sh status                running, finished or refused
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "error: $(hostname): $*" >&2
  exit 1
}

mount_shared() {
  if [[ -n "${BUCKET:-}" ]] && ! mountpoint -q "$SHARED"; then
    command -v gcsfuse >/dev/null ||
      fail "gcsfuse is missing; install it, or mount $SHARED yourself"
    sudo mkdir -p "$SHARED"
    sudo chown "$(id -un)" "$SHARED"
    # Nothing is cached of what other workers write.
    gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 "$BUCKET" "$SHARED"
  fi
  [[ -d "$SHARED" && -w "$SHARED" ]] ||
    fail "$SHARED is no folder that can be written; expected a shared one"
}

install() {
  # The image's own Python is older than hsrl_jax needs.
  python3 -m pip install --quiet --user uv
  local jax uv="$HOME/.local/bin/uv"
  # The version of this Python, before the `;`.
  jax=$(sed -n 's/^jax==\(.*\); python_version < "3.12"$/\1/p' requirements.txt)
  "$uv" venv --quiet --clear --python=3.11 .venv
  "$uv" pip install --quiet --python=.venv/bin/python -r requirements.txt \
    "jax[tpu]==$jax"
  mount_shared
}

mark() {
  # A folder that is renamed, which is how a checkpoint is completed.
  mkdir -p "$1/.$(hostname)"
  touch "$1/.$(hostname)/file"
  mv "$1/.$(hostname)" "$1/$(hostname)"
}

marks() {
  local found
  found=$(find "$1" -mindepth 2 -name file | wc -l)
  [[ "$found" == "$2" ]] ||
    fail "sees the files of $found of $2 workers in $SHARED; expected a folder" \
      "that all share: a bucket (BUCKET) or NFS"
}

start() {
  {
    echo "cd $(printf %q "$PWD")"
    printf 'exec bash'
    printf ' %q' "$@"
    echo
  } >"$HOME/hsrl_job.sh"
  rm -f "$HOME/hsrl.finished"
  # SIGTERM goes to the job file alone, which hands it on. Status 2 is bad
  # input; all others but 0 stand for work that is left. A job that is finished
  # does not start again with the machine.
  cat >"$HOME/hsrl.service" <<END
[Unit]
Description=hsrl_jax job
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
User=$(id -un)
Environment="HOME=$HOME" "SHARED=$SHARED" "BUCKET=${BUCKET:-}"
ExecCondition=/usr/bin/test ! -e "$HOME/hsrl.finished"
ExecStartPre=/bin/bash "$PWD/launch/tpu_vm_worker.sh" mount
ExecStart=/bin/bash "$HOME/hsrl_job.sh"
ExecStopPost=/bin/sh -c 'test "\$EXIT_STATUS" != 0 || touch "$HOME/hsrl.finished"'
StandardOutput=append:$HOME/hsrl.log
StandardError=append:$HOME/hsrl.log
Restart=on-failure
RestartSec=30
RestartPreventExitStatus=2
KillMode=mixed
TimeoutStopSec=90

[Install]
WantedBy=multi-user.target
END
  sudo cp "$HOME/hsrl.service" /etc/systemd/system/hsrl.service
  sudo systemctl daemon-reload
  sudo systemctl enable --quiet hsrl
  sudo systemctl restart hsrl
}

status() {
  if [[ -e "$HOME/hsrl.finished" ]]; then
    echo finished
  elif [[ "$(systemctl show hsrl --property=ActiveState,ExecMainStatus | sort)" \
    == *=failed*ExecMainStatus=2 ]]; then
    echo refused
  else
    echo running
  fi
}

command=${1:-}
case "$command" in
  install | mark | marks | start | status)
    shift
    "$command" "$@"
    ;;
  mount) mount_shared ;;
  clean) rm -rf "$2" ;;
  *) sed -n '3,/^[^#]/s/^# \{0,1\}//p' "$0" ;;
esac
