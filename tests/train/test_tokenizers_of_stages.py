"""Every stage of a run trains on tokens of the model's tokenizer, checked before the first step."""

import pytest

from prts_jax.errors import UserError
from prts_jax.train import loop
from prts_jax.train.origin import Origin, find_origin
from prts_jax.train.stages import remaining_stages
from prts_jax.train.start import check_stores
from tests.train import tiny
from tests.train.tiny import changed


@pytest.fixture
def stages(tmp_path):
    """Returns two stages; the second trains on a store of the tokenizer with this sha256."""

    def make(tokenizer: str) -> list[dict]:
        store = tiny.write_store(tmp_path / f"store-{tokenizer[0]}", 900, 7, tokenizer=tokenizer)
        return [{"steps": 8}, {"steps": 1, "data": {"train": store.directory, "validation": ""}}]

    return make


@pytest.mark.parametrize("start", ["fresh", "started from a checkpoint", "resumed"])
def test_a_later_stage_on_a_store_of_another_tokenizer_is_refused_first(base, stages, start):
    own = find_origin(base.config, str(base.workdir))
    foreign = Origin(own.path, own.lineage, own=False)
    origin = {"fresh": None, "resumed": own}.get(start, foreign)
    same = changed(base.config, growth__stages=stages("0"))
    check_stores(remaining_stages(same, origin), origin, ())
    other = changed(base.config, growth__stages=stages("1" * 64))
    with pytest.raises(UserError, match=r"another tokenizer \(sha256 111111111111\)"):
        check_stores(remaining_stages(other, origin), origin, ("data.store",))


def test_nothing_is_written_then(base, stages, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError, match="another tokenizer"):
        loop.train(changed(base.config, growth__stages=stages("1" * 64)), str(run))
    assert not run.exists()


def test_a_stage_that_begins_on_a_store_of_another_tokenizer_is_refused(base, stages):
    """The store was replaced after the run had started."""
    steps = [{"steps": 6}, stages("1" * 64)[1]]
    config = changed(base.config, growth__stages=steps)
    with pytest.raises(UserError, match=r"store-1: its tokens are of another tokenizer"):
        loop.train(config, str(base.workdir))
