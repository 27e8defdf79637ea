#!/usr/bin/env bash
# Deletes all that a run rents. --dry_run prints the gcloud arguments, --help the flags.
#   tpu_scripts/delete.sh --name=NAME --zone=ZONE
set -euo pipefail

exec "$(dirname "${BASH_SOURCE[0]}")/tpu.sh" delete "$@"
