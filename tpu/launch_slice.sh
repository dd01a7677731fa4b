#!/usr/bin/env bash
# One command on every host of a TPU slice, or of a TPU VM, which is a slice of one host.  A spot slice that is taken away
# is asked for again and the run goes on where its last checkpoint was.
#   ZONE=us-west4-a TYPE=v5litepod-16 tpu/launch_slice.sh NAME medvfm adapt --data /mnt/share/data --out /mnt/share/runs/a
# TYPE may name several slices, the preferred first: TYPE="v5litepod-32 v5litepod-16" goes on with fewer hosts where the
# larger one is refused; --batch-size must be a multiple of the devices of each.
# Batches are divided over all devices unless the command has a --mesh of its own.
# SETUP runs once on every host, again after the host was started anew: it must install medvfm-jax[tpu] and mount the disk that all hosts share
# (for the data; for --out too, unless the command has --mirror).
# FLAGS=v5e, v5p or v6e sets the LIBTPU_INIT_ARGS of tpu/flags/; without, libtpu's own choices hold.
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
create() { # the first slice of TYPE that there is
  local type
  for type in $TYPE; do
    # shellcheck disable=SC2086  # SPOT may be nothing
    tpu create --accelerator-type "$type" --version "$VERSION" $SPOT && return
  done
  return 1
}

flags=
if [[ -n ${FLAGS-} ]]; then
  preset="$(dirname "$0")/flags/$FLAGS.txt"
  [[ -r $preset ]] || { echo "there are no flags for $FLAGS in $(dirname "$preset")" >&2; exit 2; }
  flags="LIBTPU_INIT_ARGS='$(grep -v '^#' "$preset" | paste -sd ' ')' "
fi
mesh=" --mesh all"
for word in "$@"; do [[ $word == --mesh || $word == --mesh=* ]] && mesh=; done
words="$flags$(printf '%q ' "$@") --resume --distributed$mesh"
setup="test -e /tmp/medvfm_set_up || bash -c $(printf '%q' "$SETUP") && touch /tmp/medvfm_set_up"
while true; do
  found=$(state) # asked once: nothing is deleted because one of two answers got lost
  if [[ $found != READY ]]; then
    [[ -z $found ]] || tpu delete --quiet || true
    if ! create; then
      echo "no slice yet; asking again in $PAUSE s" >&2
      sleep "$PAUSE"
      continue
    fi
  fi
  tpu ssh --worker all --command "$setup" && tpu ssh --worker all --command "$words"
  code=$?
  [[ $code -eq 0 ]] && exit 0
  if [[ $(state) == READY ]]; then # the slice is there: SETUP or the command failed
    echo "exit code $code on a slice that is there; it is kept: mend SETUP or the command and start again" >&2
    exit "$code"
  fi
  echo "the slice was taken away; asking for another one" >&2
done
