"""Growth by several processes: what one process writes, and one error for all."""

import json
import resource
import socket
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prts_jax.checkpoint.layout import is_complete, read_lineage
from prts_jax.checkpoint.store import restore_optimizer
from prts_jax.growth.on_disk import grow, stream
from prts_jax.growth.on_disk.pieces import Piece, pieces
from prts_jax.growth.on_disk.shared_growth import shares
from prts_jax.growth.operators import make_map
from prts_jax.model.architecture import declare
from prts_jax.tree import flatten, named_leaves, unflatten
from tests.checkpoint.tiny import MODEL, abstract, flip_byte, write_source
from tests.growth.on_disk.test_optimizer import ADAMW, MAPS
from tests.growth.on_disk.test_optimizer import save as save_with_moments
from tests.growth.on_disk.test_stream import assert_same, read
from tests.growth.on_disk.test_stream import reference as grown_in_numpy


@given(st.lists(st.integers(0, 2**40), max_size=50), st.integers(1, 9))
def test_every_piece_is_dealt_once_and_the_shares_are_even(sizes, processes):
    parts = [Piece(str(number), 0, (0,), False, size) for number, size in enumerate(sizes)]
    dealt = shares(parts, processes)
    assert len(dealt) == processes
    assert sorted(part.path for share in dealt for part in share) == sorted(
        map(str, range(len(parts)))
    )
    loads = [sum(part.nbytes for part in share) for share in dealt]
    assert max(loads) <= sum(sizes) / processes + max(sizes, default=0)


def test_pieces_write_every_layer_of_every_leaf_once(tmp_path):
    write_source(tmp_path / "source")
    for growth_map in (
        make_map(MODEL, None, "layers", 0, "0,0,2,1"),
        make_map(MODEL, None, "zero", factor=2),
        make_map(MODEL, None, "random", factor=2),
    ):
        work = stream.plan(str(tmp_path / "source"), growth_map)
        written: dict[str, list[int]] = {}
        for part in pieces(work):
            written.setdefault(part.path, []).extend(part.targets)
        assert {path: sorted(layers) for path, layers in written.items()} == {
            path: list(range(leaf.shape[0])) if leaf.stacked else [0]
            for path, leaf in work.declarations.items()
        }
        assert sum(part.nbytes for part in pieces(work)) == work.bytes_written


@pytest.fixture
def grow_on_two(start_prts):
    """`grow_on_two(*args)` runs `prts grow` on two processes: exit codes, outputs and errors."""

    def run(*args: str) -> tuple[list[int], list[str], list[str]]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        joined = (f"--coordinator=localhost:{port}", "--processes=2")
        started = [start_prts("grow", *args, *joined, f"--process={i}") for i in (0, 1)]
        ended = [process.communicate(timeout=300) for process in started]
        return (
            [process.returncode for process in started],
            [out for out, _ in ended],
            [error for _, error in ended],
        )

    return run


def arguments(folder: Path, *others: str) -> tuple[str, ...]:
    return (f"--source={folder / 'source'}", f"--target={folder / 'grown'}", *others)


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["stack", "random"])
def test_two_processes_write_what_one_writes(tmp_path, grow_on_two, operator):
    values = {
        path: np.asarray(leaf) for path, leaf in flatten(write_source(tmp_path / "source")).items()
    }
    options = (f"--operator={operator}", "--factor=2", "--mode=stream", "--json")
    codes, outputs, errors = grow_on_two(*arguments(tmp_path, *options))
    assert codes == [0, 0], errors
    assert outputs[1] == ""  # the first process speaks for all
    report = json.loads(outputs[0])
    growth_map = make_map(MODEL, None, operator, factor=2)
    alone = stream.stream(str(tmp_path / "source"), str(tmp_path / "alone"), growth_map)
    assert report["bytes_written"] == alone.bytes_written
    assert report["mode"] == "stream"
    one, two = (read_lineage(str(tmp_path / name)) for name in ("alone", "grown"))
    assert two == one  # and so the digests of all layers
    found = read(str(tmp_path / "grown"))  # by Orbax, which verifies the digests
    assert_same(
        found, {path: np.asarray(leaf) for path, leaf in read(str(tmp_path / "alone")).items()}
    )
    if operator == "stack":
        assert_same(found, grown_in_numpy(values, growth_map.layers))
    databases = [path.name for path in (tmp_path / "grown" / "params").glob("ocdbt.process_*")]
    assert sorted(databases) == ["ocdbt.process_0", "ocdbt.process_1"]


