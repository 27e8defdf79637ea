#!/usr/bin/env bash
# Installs Python and this repository on all workers. --dry_run prints the gcloud arguments, --help the flags.
#   tpu_scripts/setup.sh --name=NAME --zone=ZONE --source=gs://BUCKET/prts_jax.tar.gz
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -m prts_jax.cli.tpu setup "$@"
