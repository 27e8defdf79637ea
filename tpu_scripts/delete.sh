#!/usr/bin/env bash
# Deletes a queued resource and its slices. --dry_run prints the gcloud arguments, --help the flags.
#   tpu_scripts/delete.sh --name=NAME --zone=ZONE
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -m prts_jax.cli.tpu delete "$@"
