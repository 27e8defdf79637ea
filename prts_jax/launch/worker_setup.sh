# shellcheck shell=bash
# Runs on every worker as root: installs Python, this repository and its packages in $PRTS_ROOT.
# Variables: PRTS_ROOT; PRTS_SOURCE, a gs://….tar.gz or a git URL; PRTS_REVISION, a branch or tag;
# PRTS_EXTRAS, the package's extras.
set -euo pipefail

mkdir -p "$PRTS_ROOT"
exec 9>"$PRTS_ROOT/lock"
if ! flock --nonblock 9; then
  echo "$(hostname): a run or set-up is in progress here; wait for it or stop it" >&2
  exit 1
fi

# uv installs a newer Python, since jax does not support the images' 3.10.
export UV_PYTHON_INSTALL_DIR="$PRTS_ROOT/python"
command -v uv >/dev/null || python3 -m pip install --quiet uv
[ -x "$PRTS_ROOT/venv/bin/python" ] || uv venv --quiet --python 3.12 "$PRTS_ROOT/venv"

# Replaces the old source only when the new one is complete.
rm -rf "$PRTS_ROOT/source.new"
mkdir "$PRTS_ROOT/source.new"
case "$PRTS_SOURCE" in
  gs://*) gcloud storage cat "$PRTS_SOURCE" | tar -xz -C "$PRTS_ROOT/source.new" ;;
  *) git clone --quiet --depth=1 ${PRTS_REVISION:+--branch="$PRTS_REVISION"} \
    "$PRTS_SOURCE" "$PRTS_ROOT/source.new" ;;
esac
rm -rf "$PRTS_ROOT/source"
mv "$PRTS_ROOT/source.new" "$PRTS_ROOT/source"

pins=()
if [ -f "$PRTS_ROOT/source/prts_jax/launch/pins.txt" ]; then
  pins=(--constraint "$PRTS_ROOT/source/prts_jax/launch/pins.txt")
fi
uv pip install --quiet --python "$PRTS_ROOT/venv/bin/python" "${pins[@]}" \
  --editable "$PRTS_ROOT/source[$PRTS_EXTRAS]"
"$PRTS_ROOT/venv/bin/prts" --help >/dev/null
echo "$(hostname): ready"
flock --unlock 9
