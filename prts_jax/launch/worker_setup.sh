# shellcheck shell=bash
# Every worker, as root: Python, this repository and its packages under $PRTS_ROOT.
# Variables: PRTS_ROOT; PRTS_SOURCE, a gs://….tar.gz or a git URL; PRTS_REVISION, a branch or tag.
set -euo pipefail

mkdir -p "$PRTS_ROOT"
exec 9>"$PRTS_ROOT/lock"
if ! flock --nonblock 9; then
  echo "$(hostname): a run or a set-up is going on here; wait for it or stop it" >&2
  exit 1
fi

# TPU images ship Python 3.10, which jax no longer supports: uv brings a newer one.
export UV_PYTHON_INSTALL_DIR="$PRTS_ROOT/python"
command -v uv >/dev/null || python3 -m pip install --quiet uv
[ -x "$PRTS_ROOT/venv/bin/python" ] || uv venv --quiet --python 3.12 "$PRTS_ROOT/venv"

# The new source takes the old one's place only when it is complete.
rm -rf "$PRTS_ROOT/source.new"
mkdir "$PRTS_ROOT/source.new"
case "$PRTS_SOURCE" in
  gs://*) gcloud storage cat "$PRTS_SOURCE" | tar -xz -C "$PRTS_ROOT/source.new" ;;
  *) git clone --quiet --depth=1 ${PRTS_REVISION:+--branch="$PRTS_REVISION"} \
    "$PRTS_SOURCE" "$PRTS_ROOT/source.new" ;;
esac
rm -rf "$PRTS_ROOT/source"
mv "$PRTS_ROOT/source.new" "$PRTS_ROOT/source"

uv pip install --quiet --python "$PRTS_ROOT/venv/bin/python" --editable "$PRTS_ROOT/source[tpu]"
"$PRTS_ROOT/venv/bin/prts" --help >/dev/null
echo "$(hostname): ready"
flock --unlock 9
