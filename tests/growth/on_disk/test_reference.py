"""Growth by reference: the same parameters as streamed, and not a value copied."""

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prts_jax.checkpoint import arrays, layout
from prts_jax.checkpoint.layout import is_complete, read_lineage
from prts_jax.checkpoint.lock import workdir_lock
from prts_jax.checkpoint.store import save_checkpoint
from prts_jax.config import ModelConfig
from prts_jax.errors import UserError
from prts_jax.growth.on_disk import reference
from prts_jax.growth.on_disk.plan import plan
from prts_jax.growth.on_disk.stream import stream_memory
from prts_jax.growth.operators import make_map
from prts_jax.model.architecture import declare
from prts_jax.tree import flatten
from tests.checkpoint.tiny import MODEL, flip_byte, lineage_of, random_params, write_source
from tests.growth.on_disk import growing
from tests.growth.on_disk.growing import grown_in_numpy
from tests.train.tiny import assert_same, stored_params

PROGRAMS = Path(__file__).parent / "programs"
STACK = make_map(MODEL, None, "stack", 2, "")


def contents(directory):
    return {
        file.relative_to(directory): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in Path(directory).rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize("notation", ["123*4", "2,1,0,0,0"])
def test_it_gives_the_streamed_checkpoint_and_leaves_the_source_alone(source, tmp_path, notation):
    path, values = source
    growth_map = make_map(MODEL, None, "layers", 0, notation)
    before = contents(path)
    report = growing.link(path, str(tmp_path / "linked"), growth_map)
    assert contents(path) == before
    growing.stream(path, str(tmp_path / "streamed"), growth_map)
    linked = stored_params(tmp_path / "linked")  # through Orbax; compares the digests
    assert_same(linked, grown_in_numpy(values, growth_map.layers))
    assert read_lineage(str(tmp_path / "linked")) == read_lineage(str(tmp_path / "streamed"))
    assert arrays.describe(str(tmp_path / "linked")).keys() == values.keys()
    assert (report.mode, report.bytes_written, report.layers) == ("reference", 0, growth_map.layers)


def test_not_a_value_is_copied(source, tmp_path):
    path, values = source
    report = growing.link(path, str(tmp_path / "grown"), STACK)
    files = [file for file in (tmp_path / "grown").rglob("*") if file.is_file()]
    shared = [file for file in files if file.stat().st_nlink == 2]
    written = [file.read_bytes() for file in files if file not in shared]
    largest = values["layers/mlp/up"]
    assert not any(layer.tobytes() in data for layer in largest for data in written)
    assert report.files_linked > 0
    assert report.bytes_linked >= sum(leaf.nbytes for leaf in values.values() if leaf.size > 1000)


def test_it_outlives_its_source_and_grows_again(source, tmp_path):
    path, values = source
    again = make_map(STACK.target, None, "layers", 0, "0:6,3:6")
    growing.link(path, str(tmp_path / "six"), STACK)
    shutil.rmtree(path)
    growing.link(str(tmp_path / "six"), str(tmp_path / "nine"), again)
    shutil.rmtree(tmp_path / "six")
    expected = grown_in_numpy(grown_in_numpy(values, STACK.layers), again.layers)
    assert_same(stored_params(tmp_path / "nine"), expected)


def test_a_streamed_checkpoint_can_be_shared_and_a_shared_one_streamed(source, tmp_path):
    path, values = source
    once, twice = STACK, make_map(STACK.target, None, "layers", 0, "0:6,0:6")
    thrice = make_map(twice.target, None, "layers", 0, "0:12,11:12")
    growing.stream(path, str(tmp_path / "six"), once)
    growing.link(str(tmp_path / "six"), str(tmp_path / "twelve"), twice)
    growing.stream(str(tmp_path / "twelve"), str(tmp_path / "thirteen"), thrice)
    expected = values
    for growth_map in (once, twice, thrice):
        expected = grown_in_numpy(expected, growth_map.layers)
    assert_same(stored_params(tmp_path / "thirteen"), expected)


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layers=st.lists(st.integers(0, 2), min_size=3, max_size=12))
def test_every_index_list_is_done(source, tmp_path_factory, layers):
    path, values = source
    target = str(tmp_path_factory.mktemp("example") / "grown")
    growth_map = make_map(MODEL, None, "layers", 0, ",".join(map(str, layers)))
    growing.link(path, target, growth_map)
    for name, leaf in grown_in_numpy(values, layers).items():
        actual = arrays.open_leaf(target, name).read().result()
        np.testing.assert_array_equal(actual, leaf, err_msg=name)


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_missing_bytes_are_found_and_nothing_is_left(source, tmp_path, damage):
    path, values = source
    needle = values["layers/mlp/up"][1].tobytes()
    files = [file for file in Path(path, "params").rglob("d/*") if needle in file.read_bytes()]
    for file in files:
        os.truncate(file, 9) if damage == "truncate" else file.unlink()
    with pytest.raises(UserError, match=r"has [09] bytes where \d+ were written"):
        growing.grow_checkpoint(path, str(tmp_path / "grown"), STACK)
    assert [child.name for child in tmp_path.iterdir()] == ["source"]


