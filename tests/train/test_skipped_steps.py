"""Steps without a finite loss or gradient: skipped, kept in the lineage, repeated by a resume."""

import shutil

import numpy as np
import pytest

from prts_jax import tree
from prts_jax.errors import DivergedError
from prts_jax.train import start
from tests.train import tiny

POISON = 63
"""A token whose embedding is no number, and which few batches have."""


@pytest.fixture
def poisoned(run, tmp_path, monkeypatch):
    """Returns `run` with training data of which some batches have no finite loss."""
    initialise = start.init_params

    def init_params(*args, **kwargs):
        leaves = tree.flatten(initialise(*args, **kwargs))
        leaves["token_embedding"] = leaves["token_embedding"].at[POISON].set(np.nan)
        return tree.unflatten(leaves)

    monkeypatch.setattr(start, "init_params", init_params)
    words = np.arange(128) % POISON
    documents = [
        (np.where(words == 5, POISON, words) if i % 8 == 3 else words, 0) for i in range(24)
    ]
    tiny.write_store(tmp_path / "poisoned", documents=documents)
    data = {"data__train": str(tmp_path / "poisoned"), "data__validation": ""}
    return lambda workdir, **changes: run(workdir, **data, **changes)


def test_a_resume_repeats_and_counts_skipped_steps(poisoned, tmp_path):
    """Steps 6, 7 and 8 are skipped; the run stops after the second of them."""
    whole = poisoned(tmp_path / "whole", train__steps=9)
    skipped = [line["step"] for line in whole if line.get("skipped")]
    assert skipped == [6, 7, 8]
    poisoned(tmp_path / "resumed", train__steps=7)
    shutil.copytree(tmp_path / "resumed", tmp_path / "less")
    resumed = poisoned(tmp_path / "resumed", train__steps=9)
    assert tiny.curve(resumed) == tiny.curve(whole)
    ends = [tiny.resolve(str(tmp_path / name)) for name in ("whole", "resumed")]
    tiny.assert_same(*(tiny.stored_params(end) for end in ends))
    lineages = [tiny.read_lineage(end) for end in ends]
    assert lineages[0].skipped == lineages[1].skipped
    assert [skip.step for skip in lineages[0].skipped] == skipped
    with pytest.raises(
        DivergedError, match=r"at step 8: .*\(3 steps .*positions \[640, 768, 896\]"
    ):
        poisoned(tmp_path / "less", train__steps=9, train__max_skipped=2)
