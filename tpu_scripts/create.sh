#!/usr/bin/env bash
# Requests TPU slices, as a queued resource. --dry_run prints the gcloud arguments, --help the flags.
#   tpu_scripts/create.sh --name=NAME --zone=ZONE --accelerator_type=v5litepod-16 --spot
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -m prts_jax.cli.tpu create "$@"