def test_a_damaged_value_is_found_by_whoever_restores_it(source, tmp_path):
    path, values = source
    flip_byte(Path(path), values["layers/mlp/gate"][2].tobytes())
    growing.link(path, str(tmp_path / "grown"), STACK)
    with pytest.raises(UserError, match="layers/mlp/gate, layer 2: is not what was saved"):
        stored_params(tmp_path / "grown")


def test_damage_in_what_is_read_back_is_found_and_nothing_is_left(source, tmp_path, monkeypatch):
    lineage = read_lineage(source[0])
    digests = {**lineage.digests, "final_norm": ("0" * 16,)}
    damaged = dataclasses.replace(lineage, digests=digests)
    monkeypatch.setattr(layout, "read_lineage", lambda path: damaged)
    with pytest.raises(UserError, match="final_norm: is not what was saved"):
        growing.grow_checkpoint(source[0], str(tmp_path / "grown"), STACK)
    assert [child.name for child in tmp_path.iterdir()] == ["source"]


def whole_chunks(monkeypatch):
    """Makes saves store all layers of a leaf together, as Orbax does unless told otherwise."""
    monkeypatch.setattr("prts_jax.checkpoint.items.LAYERS", "nothing is called so")


def test_layers_that_are_stored_together_are_streamed_with_a_word_on_memory(
    tmp_path, monkeypatch, caplog
):
    whole_chunks(monkeypatch)
    values = flatten(write_source(tmp_path / "source"))
    with pytest.raises(
        reference.CannotReferenceError,
        match=r"is stored in pieces of 3 layers, not of one; streaming it takes about [0-9.]+ kB",
    ):
        growing.link(str(tmp_path / "source"), str(tmp_path / "grown"), STACK)
    report = growing.grow_checkpoint(str(tmp_path / "source"), str(tmp_path / "grown"), STACK)
    assert report.mode == "stream"
    assert "pieces of 3 layers" in report.reason
    assert report.reason in caplog.text
    numpy = {path: np.asarray(leaf) for path, leaf in values.items()}
    assert_same(stored_params(tmp_path / "grown"), grown_in_numpy(numpy, STACK.layers))


def test_what_streaming_takes_counts_the_layers_that_are_read_together(tmp_path, monkeypatch):
    write_source(tmp_path / "apart")
    whole_chunks(monkeypatch)
    write_source(tmp_path / "together")
    layer = 16 * 24 * 4
    apart, together = (
        plan(str(tmp_path / name), str(tmp_path / "grown"), STACK) for name in ("apart", "together")
    )

    def memory(work):
        leaf = next(leaf for leaf in work.params if leaf.recipe.path == "layers/mlp/up")
        return work.memory(leaf)

    assert memory(apart) == (1 + 1 + 1) * layer
    assert memory(together) == (3 + 1 + 1) * layer
    assert stream_memory(together, together.params) >= memory(together)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM])
def test_a_file_system_without_links_is_streamed_to(source, tmp_path, monkeypatch, code):
    path, values = source

    def refuse(*names: str) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(reference.CannotReferenceError, match="makes no hard links there"):
        growing.link(path, str(tmp_path / "grown"), STACK)
    assert [child.name for child in tmp_path.iterdir()] == ["source"]
    report = growing.grow_checkpoint(path, str(tmp_path / "grown"), STACK)
    assert os.strerror(code) in report.reason
    assert_same(stored_params(tmp_path / "grown"), grown_in_numpy(values, STACK.layers))


