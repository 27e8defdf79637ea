"""Stores on object storage against the same stores on disk, through a fake GCS server."""

import os
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest

from data_pipelines.batches.loader import EvalBatches
from data_pipelines.batches.mixture import train_batches
from data_pipelines.batches.order import ReadOrder
from data_pipelines.store.files import open_files
from data_pipelines.store.store import TokenStore
from prts_jax.errors import UserError
from tests.gcs import fake_gcs, gcs_server  # noqa: F401 (fixtures)

SHARDS = [[(range(s * 50 + d * 7, s * 50 + d * 7 + 7), d % 2) for d in range(7)] for s in range(4)]


@pytest.fixture
def both(make_store, fake_gcs: str) -> tuple[TokenStore, TokenStore]:  # noqa: F811
    """One store on disk and its copy on gs://."""
    local = make_store([*SHARDS, []], vocab_size=200, layout="by_set")
    fsspec.filesystem("gs").put(local.directory, fake_gcs, recursive=True)
    return local, TokenStore.open(fake_gcs)


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array)
        assert actual[name].dtype == array.dtype


@pytest.mark.parametrize("mixture", ["", "a", "a=1,b=3"])
@pytest.mark.parametrize(("block", "documents"), [(0, False), (16, False), (16, True)])
def test_batches_are_the_same_as_from_disk(
    both: tuple[TokenStore, TokenStore], mixture: str, block: int, documents: bool
):
    local, remote = (
        train_batches(
            store, ReadOrder(4, 6, seed=1, block=block, documents=documents, mixture=mixture)
        )
        for store in both
    )
    for step in range(3):
        assert_same(remote.rows(step * 24, 1, 6), local.rows(step * 24, 1, 6))
    assert remote.store.fingerprint == local.store.fingerprint


def test_evaluation_is_the_same_as_from_disk(both: tuple[TokenStore, TokenStore]):
    local, remote = (EvalBatches(store, length=9, batch=4) for store in both)
    assert len(local) == len(remote)
    for index in range(len(local)):
        assert_same(remote.rows(index, 0, 4), local.rows(index, 0, 4))


def test_a_block_is_one_request(
    both: tuple[TokenStore, TokenStore], monkeypatch: pytest.MonkeyPatch
):
    _, remote = both
    batches = train_batches(remote, ReadOrder(length=4, batch=12, seed=1, block=16))
    requests: list[str] = []
    read = remote._files.read

    def counting(name: str, *where: object) -> np.ndarray:
        requests.append(name)
        return read(name, *where)

    monkeypatch.setattr(remote._files, "read", counting)
    batches.rows(0, 0, 12)
    # Three blocks of four windows; one that crosses the border of two shards needs both. Which set
    # each token is of, the index knows.
    assert 3 <= len(requests) <= 6
    assert all(name.endswith(".tokens") for name in requests)


def test_a_file_truncated_or_removed_while_open_is_an_error(make_store):
    store = make_store([*SHARDS], vocab_size=200)
    tokens = Path(store.directory) / "shard-00002.tokens"
    os.truncate(tokens, 20)
    store.read(0, 2 * 49)
    with pytest.raises(UserError, match="cannot read .*shard-00002.tokens: it ended early"):
        store.read(0, 3 * 49 - 38)
    (Path(store.directory) / "shard-00003.tokens").unlink()
    with pytest.raises(UserError, match="cannot read .*shard-00003.tokens .No such file"):
        store.read(150, 1)


def test_missing_and_truncated_objects_are_refused(both: tuple[TokenStore, TokenStore]):
    _, remote = both
    system = fsspec.filesystem("gs")
    system.pipe_file(f"{remote.directory}/shard-00001.sources", b"")
    with pytest.raises(UserError, match=r"shard-00001\.sources has 0 bytes, not 7"):
        TokenStore.open(remote.directory)
    system.rm_file(f"{remote.directory}/shard-00001.sources")
    with pytest.raises(UserError, match=r"shard-00001\.sources is missing"):
        TokenStore.open(remote.directory)
    with pytest.raises(UserError, match="cannot read gs://.*check the path"):
        open_files(remote.directory).read("gone", np.dtype("u1"), 0, 3)
    with pytest.raises(UserError, match="no finished token store: gs://"):
        TokenStore.open(f"{remote.directory}/nowhere")


def test_reading_on_gs_loads_no_tensorflow(both: tuple[TokenStore, TokenStore]):
    script = (
        "import sys\n"
        "from data_pipelines.batches.loader import TrainBatches\n"
        "from data_pipelines.batches.order import ReadOrder\n"
        "from data_pipelines.store.store import TokenStore\n"
        "TrainBatches(TokenStore.open(sys.argv[1]), ReadOrder(4, 2)).rows(0, 0, 2)\n"
        "sys.exit('tensorflow' in sys.modules)\n"
    )
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", script, both[1].directory]
    subprocess.run(command, check=True, timeout=120, cwd=root)
