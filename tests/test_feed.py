"""Batches on the mesh, made ahead by a thread."""

import threading

import jax
import numpy as np
import pytest

from prts_jax.config import MeshConfig
from prts_jax.feed import prefetch, shard_batch
from prts_jax.mesh import make_mesh


def rows(start: int, stop: int) -> dict[str, np.ndarray]:
    tokens = np.arange(start * 3, stop * 3, dtype=np.int32).reshape(stop - start, 3)
    return {"tokens": tokens, "negative": -tokens, "unused": tokens}


def test_shard_batch_makes_the_global_batch_of_the_named_arrays():
    batch = shard_batch(make_mesh(MeshConfig()), rows, (4, 3), ("tokens", "negative"))
    assert sorted(batch) == ["negative", "tokens"]
    np.testing.assert_array_equal(batch["tokens"], np.arange(12).reshape(4, 3))
    np.testing.assert_array_equal(batch["negative"], -np.arange(12).reshape(4, 3))
    assert isinstance(batch["tokens"], jax.Array)


def test_shard_batch_reads_rows_once_for_all_arrays():
    asked = []

    def counted(start: int, stop: int) -> dict[str, np.ndarray]:
        asked.append((start, stop))
        return rows(start, stop)

    shard_batch(make_mesh(MeshConfig()), counted, (4, 3), ("tokens", "negative"))
    assert asked == [(0, 4)]


def test_prefetch_keeps_the_order():
    assert list(prefetch(lambda i: i * i, 3, 10)) == [i * i for i in range(3, 10)]
    assert list(prefetch(lambda i: i, 5, 5)) == []


def test_prefetch_works_ahead_but_not_far():
    built = []
    twice_ahead = threading.Event()

    def make(index: int) -> int:
        built.append(index)
        if index == 2:
            twice_ahead.set()
        return index

    stream = prefetch(make, 0, 100, ahead=2)
    assert next(stream) == 0
    assert twice_ahead.wait(10)
    assert next(stream) == 1
    stream.close()
    assert max(built) <= 3


def test_prefetch_raises_where_the_result_is_asked_for():
    def make(index: int) -> int:
        if index == 2:
            raise ValueError("no third")
        return index

    stream = prefetch(make, 0, 5)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(ValueError, match="no third"):
        next(stream)


def test_a_closed_stream_leaves_no_thread():
    stream = prefetch(lambda i: i, 0, 10)
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