def test_what_else_cannot_be_shared_is_said_before_anything_is_written(source, tmp_path):
    work = plan(source[0], str(tmp_path / "grown"), STACK)
    assert reference.obstacle(work) == ""
    elsewhere = {"target": "/proc/grown"}, {"target": "gs://bucket/grown"}, {"source": "gs://a/b"}
    reasons = [reference.obstacle(dataclasses.replace(work, **where)) for where in elsewhere]
    for reason, part in zip(reasons, ("another file system", *["object store"] * 2), strict=True):
        assert part in reason


@pytest.mark.parametrize(
    ("operator", "options"),
    [
        ("split", {"widths": f"embed={2 * MODEL.embed}"}),
        ("zero_width", {"widths": f"embed={2 * MODEL.embed}"}),
        ("random", {"factor": 2}),
        ("stack", {"factor": 2, "noise": 0.2}),
    ],
)
def test_what_computes_values_is_never_linked(source, tmp_path, operator, options):
    path, _ = source
    growth_map = make_map(MODEL, None, operator, **options)
    with pytest.raises(reference.CannotReferenceError):
        growing.link(path, str(tmp_path / "grown"), growth_map)
    assert [child.name for child in tmp_path.iterdir()] == ["source"]


def test_zero_outputs_are_streamed(source, tmp_path):
    path, values = source
    growth_map = make_map(MODEL, None, "zero", factor=2)
    with pytest.raises(reference.CannotReferenceError, match="zero makes layers with zero outputs"):
        growing.link(path, str(tmp_path / "grown"), growth_map)
    growing.grow_checkpoint(path, str(tmp_path / "grown"), growth_map)
    grown = stored_params(tmp_path / "grown")
    assert not grown["layers/mlp/down"][1::2].any()
    np.testing.assert_array_equal(grown["layers/mlp/up"], values["layers/mlp/up"].repeat(2, 0))


def test_an_existing_target_is_never_touched(source, tmp_path):
    (tmp_path / "grown").mkdir()
    (tmp_path / "grown" / "precious").write_text("data")
    with pytest.raises(UserError, match="exists already and is never overwritten"):
        growing.grow_checkpoint(source[0], str(tmp_path / "grown"), STACK)
    assert (tmp_path / "grown" / "precious").read_text() == "data"


def test_two_growths_into_one_directory_are_refused(source, tmp_path):
    with (
        workdir_lock(str(tmp_path / ".grown.growing")),
        pytest.raises(UserError, match="is writing there"),
    ):
        growing.grow_checkpoint(source[0], str(tmp_path / "grown"), STACK)


@pytest.mark.parametrize(
    "stage",
    ["_link_files", pytest.param("_point", marks=pytest.mark.slow), "read_back"],
)
def test_killed_after_any_stage_it_leaves_no_checkpoint_and_runs_again(source, tmp_path, stage):
    path, values = source
    target = tmp_path / "grown"
    process = subprocess.run(
        [sys.executable, str(PROGRAMS / "link_and_die.py"), path, str(target), stage],
        env=os.environ | {"PYTHONPATH": "."},
        cwd=PROGRAMS.parents[3],
        check=False,
        timeout=300,
    )
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / ".grown.growing" / "params").exists()
    assert not target.exists()
    assert not is_complete(str(tmp_path / ".grown.growing"))
    growing.link(path, str(target), STACK)
    assert_same(stored_params(target), grown_in_numpy(values, STACK.layers))
    assert sorted(child.name for child in tmp_path.iterdir()) == ["grown", "source"]


def test_a_tied_model_with_one_layer_grows(tmp_path):
    model = ModelConfig(
        vocab=48, layers=1, embed=16, heads=4, kv_heads=1, head_dim=4, mlp=24, tied=True
    )
    declarations = declare(model)
    params = random_params(declarations)
    save_checkpoint(str(tmp_path / "source"), params, lineage_of(params, model, declarations))
    growth_map = make_map(model, None, "stack", 3, "")
    growing.link(str(tmp_path / "source"), str(tmp_path / "grown"), growth_map)
    values = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    expected = grown_in_numpy(values, growth_map.layers, declarations)
    assert_same(stored_params(tmp_path / "grown"), expected)
