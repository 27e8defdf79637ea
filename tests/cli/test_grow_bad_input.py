"""Whatever is wrong with a growth: one line, exit code 2, and nothing left behind.

The executors' own tests (tests/checkpoint) look closer at each; here a user meets them all.
"""

import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from prts_jax.cli import grow, run
from prts_jax.tree import flatten
from tests.checkpoint.tiny import edit_lineage as edit_older_lineage
from tests.checkpoint.tiny import flip_byte, write_source


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint of 3 layers and its values; neither is to be touched."""
    path = tmp_path_factory.mktemp("bad_input") / "source"
    values = {name: np.asarray(leaf) for name, leaf in flatten(write_source(path)).items()}
    return path, values


@pytest.fixture
def source(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "source")
    return tmp_path / "source"


def everything(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def refusal(tmp_path, capsys, *arguments, code=2):
    """Returns the one line that `prts grow` ends in, after a look at what it left."""
    capsys.readouterr()
    before = everything(tmp_path)
    defaults = (f"--source={tmp_path / 'source'}", f"--target={tmp_path / 'new' / 'grown'}")
    argv = [
        *(
            a
            for a in defaults
            if not any(b.startswith(a.partition("=")[0] + "=") for b in arguments)
        ),
        *arguments,
    ]
    assert run(grow.main, argv, "grow") == code
    captured = capsys.readouterr()
    assert captured.out == ""
    # The reason for streaming and its progress may stand before it; the refusal is the last line.
    *_, line = captured.err.splitlines()
    assert line.startswith("prts grow: ")
    assert "Traceback" not in captured.err
    assert everything(tmp_path) == before
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--factor=x"], "argument --factor: invalid int value: 'x'"),
        (["--factor=-2"], "growth.factor: is -2; it must be 1 or more"),
        (["--factor=1000000"], "give at most 10000 layers"),
        (["--fcator=2"], "unrecognized arguments: --fcator=2; see `prts grow --help`"),
        (["--operator=stakc"], "'stakc' is unknown; did you mean 'stack'"),
        (["--operator=interpolate", "--drop=1"], "operator 'interpolate' takes no drop"),
        (["--operator=zero", "--factor=2", "--order=up"], "growth.order: 'up' is unknown"),
        (["--layers=0:3,0:1", "--operator=stack"], "operator 'stack' takes no layers"),
        (["--layers=0:3,3"], "layer 3 is none of the source's layers 0 to 2"),
        (["--layers=1-234*2"], "layer 4 is none of the source's layers 1 to 3"),
        (["--layers=0:2"], "growth never shrinks"),
        (["--layers=--"], "argument --layers=--: '--' is no value"),
        (["--layers=0:3,"], "'' is neither a range such as 0:24 nor a layer"),
        (["--layers=123*99999"], "it makes more than 10000 layers"),
        (["--operator=split", "--widths=embed=8"], "embed from 16 to 8; growth never shrinks"),
        (
            ["--operator=split", "--widths=mlp=48", "--factor=1000000000"],
            "growth.target.layers: is 3000000000; it must be 0 to 10000",
        ),
        (
            ["--operator=split", "--widths=embed=9999999"],
            "growth.target.embed: is 9999999; it must be at most 1000000",
        ),
        (["--operator=split", "--widths=heads=7"], "7 heads do not divide among kv_heads=2"),
        (["--operator=split", "--widths=heads=6,kv_heads=3,mlp=x"], "growth.widths: 'mlp=x'"),
        (["--operator=split", "--widths=head_dim=8"], "never function preserving"),
        (["--operator=zero_width", "--widths=head_dim=6"], "give a multiple of 4"),
        (["--operator=last", "--block=4"], "last copies 1 to 3 of the source's layers"),
        (["--factor=2", "--noise=2"], "growth.noise: is 2.0; a share of 0 to 1"),
        (["--factor=2", "--noise=nan"], "--noise: nan is not a finite number"),
        (
            ["--operator=random", "--factor=2", "--seed=-1"],
            "growth.seed: is -1; it must be 0 to 2^63",
        ),
        (
            ["--operator=random", "--factor=2", f"--seed={10**30}"],
            "growth.seed: is 1000000000000000000000000000000; it must be 0 to 2^63",
        ),
        (
            ["--operator=random", "--factor=2", f"--gate_steps={10**12}"],
            "growth.gate_steps: gates of layers are open only at step 1000000000000",
        ),
        (["--factor=2", "--mode=copy"], "'copy' is none of auto, stream, reference"),
        (["--factor=2", "--source=nowhere"], "nowhere: does not exist"),
        (
            ["--factor=2", "--target=/proc/none/grown"],
            "/proc/none/.grown.growing: cannot be written (No such file or directory)",
        ),
        (["--factor=2", "--target_config=none.py"], "there is no file none.py"),
        (
            ["--operator=zero", "--factor=2", "--mode=reference"],
            "makes layers with zero outputs, which the source lacks; use --mode=stream",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_was_asked_for_cannot_be(source, tmp_path, capsys, arguments, message):
    assert message in refusal(tmp_path, capsys, *arguments)


def test_an_existing_destination(source, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    for taken in ("taken", "source"):
        line = refusal(tmp_path, capsys, "--factor=2", f"--target={tmp_path / taken}")
        assert "exists already and is never overwritten" in line


def test_a_destination_within_a_file(source, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    target = f"--target={tmp_path / 'file' / 'grown'}"
    assert "cannot be written" in refusal(tmp_path, capsys, "--factor=2", target)


def remove_lineage(source):
    shutil.rmtree(source / "lineage")


def lineage_of_another_project(source):
    (source / "lineage" / "lineage.json").write_text('{"iteration": 10}')


def lineage_is_a_list(source):
    (source / "lineage" / "lineage.json").write_text("[]")


def truncate_lineage(source):
    os.truncate(source / "lineage" / "lineage.json", 100)


def lineage_without_a_model(source):
    edit_lineage(source, config={})


def lineage_of_another_depth(source):
    lineage = json.loads((source / "lineage" / "lineage.json").read_text())
    lineage["config"]["model"]["layers"] = 4
    edit_lineage(source, config=lineage["config"])


def lineage_of_other_types(source):
    edit_lineage(source, growth=3, digests="none")


def lineage_without_digests(source):
    edit_lineage(source, digests={})


def edit_lineage(source, **changes):
    edit_older_lineage(source / "lineage" / "lineage.json", **changes)


def remove_params(source):
    shutil.rmtree(source / "params")


def remove_data(source):
    for file in data_files(source):
        file.unlink()


def truncate_data(source):
    for file in data_files(source):
        os.truncate(file, file.stat().st_size // 2)


def truncate_metadata(source):
    os.truncate(source / "params" / "_METADATA", 20)


def remove_manifest(source):
    (source / "params" / "manifest.ocdbt").unlink()


def data_files(source):
    return [file for file in (source / "params").rglob("*") if file.parent.name == "d"]


@pytest.mark.parametrize("mode", ["auto", "stream"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_lineage, "no complete checkpoint there"),
        (lineage_of_another_project, "has format None and this version reads 1"),
        (lineage_is_a_list, "has format None and this version reads 1"),
        (truncate_lineage, "lineage.json: is damaged"),
        (lineage_without_a_model, "lineage.json: it holds no 'model'"),
        (lineage_of_another_depth, "has shape (3, "),
        (lineage_of_other_types, "lineage.json: lineage.growth: is 3; expected a list;"),
        (lineage_without_digests, "final_norm: has 0 digests and 1 parts"),
        (remove_params, "params"),
        (remove_data, "params"),
        (truncate_data, "params"),
        (truncate_metadata, "_METADATA: cannot be read; files are missing or damaged"),
        (remove_manifest, "params"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_foreign_or_damaged_checkpoint(source, tmp_path, capsys, damage, message, mode):
    damage(source)
    assert message in refusal(tmp_path, capsys, "--factor=2", f"--mode={mode}")


# By reference no value is read; with --verify all of the source's are, before anything is grown.
@pytest.mark.parametrize("how", ["--mode=stream", "--verify"])
@pytest.mark.parametrize(
    ("path", "layer", "where"),
    [("layers/mlp/up", 1, "layers/mlp/up, layer 1"), ("head", ..., "head")],
)
def test_a_flipped_byte(source, whole, tmp_path, capsys, path, layer, where, how):
    flip_byte(source, whole[1][path][layer].tobytes())
    line = refusal(tmp_path, capsys, "--factor=2", how)
    assert f"{where}: is not what was saved" in line


@pytest.mark.parametrize("mode", ["reference", "stream"])
def test_a_full_disk(source, tmp_path, capsys, mode):
    """Files longer than a limit fail to be written, as on a disk without space."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        line = refusal(tmp_path, capsys, "--factor=2", f"--mode={mode}", code=75)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "could not be written (" in line
    assert "File too large" in line


@pytest.mark.parametrize("target", ["source/grown", "source/params/new/grown", "link/grown"])
def test_a_target_inside_the_source_is_refused(source, tmp_path, capsys, target):
    (tmp_path / "link").symlink_to(source)
    line = refusal(tmp_path, capsys, f"--target={tmp_path}/other/../{target}")
    assert f"lies inside the checkpoint {source}" in line


def test_a_relative_target_inside_the_source_is_refused(source, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(source)
    assert "lies inside the checkpoint" in refusal(tmp_path, capsys, "--target=grown")
