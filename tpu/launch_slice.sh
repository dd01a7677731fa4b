#!/usr/bin/env bash
# One command on every host of a TPU slice, or of a TPU VM, which is a slice of one host.  A spot slice that is taken away
# is asked for again and the run goes on where its last checkpoint was.
#   ZONE=us-west4-a TYPE=v5litepod-16 tpu/launch_slice.sh NAME medvfm adapt --data /mnt/share/data --out /mnt/share/runs/a
# SETUP runs once on every host of a new slice: it must install medvfm-jax[tpu] and mount the disk that all hosts share.
# SPOT= (empty) asks for a slice that is not taken away.  VERSION is the image of the virtual machines.
set -u
name=${1:?usage: ZONE=... TYPE=... tpu/launch_slice.sh NAME COMMAND...}
shift
: "${ZONE:?set ZONE}" "${TYPE:?set TYPE, such as v5litepod-16}"
SETUP=${SETUP-"pip install 'medvfm-jax[tpu]'"}
VERSION=${VERSION-v2-alpha-tpuv5-lite}
SPOT=${SPOT---spot}
PAUSE=${PAUSE-60}
tpu() { gcloud compute tpus tpu-vm "$1" "$name" --zone "$ZONE" "${@:2}"; }
state() { tpu describe --format 'value(state)' 2> /dev/null; }

words="$(printf '%q ' "$@") --resume --distributed --mesh all"
while true; do
  if [[ $(state) != READY ]]; then
    [[ -z $(state) ]] || tpu delete --quiet || true
    # shellcheck disable=SC2086  # SPOT may be nothing
    if ! tpu create --accelerator-type "$TYPE" --version "$VERSION" $SPOT; then
      echo "no slice yet; asking again in $PAUSE s" >&2
      sleep "$PAUSE"
      continue
    fi
    tpu ssh --worker all --command "$SETUP" || exit 1
  fi
  tpu ssh --worker all --command "$words"
  code=$?
  [[ $code -eq 0 ]] && exit 0
  if [[ $(state) == READY ]]; then # the slice is there: the command itself failed
    echo "exit code $code on a slice that is there; it is kept: mend the command and start again" >&2
    exit "$code"
  fi
  echo "the slice was taken away; asking for another one" >&2
done
