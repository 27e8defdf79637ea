"""The shipped studies: valid at every size, and fair."""

from pathlib import Path

import pytest

from prts_jax import config
from prts_jax.cli import study as command
from prts_jax.growth.operators import make_map
from prts_jax.study.design import Cell, Folder, equal_steps
from prts_jax.study.execute import resolved
from prts_jax.train.schedule import goes_on, learning_rate
from prts_jax.train.stages import remaining_stages
from tests.conftest import ROOT

STUDIES = sorted(path for path in Path(ROOT, "configs/study").glob("*.py") if path.stem != "sizes")


@pytest.mark.parametrize("size", ["smoke", "quick", "cpu", "gpu", "paper"])
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_way_spends_what_scratch_spends(path, size):
    study = command.load(f"{path}:{size}")
    flops = {arm.name: Cell(arm, arm.rates()[0], 0).flops() for arm in study.arms}
    spent = {
        arm.name: flops[arm.name] + flops.get(arm.base, 0.0)
        for arm in study.arms
        if arm.kind == "grown"
    }
    assert spent
    assert spent == pytest.approx(dict.fromkeys(spent, flops["scratch"]), rel=0.03)
    assert len(study.seeds) == (2 if size == "smoke" else 3)


@pytest.mark.parametrize("file", [path.name for path in STUDIES])
def test_every_growth_is_possible_with_every_seed(file):
    """Through the planning of a run, which makes the maps of all growths from shapes alone."""
    variant = {"factor.py": ",4", "optimizers.py": ",muon", "state.py": ",width"}.get(file)
    for argument in filter(None, ("cpu", variant and f"cpu{variant}")):
        _plan_every_growth(command.load(f"{ROOT}/configs/study/{file}:{argument}"))


def _plan_every_growth(study):
    folder = Folder(Path("study"))
    ended = {Cell(arm, arm.rates()[0], seed).name: 3.0 for arm in study.arms for seed in (0, 1)}
    ended |= {Cell(arm, peak, 0).name: 3.0 for arm in study.arms for peak in arm.rates()}
    for arm in study.arms:
        run = resolved(study, Cell(arm, arm.rates()[0], 1), ended, folder)
        if arm.base:
            source = config.resolve(study.arm(arm.base).config).model
            assert make_map(source, run.model, **config.to_dict(run.init.growth))
        remaining_stages(run, None)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_scratch_is_swept_as_carefully_as_what_is_compared_with_it(path):
    study = command.load(f"{path}:cpu")
    assert len({arm.peaks for arm in study.arms}) == 1


@pytest.mark.parametrize("policy", ["reset", "keep"])
@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_a_decay_ends_with_the_run_whether_or_not_it_counts_the_steps_of_the_base(policy, kind):
    study = command.load(f"{ROOT}/configs/study/state.py:cpu")
    run = config.resolve(study.arm(f"{policy}-depth-{kind}").config)
    base = study.arm("shallow").config.train.steps
    rates = [
        float(learning_rate(goes_on(run, None).schedule, step, base))
        for step in (run.train.steps - 2, run.train.steps - 1, run.train.steps)
    ]
    assert rates[0] > rates[1] > rates[2]
    assert rates[2] == pytest.approx(run.schedule.peak * run.schedule.final)


def test_a_longer_run_of_the_factor_study_has_more_tokens():
    short, long = (command.load(f"{ROOT}/configs/study/factor.py:cpu{x}") for x in ("", ",4"))
    steps = [study.arm("scratch").config.train.steps for study in (short, long)]
    assert steps == [800, 3200]
    assert equal_steps(Cell(long.arms[0], 1, 0).flops(), long.arms[0].config) == 3200
