from pathlib import Path

import numpy as np
import pytest

from data_pipelines.store.writer import Encoded, write_shard
from prts_jax.errors import UserError


@pytest.mark.parametrize(
    ("tokens", "source", "message"),
    [([1, 100], 0, "out of range"), ([-1], 0, "out of range"), ([1], 2, "source id 2 of 2")],
)
def test_ids_out_of_range_are_refused(tmp_path: Path, tokens: list[int], source: int, message: str):
    documents = [Encoded(np.array([1, 2]), 0), Encoded(np.array(tokens), source)]
    with pytest.raises(UserError, match=message):
        write_shard(tmp_path, "shard", "file.zst", 1, documents, 100, 2)
    assert not (tmp_path / "shard.tokens").exists()
