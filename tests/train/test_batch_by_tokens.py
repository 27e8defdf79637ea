"""A batch that grows with tokens: stages in tokens, micro-batches derived, one schedule."""

import pytest

from prts_jax.train.loop import train
from prts_jax.train.trace import batch_of_step
from tests.train import tiny

ROW = 16  # tokens


@pytest.mark.slow
def test_the_batch_grows_and_optimizer_and_schedule_go_on(configure, tmp_path):
    """As one stage with the first batch, then as one with the second; resumed in the second."""
    stages = [
        {"steps": f"{2 * 8 * ROW} tokens"},
        {"steps": f"{3 * 16 * ROW} tokens", "data": {"tokens_per_step": 16 * ROW}},
    ]
    keys = {
        "growth__stages": stages,
        "data__batch": 4,
        "data__tokens_per_step": 8 * ROW,
        "init__growth__optimizer": "keep",
        "schedule__warmup_steps": 4,
        "checkpoint__every_steps": 4,
    }
    train(configure(**keys), str(tmp_path))
    lines = tiny.read_lines(tmp_path)
    assert [line["tokens"] // ROW for line in lines] == [0, 8, 16, 32, 48, 64]
    rates = [line["learning_rate"] / 3e-3 for line in lines if "learning_rate" in line]
    assert rates == pytest.approx([0.25, 0.75, 1.0, 1.0], rel=1e-6)
    lineage = tiny.read_lineage(tiny.resolve(str(tmp_path)))
    data = lineage.config["data"]
    assert (data["batch"], data["tokens_per_step"]) == (16, 0)
    assert lineage.config["train"]["accumulation"] == 4
    traced = batch_of_step(str(tmp_path), 4)
    assert (traced.position // ROW, traced.batches.order.batch) == (32, 16)
    before = tiny.stored_params(tmp_path)
    for name in ("checkpoints/5", "DONE"):
        (tmp_path / name).rename(tmp_path / name.replace("/", "-"))
    (tmp_path / "checkpoints-5").rename(tmp_path.parent / "aside")
    train(configure(**keys), str(tmp_path))
    tiny.assert_same(tiny.stored_params(tmp_path), before)
