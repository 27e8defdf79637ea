#!/usr/bin/env bash
# Installs Python and this repository on all workers. --dry_run prints the gcloud arguments, --help the flags.
#   tpu_scripts/setup.sh --name=NAME --zone=ZONE --source=gs://BUCKET/prts_jax.tar.gz
set -euo pipefail

exec "$(dirname "${BASH_SOURCE[0]}")/tpu.sh" setup "$@"
