# shellcheck shell=bash
# Runs on every worker as root: trains until the run is finished and copies the log to GCS.
# Variables: PRTS_ROOT; PRTS_LOGS, a gs:// folder; PRTS_PAUSE, seconds between two attempts.
# Arguments: those of `prts train`.
set -euo pipefail

exec 9>"$PRTS_ROOT/lock"
if ! flock --nonblock 9; then
  echo "$(hostname): a run or set-up is in progress here; wait for it or stop it" >&2
  exit 1
fi

# Some pods block jax's default port, 8482 (jax#35905).
export JAX_COORDINATOR_PORT=8476
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PRTS_ROOT/jax_cache}"

metadata() {
  curl --silent --show-error --fail --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}
endpoints="$(metadata worker-network-endpoints)"
commas="${endpoints//[^,]/}"
slices="$(metadata tpu-env | sed -n "s/^MEGASCALE_NUM_SLICES: *'\{0,1\}\([0-9]*\).*/\1/p")"
processes=$(((${#commas} + 1) * ${slices:-1}))
hosts=()
if [ "$processes" -gt 1 ]; then
  hosts=(--multihost --processes="$processes")
fi

log="$PRTS_ROOT/$(hostname).log"
upload() {
  gcloud storage cp --quiet "$log" "$PRTS_LOGS/" >/dev/null 2>&1 || true
}
(while sleep 60; do upload; done) >/dev/null 2>&1 9>&- &
uploader=$!

training=''
stopped=''
trap 'stopped=yes; [ -z "$training" ] || kill -TERM "$training"' TERM

cd "$PRTS_ROOT/source"
attempts=20
for attempt in $(seq "$attempts"); do
  echo "$(date --utc +%FT%TZ) $(hostname): attempt $attempt of $attempts, $processes processes" >>"$log"
  "$PRTS_ROOT/venv/bin/prts" train "$@" "${hosts[@]}" >>"$log" 2>&1 &
  training=$!
  code=0
  wait "$training" || code=$?
  if [ -n "$stopped" ]; then
    # The signal ended the first wait while the run still saves.
    code=0
    wait "$training" || code=$?
  fi
  training=''
  echo "$(date --utc +%FT%TZ) $(hostname): exit code $code" >>"$log"
  # Stops after success, a user error or a stop signal. Any other failure is retried, since all
  # hosts fail when one is lost, and the run resumes from its last checkpoint.
  case "$code" in 0 | 2) break ;; esac
  if [ -n "$stopped" ] || [ "$attempt" -eq "$attempts" ]; then break; fi
  sleep "$PRTS_PAUSE"
done

kill "$uploader" 2>/dev/null || true
upload
exit "$code"
