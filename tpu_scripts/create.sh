#!/usr/bin/env bash
# Rents TPU slices. --dry_run prints the gcloud arguments, --help the flags.
#   tpu_scripts/create.sh --name=NAME --zone=ZONE --accelerator_type=v5litepod-16 --spot
set -euo pipefail

exec "$(dirname "${BASH_SOURCE[0]}")/tpu.sh" create "$@"
