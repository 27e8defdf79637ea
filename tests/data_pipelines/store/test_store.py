import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.store.index import token_dtype
from data_pipelines.store.store import TokenStore

MakeStore = Callable[..., TokenStore]

document = st.tuples(st.lists(st.integers(0, 99), max_size=6), st.integers(0, 1))
shards = st.lists(st.lists(document, max_size=5), min_size=1, max_size=5)
# The fixture is a function without state, so examples may share it.
shared_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(contents=shards, data=st.data())
@shared_fixture
def test_a_store_reads_as_one_array_across_documents_and_shards(
    make_store: MakeStore, contents: list[list[tuple[list[int], int]]], data: st.DataObject
):
    store = make_store(contents)
    documents = [document for shard in contents for document in shard]
    tokens = [token for tokens, _ in documents for token in tokens]
    sources = [source for tokens, source in documents for _ in tokens]
    assert (store.tokens, store.documents) == (len(tokens), len(documents))

    start = data.draw(st.integers(0, len(tokens)))
    stop = data.draw(st.integers(start, len(tokens)))
    assert store.read(start, stop - start).tolist() == tokens[start:stop]
    assert store.source_ids(start, stop - start).tolist() == sources[start:stop]


def test_arrays_are_int32_for_every_dtype_on_disk(make_store: MakeStore):
    for vocab_size, bytes_each in ((65536, 2), (65537, 4)):
        store = make_store([[([3, vocab_size - 1], 1)]], vocab_size=vocab_size)
        assert (Path(store.directory) / "shard-00000.tokens").stat().st_size == 2 * bytes_each
        assert store.read(0, 2).tolist() == [3, vocab_size - 1]
        assert store.read(0, 2).dtype == store.source_ids(0, 2).dtype == np.int32
    assert token_dtype(65536) == np.dtype("<u2")


@pytest.mark.parametrize(("start", "count"), [(-1, 1), (0, 4), (3, 1)])
def test_reading_beyond_the_store_is_an_error(make_store: MakeStore, start: int, count: int):
    with pytest.raises(IndexError):
        make_store([[([1, 2, 3], 0)]]).read(start, count)


def test_more_shards_than_a_process_may_open_files(make_store: MakeStore):
    script = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (850, 850))  # many have 1,024
from data_pipelines.store.store import TokenStore
stores = [TokenStore.open(sys.argv[1]) for _ in ("train", "validation")]
for store in stores:
    assert store.read(0, store.tokens).tolist() == [i % 100 for i in range(store.tokens)]
    assert store.source_ids(0, store.tokens).any() == False
"""
    store = make_store([[([i % 100], 0)] for i in range(1000)])
    subprocess.run([sys.executable, "-c", script, store.directory], check=True, timeout=60)


def test_reading_needs_neither_jax_nor_tensorflow_nor_the_data_extra(make_store: MakeStore):
    # `None` in sys.modules makes an import fail as if the package were not installed.
    script = """
import sys
absent = ("jax", "tensorflow", "seqio", "sentencepiece", "zstandard")
sys.modules.update(dict.fromkeys(absent))
from data_pipelines.batches.loader import TrainBatches
from data_pipelines.batches.order import ReadOrder
from data_pipelines.store.store import TokenStore
TrainBatches(TokenStore.open(sys.argv[1]), ReadOrder(4, 2)).rows(0, 0, 2)
"""
    store = make_store([[(list(range(20)), 0)]])
    subprocess.run(
        [sys.executable, "-c", script, store.directory],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
