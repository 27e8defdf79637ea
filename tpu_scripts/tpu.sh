#!/usr/bin/env bash
# Runs any command of `prts tpu` without an installed package. --help prints commands and flags.
#   tpu_scripts/tpu.sh status --name=NAME --zone=ZONE --accelerator=v5litepod-16
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -m prts_jax.cli.tpu "$@"
