#!/usr/bin/env bash
# Plans, one JSON file each: MODEL ADAPTER TOPOLOGY MESH RULES BATCH per line of the table on stdin.
#   tpu/plan.sh OUT < tpu/plans.txt
# One after the other: a compilation takes minutes to an hour and some GiB.  What is there already is kept.
set -u
out=${1:?usage: tpu/plan.sh OUT < TABLE}
mkdir -p "$out"
failed=0
while read -r model adapter topology mesh rules batch options; do
  [[ -z $model || $model == \#* ]] && continue
  cohort=$(grep -oP -- '--clients \K[0-9]+' <<< "$options")
  file="$out/${model}_${adapter}_${topology/:/_}_${rules}${cohort:+_${cohort}_clients}.json"
  [[ -s $file ]] && continue
  # shellcheck disable=SC2086  # options are words
  medvfm plan --json --model "$model" --adapter "$adapter" --topology "$topology" --mesh "$mesh" --rules "$rules" \
    --global-batch "$batch" $options > "$file.part" < /dev/null
  code=$?
  if [[ -s $file.part ]]; then mv "$file.part" "$file"; else rm -f "$file.part"; fi
  if [[ $code -ne 0 ]]; then failed=1; echo "$model $adapter $topology: exit code $code" >&2; fi
done
exit $failed
