"""Streaming growth: exact, continued lineage, and nothing left behind when it cannot be."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from prts_jax.checkpoint import arrays, commit
from prts_jax.checkpoint.digests import digests
from prts_jax.checkpoint.layout import is_complete, read_lineage
from prts_jax.checkpoint.lock import workdir_lock
from prts_jax.checkpoint.store import save_checkpoint
from prts_jax.config import ModelConfig
from prts_jax.errors import StorageError, UserError
from prts_jax.growth.on_disk import plan
from prts_jax.growth.on_mesh import grow_params
from prts_jax.growth.operators import make_map
from prts_jax.model.architecture import declare
from prts_jax.model.initialise import init_params
from prts_jax.tree import flatten, unflatten
from tests.checkpoint.tiny import (
    DECLARED,
    MODEL,
    flip_byte,
    lineage_of,
    random_params,
    write_source,
)
from tests.growth.on_disk import growing
from tests.growth.on_disk.growing import grown_in_numpy
from tests.train.tiny import assert_same, stored_params

PROGRAMS = Path(__file__).parent / "programs"


@pytest.mark.parametrize("notation", ["123*4", "1-23*3-3", "0,0,1,1,2,2", "0:3,2:3", "0,0,0"])
def test_streamed_on_the_mesh_and_numpy_agree_bit_for_bit(source, tmp_path, notation):
    path, values = source
    growth_map = make_map(MODEL, None, "layers", 0, notation)
    expected = grown_in_numpy(values, growth_map.layers)
    growing.stream(path, str(tmp_path / "grown"), growth_map)
    assert_same(stored_params(tmp_path / "grown"), expected)  # verifies the digests as well
    shardings = dict.fromkeys(values, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    targets = declare(growth_map.target)
    on_mesh = grow_params(unflatten(values), growth_map, targets, shardings)
    assert_same(on_mesh, expected)


@pytest.mark.parametrize(
    ("operator", "options"),
    [
        ("zero", {"factor": 2}),
        ("zero", {"factor": 3, "order": "stack"}),
        ("block_expansion", {"every": 3}),
    ],
)
def test_zero_outputs_are_written_and_digested_on_the_mesh_and_streaming(
    source, tmp_path, operator, options
):
    path, values = source
    growth_map = make_map(MODEL, None, operator, **options)
    expected = grown_in_numpy(values, growth_map.layers)
    for name in ("layers/attention/o", "layers/mlp/down"):
        expected[name][list(growth_map.zeroed)] = 0
    report = growing.stream(path, str(tmp_path / "grown"), growth_map)
    assert report.bytes_written == sum(value.nbytes for value in expected.values())
    assert report.bytes_read == sum(value.nbytes for value in values.values())
    assert_same(stored_params(tmp_path / "grown"), expected)  # verifies the digests as well
    targets = declare(growth_map.target)
    shardings = dict.fromkeys(values, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    on_mesh = grow_params(unflatten(values), growth_map, targets, shardings)
    assert_same(on_mesh, expected)
    assert digests(on_mesh, targets) == read_lineage(str(tmp_path / "grown")).digests


@pytest.mark.parametrize(
    ("operator", "options", "tied"),
    [
        ("split", {"widths": "embed=32,mlp=36,heads=8,kv_heads=4", "factor": 2}, True),
        ("split", {"widths": "embed=32,mlp=48", "weights": "uneven", "pair_noise": 0.5}, False),
        ("zero_width", {"widths": "embed=24,mlp=36,heads=8,head_dim=8", "factor": 2}, True),
        ("zero_width", {"widths": "embed=24"}, False),
        ("random", {"factor": 2, "seed": 3, "noise": 0.2}, False),
    ],
)
def test_widths_and_new_layers_streamed_equal_those_of_the_mesh(tmp_path, operator, options, tied):
    model = dataclasses.replace(MODEL, layers=2, tied=tied)
    declarations = declare(model)
    params = random_params(declarations)
    save_checkpoint(str(tmp_path / "source"), params, lineage_of(params, model, declarations))
    growth_map = make_map(model, None, operator, **options)
    report = growing.stream(str(tmp_path / "source"), str(tmp_path / "grown"), growth_map)
    targets = declare(growth_map.target)
    shardings = dict.fromkeys(targets, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    on_mesh = flatten(grow_params(params, growth_map, targets, shardings))
    streamed = stored_params(tmp_path / "grown")  # verifies the digests as well
    assert read_lineage(str(tmp_path / "grown")).model == growth_map.target
    assert report.bytes_written == sum(leaf.nbytes for leaf in streamed.values())
    for path, leaf in on_mesh.items():
        if "pair_noise" in options or "noise" in options:  # noise is the same to rounding
            np.testing.assert_allclose(streamed[path], leaf, rtol=1e-6, atol=1e-7, err_msg=path)
        else:
            np.testing.assert_array_equal(streamed[path], leaf, err_msg=path)


@pytest.mark.parametrize(
    ("operator", "options"),
    [
        (
            "split",
            {"widths": "embed=32,mlp=36,heads=8,kv_heads=4", "pair_noise": 0.5, "noise": 0.2},
        ),
        pytest.param("random", {"factor": 2}, marks=pytest.mark.slow),
        pytest.param(
            "zero_width",
            {"widths": "embed=24,mlp=36,heads=8", "factor": 2},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_rows_of_large_layers_are_what_the_whole_layer_would_be(
    tmp_path, monkeypatch, operator, options
):
    monkeypatch.setattr("prts_jax.checkpoint.items.CHUNK_BYTES", 512)
    params = write_source(tmp_path / "source")
    growth_map = make_map(MODEL, None, operator, **options)
    growing.stream(str(tmp_path / "source"), str(tmp_path / "whole"), growth_map)
    monkeypatch.setattr(plan, "BLOCK_BYTES", 400)
    monkeypatch.setattr(plan, "COMPUTED_BYTES", 400)
    growing.stream(str(tmp_path / "source"), str(tmp_path / "rows"), growth_map)
    assert arrays.describe(str(tmp_path / "rows"))["head"].chunk[0] < growth_map.target.embed
    whole, rows = (read_lineage(str(tmp_path / name)).digests for name in ("whole", "rows"))
    assert rows == whole
    targets = declare(growth_map.target)
    shardings = dict.fromkeys(targets, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    on_mesh = flatten(grow_params(params, growth_map, targets, shardings))
    for path, leaf in stored_params(tmp_path / "rows").items():  # verifies the digests as well
        np.testing.assert_allclose(leaf, on_mesh[path], rtol=1e-6, atol=1e-7, err_msg=path)


def test_large_layers_are_stored_in_chunks_that_bound_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("prts_jax.checkpoint.items.CHUNK_BYTES", 512)
    params = write_source(tmp_path / "source")
    for path, leaf in arrays.describe(str(tmp_path / "source")).items():
        assert np.prod(leaf.chunk) * 4 <= 512, path
    growth_map = make_map(MODEL, None, "stack", factor=2)
    report = growing.grow_checkpoint(str(tmp_path / "source"), str(tmp_path / "grown"), growth_map)
    assert report.mode == "reference"
    values = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
    assert_same(stored_params(tmp_path / "grown"), grown_in_numpy(values, growth_map.layers))


def test_layers_grow_from_none(tmp_path):
    model = dataclasses.replace(MODEL, layers=0)
    declarations = declare(model)
    params = random_params(declarations)
    save_checkpoint(str(tmp_path / "source"), params, lineage_of(params, model, declarations))
    growth_map = make_map(model, MODEL, "random")
    growing.stream(str(tmp_path / "source"), str(tmp_path / "grown"), growth_map)
    streamed = stored_params(tmp_path / "grown")
    fresh = flatten(init_params(DECLARED, 3, "paper", 0))
    np.testing.assert_array_equal(streamed["head"], flatten(params)["head"])
    np.testing.assert_allclose(streamed["layers/mlp/up"], fresh["layers/mlp/up"], rtol=1e-6)


def test_a_damaged_layer_is_found_before_it_is_widened(source, tmp_path):
    path, values = source
    flip_byte(Path(path), values["head"].tobytes())
    growth_map = make_map(MODEL, None, "split", widths="embed=32")
    with pytest.raises(UserError, match="head: is not what was saved"):
        growing.stream(path, str(tmp_path / "grown"), growth_map)
    assert [child.name for child in tmp_path.iterdir()] == ["source"]


def test_a_tied_model_grows(tmp_path):
    model = ModelConfig(
        vocab=48, layers=2, embed=16, heads=4, kv_heads=1, head_dim=4, mlp=24, tied=True
    )
    declarations = declare(model)
    params = random_params(declarations)
    save_checkpoint(str(tmp_path / "source"), params, lineage_of(params, model, declarations))
    growth_map = make_map(model, None, "stack", 3, "")
    growing.stream(str(tmp_path / "source"), str(tmp_path / "grown"), growth_map)
    values = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    expected = grown_in_numpy(values, growth_map.layers, declarations)
    assert_same(stored_params(tmp_path / "grown"), expected)


def test_the_lineage_goes_on(source, tmp_path):
    path, _ = source
    growth_map = make_map(MODEL, None, "stack", 2, "")
    growing.stream(path, str(tmp_path / "grown"), growth_map)
    before, after = read_lineage(path), read_lineage(str(tmp_path / "grown"))
    assert after == before.grown(growth_map, after.digests)
    assert after.digests["layers/mlp/up"] == before.digests["layers/mlp/up"] * 2
    assert after.digests["head"] == before.digests["head"]


def test_a_grown_checkpoint_grows_again(source, tmp_path):
    path, values = source
    twice = make_map(MODEL, None, "stack", 2, "")
    again = make_map(twice.target, None, "layers", 0, "0:6,3:6")
    growing.stream(path, str(tmp_path / "six"), twice)
    growing.stream(str(tmp_path / "six"), str(tmp_path / "nine"), again)
    assert_same(
        stored_params(tmp_path / "nine"),
        grown_in_numpy(grown_in_numpy(values, twice.layers), again.layers),
    )


def test_leaves_stored_in_pieces_are_grown_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("prts_jax.checkpoint.items.CHUNK_BYTES", 512)
    path = tmp_path / "source"
    params = write_source(path)
    assert arrays.describe(str(path))["token_embedding"].chunk != (48, 16)
    growth_map = make_map(MODEL, None, "stack", 2, "")
    growing.stream(str(path), str(tmp_path / "grown"), growth_map)
    values = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
    assert_same(stored_params(tmp_path / "grown"), grown_in_numpy(values, growth_map.layers))


def test_the_report_counts_bytes_of_values(source, tmp_path):
    path, values = source
    growth_map = make_map(MODEL, None, "layers", 0, "0,0,1")
    told = []
    report = growing.stream(
        path,
        str(tmp_path / "grown"),
        growth_map,
        progress=lambda done, total: told.append((done, total)),
    )
    stacked = sum(value.nbytes for name, value in values.items() if DECLARED[name].stacked)
    others = sum(value.nbytes for name, value in values.items() if not DECLARED[name].stacked)
    assert report.bytes_read == others + stacked // 3 * 2  # the third layer is not used
    assert report.bytes_written == others + stacked
    assert told[-1] == (report.bytes_written, report.bytes_written)
    assert report.mode == "stream"
    assert report.layers == (0, 0, 1)
    assert report.peak_rss_bytes > 0


@pytest.mark.parametrize(
    ("path", "layer", "named"),
    [("layers/mlp/gate", 2, "layers/mlp/gate, layer 2"), ("token_embedding", None, "token_emb")],
)
def test_a_damaged_source_is_refused_and_nothing_is_left(source, tmp_path, path, layer, named):
    checkpoint, values = source
    flip_byte(Path(checkpoint), (values[path] if layer is None else values[path][layer]).tobytes())
    with pytest.raises(UserError, match=f"{named}.*: is not what was saved"):
        growing.stream(checkpoint, str(tmp_path / "grown"), make_map(MODEL, None, "stack", 2, ""))
    assert [child.name for child in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_missing_files_are_refused_and_nothing_is_left(source, tmp_path, damage):
    for file in (tmp_path / "source" / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:10]) if damage == "truncate" else file.unlink()
    with pytest.raises(UserError, match="cannot be read") as caught:
        growing.stream(source[0], str(tmp_path / "grown"), make_map(MODEL, None, "stack", 2, ""))
    assert "\n" not in str(caught.value)
    assert [child.name for child in tmp_path.iterdir()] == ["source"]


def test_a_map_from_another_model_is_refused(source, tmp_path):
    other = ModelConfig(vocab=48, layers=4, embed=16, heads=4, kv_heads=2, head_dim=4, mlp=24)
    with pytest.raises(UserError, match=r"model\.layers is 3, but the growth map starts from 4"):
        growing.stream(source[0], str(tmp_path / "grown"), make_map(other, None, "stack", 2, ""))


def test_a_checkpoint_that_is_not_what_its_config_says_is_refused(tmp_path):
    wide = ModelConfig(vocab=48, layers=3, embed=16, heads=4, kv_heads=2, head_dim=4, mlp=32)
    params = random_params(declare(wide))
    save_checkpoint(str(tmp_path / "odd"), params, lineage_of(params, MODEL, declare(wide)))
    message = r"layers/mlp/down: has shape \(3, 32, 16\) on disk and \(3, 24, 16\) by its config"
    with pytest.raises(UserError, match=message):
        plan.plan(
            str(tmp_path / "odd"), str(tmp_path / "grown"), make_map(MODEL, None, "stack", 2, "")
        )


def test_an_existing_target_is_never_touched(source, tmp_path):
    (tmp_path / "grown").mkdir()
    (tmp_path / "grown" / "precious").write_text("data")
    with pytest.raises(UserError, match="exists already and is never overwritten"):
        growing.stream(source[0], str(tmp_path / "grown"), make_map(MODEL, None, "stack", 2, ""))
    assert (tmp_path / "grown" / "precious").read_text() == "data"


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(commit, "free_bytes", lambda target: 10_000)
    with pytest.raises(StorageError, match=r"needs [0-9.]+ kB and [0-9.]+ k?B are free"):
        growing.stream(source[0], str(tmp_path / "grown"), make_map(MODEL, None, "stack", 2, ""))
    assert [child.name for child in tmp_path.iterdir()] == ["source"]


def test_two_growths_into_one_directory_are_refused(source, tmp_path):
    with (
        workdir_lock(str(tmp_path / ".grown.growing")),
        pytest.raises(UserError, match="is writing there"),
    ):
        growing.stream(source[0], str(tmp_path / "grown"), make_map(MODEL, None, "stack", 2, ""))


def test_a_killed_growth_leaves_no_checkpoint_and_runs_again(source, tmp_path):
    path, values = source
    target = tmp_path / "grown"
    process = subprocess.Popen(
        [sys.executable, str(PROGRAMS / "grow_slowly.py"), path, str(target)],
        env=os.environ | {"PYTHONPATH": "."},
        cwd=PROGRAMS.parents[3],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()  # some layers are written
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not target.exists()
    assert not is_complete(str(tmp_path / ".grown.growing"))
    growth_map = make_map(MODEL, None, "stack", 4, "")
    growing.stream(path, str(target), growth_map)
    assert_same(stored_params(target), grown_in_numpy(values, growth_map.layers))
    assert sorted(child.name for child in tmp_path.iterdir()) == ["grown", "source"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_layers(tmp_path):
    peaks = {}
    for factor in (2, 8):
        process = subprocess.run(
            [sys.executable, str(PROGRAMS / "grow_large.py"), str(tmp_path), str(factor)],
            env=os.environ | {"PYTHONPATH": "."},
            cwd=PROGRAMS.parents[3],
            capture_output=True,
            text=True,
            check=True,
            timeout=600,
        )
        peaks[factor] = int(process.stdout)
    layer = (4 * 640 * 640 + 3 * 640 * 1728) * 4
    more_written = (8 - 2) * 4 * layer
    assert peaks[8] - peaks[2] < 0.15 * more_written
