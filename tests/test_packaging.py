"""A plain install holds the two packages, the embedded corpus and the command `prts`."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built from the files that git tracks, as a fresh clone would build it."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "tree" / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "setup.py", "--quiet", "bdist_wheel", "--dist-dir", str(folder)]
    done = subprocess.run(
        build, cwd=folder / "tree", capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [path] = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_only_the_two_packages_are_installed(wheel):
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "prts_jax",
        "data_pipelines",
    }


def test_what_is_not_python_comes_along(wheel):
    names = set(wheel.namelist())
    corpus = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "data_pipelines/shakespeare").rglob("*")
        if path.is_file()
    ]
    assert any(name.endswith(".jsonl.zst") for name in corpus)
    scripts = ["prts_jax/launch/worker_setup.sh", "prts_jax/launch/worker_run.sh"]
    assert names >= {*corpus, *scripts, "prts_jax/py.typed"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_metadata_names_the_extras_the_licence_and_the_command(wheel):
    [info] = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE)) == {
        *("beam", "cuda", "data", "dev", "eval", "gguf", "hf", "test", "tfds", "tpu")
    }
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert "prts = prts_jax.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_the_plain_install_asks_for_no_tensorflow_and_no_torch(wheel):
    [info] = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    metadata = wheel.read(f"{info}/METADATA").decode()
    core = [
        line
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist") and ";" not in line
    ]
    assert core
    assert not re.search(r"tensorflow|torch|seqio|transformers", "\n".join(core))


def test_prts_is_on_the_path_of_the_environment(run_prts):
    console_script = Path(sys.executable).with_name("prts")
    done = subprocess.run(
        [console_script, "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == run_prts("--help").stdout
