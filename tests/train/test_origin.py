"""The start of a run flows one way: the lineage is read once, each growth map is made once."""

from collections import Counter

import pytest

from prts_jax.checkpoint import layout
from prts_jax.checkpoint.layout import resolve
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.growth import operators
from prts_jax.train import loop
from prts_jax.train.origin import find_origin
from prts_jax.train.stages import remaining_stages
from tests.train import tiny
from tests.train.tiny import changed

GROWN = [{"steps": 1, "model": {"layers": 4}}, {"steps": 1}]


@pytest.fixture
def counts(monkeypatch) -> Counter:
    """Counts the lineages read, by file, and the growth maps made, as "maps"."""
    counter: Counter = Counter()
    from_json, find = Lineage.from_json, operators.find

    def counting_from_json(values, where):
        counter[where] += 1
        return from_json(values, where)

    def counting_find(name):
        counter["maps"] += 1
        return find(name)

    monkeypatch.setattr(Lineage, "from_json", counting_from_json)
    monkeypatch.setattr(operators, "find", counting_find)  # every make_map calls it once
    return counter


def lineage_file(checkpoint: str) -> str:
    return f"{checkpoint}/{layout.LINEAGE}/{layout.LINEAGE_FILE}"


def test_a_run_reads_its_origin_once_and_makes_each_growth_map_once(
    base, configure, tmp_path, counts
):
    config = configure(
        model=tiny.deeper(8),
        init__grow_from=str(base.workdir),
        growth__stages=GROWN,
        data__validation="",
    )
    loop.train(config, str(tmp_path))
    source, between = resolve(str(base.workdir)), f"{tmp_path}/checkpoints/7"
    assert counts == {lineage_file(source): 1, lineage_file(between): 1, "maps": 2}

    counts.clear()
    loop.train(config, str(tmp_path))  # finished: restores the newest checkpoint, and ends
    assert counts == {lineage_file(resolve(str(tmp_path))): 1}


def test_a_growth_after_an_allowed_change_of_the_model_starts_from_the_changed_model(base):
    stages = [{"steps": 8, "model": {"layers": 2}}, {"steps": 1}]
    config = changed(base.config, model=tiny.deeper(4), model__norm_eps=1e-3, growth__stages=stages)
    origin = find_origin(config, str(base.workdir))
    resumed, grown = remaining_stages(config, origin)
    assert resumed.growth_map is None
    assert grown.growth_map.source == resumed.config.model
    assert grown.growth_map.source.norm_eps == 1e-3


def test_a_next_stage_of_the_same_model_starts_unchanged(base):
    staged = changed(base.config, growth__stages=[{"steps": 6}, {"steps": 1}])
    (stage,) = remaining_stages(staged, find_origin(staged, str(base.workdir)))
    assert (stage.index, stage.growth_map) == (1, None)