@pytest.mark.slow
def test_two_processes_write_the_moments_that_one_writes(tmp_path, grow_on_two):
    source, _ = save_with_moments(tmp_path / "checkpoints")
    operator, options = MAPS["split"]  # layers, and blocks of leaves without layers
    flags = [f"--{name}={value}" for name, value in options.items()]
    codes, outputs, errors = grow_on_two(
        f"--source={source}",
        f"--target={tmp_path / 'grown'}",
        f"--operator={operator}",
        *flags,
        "--optimizer=copy",
        "--json",
    )
    assert codes == [0, 0], errors
    report, alone = json.loads(outputs[0]), str(tmp_path / "alone")
    growth_map = make_map(MODEL, None, operator, **options)
    expected = grow.grow_checkpoint(source, alone, growth_map, optimizer="copy")
    assert report["bytes_written"] == expected.bytes_written
    assert report["bytes_read"] == expected.bytes_read
    params = unflatten({path: jnp.zeros(d.shape) for path, d in declare(growth_map.target).items()})
    moments = ADAMW.init(params)
    one, two = (
        named_leaves(restore_optimizer(str(tmp_path / name), abstract(moments)))
        for name in ("alone", "grown")
    )
    assert one.keys() == two.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(two[path], leaf, err_msg=path)
    assert read_lineage(str(tmp_path / "grown")) == read_lineage(alone)
    databases = (tmp_path / "grown" / "optimizer").glob("ocdbt.process_*")
    assert sorted(path.name for path in databases) == ["ocdbt.process_0", "ocdbt.process_1"]


@pytest.mark.slow
def test_what_two_processes_wrote_grows_on_by_two(tmp_path, grow_on_two):
    write_source(tmp_path / "source")
    codes, _, errors = grow_on_two(*arguments(tmp_path, "--factor=2", "--mode=stream"))
    assert codes == [0, 0], errors
    codes, _, errors = grow_on_two(
        f"--source={tmp_path / 'grown'}", f"--target={tmp_path / 'again'}", "--factor=2"
    )
    assert codes == [0, 0], errors
    found = {path: np.asarray(leaf) for path, leaf in read(str(tmp_path / "grown")).items()}
    once = make_map(MODEL, None, "stack", factor=2)
    layers = make_map(once.target, None, "stack", factor=2).layers
    assert_same(read(str(tmp_path / "again")), grown_in_numpy(found, layers))


@pytest.mark.slow
def test_an_error_of_one_process_ends_both_and_leaves_nothing(tmp_path, grow_on_two):
    values = flatten(write_source(tmp_path / "source"))
    flip_byte(tmp_path / "source", np.asarray(values["layers/mlp/gate"][1]).tobytes())
    codes, _, errors = grow_on_two(*arguments(tmp_path, "--factor=2", "--mode=stream"))
    assert codes == [2, 2], errors
    lines = [error.splitlines()[-1] for error in errors]
    assert all("layers/mlp/gate, layer 1: is not what was saved" in line for line in lines)
    assert sum(line.startswith("prts grow: process ") for line in lines) == 1
    assert [child.name for child in tmp_path.iterdir()] == ["source"]


@pytest.mark.slow
def test_a_full_disk_ends_both_in_one_line_and_leaves_nothing(tmp_path, grow_on_two):
    """Files longer than a limit fail to be written, as on a disk without space."""
    write_source(tmp_path / "source")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the processes inherit it
    try:
        codes, _, errors = grow_on_two(*arguments(tmp_path, "--factor=2", "--mode=stream"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert codes == [2, 2], errors
    for error in errors:
        assert "Traceback" not in error
        assert error.splitlines()[-1].startswith("prts grow: ")
    assert any("/grown: could not be written (File too large)" in error for error in errors)
    assert [child.name for child in tmp_path.iterdir()] == ["source"]


@pytest.mark.slow
def test_what_the_first_process_refuses_all_refuse(tmp_path, grow_on_two):
    write_source(tmp_path / "source")
    (tmp_path / "grown").mkdir()
    codes, _, errors = grow_on_two(*arguments(tmp_path, "--factor=2"))
    assert codes == [2, 2]
    assert all("exists already and is never overwritten" in error for error in errors)
    assert not is_complete(str(tmp_path / "grown"))
