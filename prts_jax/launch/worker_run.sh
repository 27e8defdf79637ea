# shellcheck shell=bash
# Runs on every host as root: trains until the run is finished and copies the log to the bucket.
# Variables: PRTS_ROOT; PRTS_WORKDIR, a gs:// folder; PRTS_TRIES; PRTS_PAUSE, seconds between two;
# PRTS_ATTEMPT and PRTS_NONCE of the launch; PRTS_HOSTS and PRTS_SLICES expected, or "";
# PRTS_AFTER, a script that process 0 runs after the training; PRTS_ON_SUCCESS, a last command.
# Arguments: those of `prts train`.
set -euo pipefail
export PRTS_WORKDIR PRTS_ATTEMPT PRTS_NONCE

exec 9>"$PRTS_ROOT/lock"
if ! flock --nonblock 9; then
  echo "$(hostname): a run or set-up is in progress here; wait for it or stop it" >&2
  exit 1
fi
echo $$ >"$PRTS_ROOT/pid"

# Some pods block jax's default port, 8482 (jax#35905).
port="${JAX_COORDINATOR_PORT:-8476}"
export JAX_COORDINATOR_PORT="$port"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PRTS_ROOT/jax_cache}"

host="$(hostname)"
log="$PRTS_ROOT/$host${PRTS_ATTEMPT:+-attempt-$PRTS_ATTEMPT}.log"
say() { echo "$(date --utc +%FT%TZ) $host: $*" >>"$log"; }
upload() {
  gcloud storage cp --quiet "$log" "$PRTS_WORKDIR/logs/" >/dev/null 2>&1 || true
}
(while sleep 60; do upload; done) >/dev/null 2>&1 9>&- &
uploader=$!

metadata() {
  curl --silent --show-error --fail --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}
value() { sed -n "s/^$1: *'\{0,1\}\([^']*\).*/\1/p" <<<"$tpu_env"; }

# Compute Engine starts each slice by itself: its number is in the host's name, and process 0 leaves
# its address in the bucket.
find_slices() {
  slices="$PRTS_SLICES"
  slice="$(sed -n 's/.*-slice-\([0-9][0-9]*\)-[^-]*$/\1/p' <<<"${host%%.*}")"
  [ -n "$slice" ] || return 1
  local file="$PRTS_WORKDIR/launch/coordinator-$PRTS_ATTEMPT-$PRTS_NONCE"
  if [ "$slice.$worker" = 0.0 ]; then
    echo "$coordinator" | gcloud storage cp --quiet - "$file" >/dev/null 2>&1 || return 1
  else
    coordinator="$(gcloud storage cat "$file" 2>/dev/null)" || return 1
  fi
  export MEGASCALE_COORDINATOR_ADDRESS="$coordinator:8080" MEGASCALE_PORT=8080
  export MEGASCALE_NUM_SLICES="$slices" MEGASCALE_SLICE_ID="$slice"
}

# Reads this host's index from the metadata, again for every try: it changes when slices are replaced.
read_metadata() {
  local endpoints commas
  endpoints="$(metadata worker-network-endpoints)" && tpu_env="$(metadata tpu-env)" || return 1
  worker="$(metadata agent-worker-number 2>/dev/null || value WORKER_ID)"
  worker="${worker:-0}"
  coordinator="${endpoints%%,*}"
  coordinator="${coordinator##*:}"
  slices="$(value MEGASCALE_NUM_SLICES)"
  slice="$(value MEGASCALE_SLICE_ID)"
  if [ -n "$slices" ]; then
    coordinator="$(value MEGASCALE_COORDINATOR_ADDRESS)"
    coordinator="${coordinator%%:*}"
  elif [ "${PRTS_SLICES:-1}" -gt 1 ]; then
    find_slices || return 1
  fi
  commas="${endpoints//[^,]/}"
  processes=$(((${#commas} + 1) * ${slices:-1}))
  process=$(((${#commas} + 1) * ${slice:-0} + worker))
}

# Meets the other hosts of this attempt and sets the flags that join them.
meet() {
  flags=()
  if ! read_metadata; then
    say "the metadata server or the bucket does not say which hosts there are"
    return 75
  fi
  if [ "$processes" -ne "${PRTS_HOSTS:-$processes}" ]; then
    say "expected $PRTS_HOSTS hosts, $processes seen in the metadata"
    return 75
  fi
  if [ "$processes" -gt 1 ]; then
    flags=(--coordinator="$coordinator:$port" --processes="$processes" --process="$process")
    PRTS_HOST="$host" "$PRTS_ROOT/venv/bin/python" -m prts_jax.launch.handshake \
      "$coordinator:$port" "$processes" "$process" >>"$log" 2>&1
  fi
}

training=''
trained=''
diverged=''
stopped=''
process=0
processes=0
trap 'stopped=yes; [ -z "$training" ] || kill -TERM "$training"' TERM

# Trains and returns the exit code; sets `diverged` where the same start would diverge again.
train() {
  local code=0 first
  say "try $try of $PRTS_TRIES, process $process of $processes, attempt ${PRTS_ATTEMPT:-0}"
  first="$(wc -l <"$log")"
  "$PRTS_ROOT/venv/bin/prts" train "$@" "${flags[@]}" >>"$log" 2>&1 &
  training=$!
  wait "$training" || code=$?
  if [ -n "$stopped" ]; then
    # The signal ended the first wait while the run still saves.
    code=0
    wait "$training" || code=$?
  fi
  training=''
  # The words of DivergedError, which shares exit code 1 with faults of the program.
  if [ "$code" -eq 1 ] && grep -q 'training has diverged' < <(tail -n +"$first" "$log"); then
    diverged=' diverged'
  fi
  return "$code"
}

# Meets the other hosts, trains, and on process 0 runs what follows the training.
run() {
  if [ -z "$trained" ]; then
    meet || return
    [ -z "$stopped" ] || return 75
    train "$@" || return
    trained=yes
  fi
  if [ "$process" -eq 0 ] && [ -n "$PRTS_AFTER" ]; then
    [ -z "$stopped" ] || return 75
    say "trained; now what follows"
    PATH="$PRTS_ROOT/venv/bin:$PATH" bash -euo pipefail -c "$PRTS_AFTER" >>"$log" 2>&1
  fi
}

cd "$PRTS_ROOT/source"
for try in $(seq "$PRTS_TRIES"); do
  code=0
  run "$@" || code=$?
  say "exit code $code$diverged, try $try of $PRTS_TRIES"
  # Stops after success, a user error, a divergence or a stop signal. Any other failure is retried,
  # since all hosts fail when one is lost, and the run resumes from its last checkpoint.
  case "$code$diverged" in 0 | 2 | '1 diverged') break ;; esac
  if [ -z "$stopped" ] && [ "$try" -lt "$PRTS_TRIES" ]; then sleep "$PRTS_PAUSE"; fi
  if [ -n "$stopped" ]; then break; fi
done

kill "$uploader" 2>/dev/null || true
upload
if [ -n "$PRTS_ATTEMPT" ] && [ -z "$stopped" ] && { [ "$process" -eq 0 ] || [ "$code" -eq 2 ]; }; then
  echo "$code$diverged" | gcloud storage cp --quiet - \
    "$PRTS_WORKDIR/launch/result-$PRTS_ATTEMPT-$PRTS_NONCE" >/dev/null 2>&1 || true
fi
if [ "$code.$process" = 0.0 ] && [ -n "$PRTS_ON_SUCCESS" ]; then
  bash -c "$PRTS_ON_SUCCESS" >>"$log" 2>&1 || true
fi
exit "$code"
