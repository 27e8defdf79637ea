#!/usr/bin/env bash
# The paper's recipe, unattended: base, growth on the mesh and target as stages of one run, which
# `babysit` keeps alive; then export to Hugging Face and evaluation. What is rented is deleted at the end.
#   tpu_scripts/recipe.sh CONFIG TRAIN_STORE VALIDATION_STORE [flags of `prts tpu babysit`] [-- TRAIN_ARGUMENTS…]
#   tpu_scripts/recipe.sh configs/recipe.py:1.1b gs://BUCKET/slim/train gs://BUCKET/slim/validation --spot
set -euo pipefail

if [ $# -lt 3 ]; then
  sed -n 's/^#   /usage: /p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
scripts="$(dirname "${BASH_SOURCE[0]}")"
training=(--config="$1" --config.data.train="$2" --config.data.validation="$3")
shift 3
flags=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  flags+=("$1")
  shift
done
[ $# -eq 0 ] || shift
exec "$scripts/tpu.sh" babysit --delete_when_done --after="$scripts/recipe_after.sh" "${flags[@]}" \
  -- "${training[@]}" "$@"
