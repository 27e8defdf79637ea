#!/usr/bin/env bash
# Process 0 runs this after the training: exports the model to Hugging Face's format and evaluates it.
# $PRTS_WORKDIR is the run. The other hosts have left the TPU, so this runs on the CPU.
set -euo pipefail

export JAX_PLATFORMS=cpu
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
prts convert --from=orbax --to=hf --source="$PRTS_WORKDIR" --target="$folder/hf"
prts eval --checkpoint="$PRTS_WORKDIR" --perplexity --json >"$folder/perplexity.json"
gcloud storage cp --recursive --quiet "$folder/hf" "$folder/perplexity.json" "$PRTS_WORKDIR/export/"
