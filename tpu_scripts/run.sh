#!/usr/bin/env bash
# Trains on all workers, detached, with logs on GCS. --dry_run prints the gcloud arguments, --help the flags.
#   tpu_scripts/run.sh --name=NAME --zone=ZONE --workdir=gs://BUCKET/RUN -- --config=FILE
set -euo pipefail

exec "$(dirname "${BASH_SOURCE[0]}")/tpu.sh" run "$@"
