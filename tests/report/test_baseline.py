import json

import pytest

from prts_jax.errors import UserError
from prts_jax.report import baseline
from tests.report.synthetic import power_law, read_runs, write_family, write_run

LOSS = power_law(8.0, 2.5, 1e10)


def row_at(workdir, step):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return next(line for line in lines if line["step"] == step)


def labels_of_bases(runs):
    return {label: base.label for label, base in baseline.find_bases(runs).items()}


def test_a_config_names_the_base(tmp_path):
    runs = read_runs([str(path) for path in write_family(tmp_path)])
    assert labels_of_bases(runs) == {"grown": "base"}


@pytest.mark.parametrize("suffix", ["/", "@500", "/checkpoints/500"])
def test_a_step_of_a_base_names_the_base_too(tmp_path, suffix):
    base = write_run(tmp_path / "base", LOSS, layers=3)
    other = write_run(tmp_path / "base2", LOSS, layers=3)
    grown = write_run(
        tmp_path / "grown", LOSS, start=row_at(base, 500), init__grow_from=f"{base}{suffix}"
    )
    runs = read_runs([str(base), str(other), str(grown)])
    assert labels_of_bases(runs) == {"grown": "base"}


def test_a_base_is_matched_by_its_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("base", "twin"):
        write_run(tmp_path / name, LOSS, layers=3)
    grown = write_run(
        tmp_path / "grown", LOSS, start=row_at(tmp_path / "base", 500), init__grow_from="./base"
    )
    runs = read_runs([str(tmp_path / "base"), str(tmp_path / "twin"), str(grown)])
    assert labels_of_bases(runs) == {"grown": "base"}


def test_a_base_of_a_grown_checkpoint_is_matched_by_flops_and_tokens(tmp_path):
    base = write_run(tmp_path / "base", LOSS, layers=3, flops_per_token=4e5)
    scratch = write_run(tmp_path / "scratch", LOSS)
    # 505 steps fall between two lines of the base.
    start = {"tokens": 505_000, "flops": 505_000 * 4e5, "flops_6nd": 1.25 * 505_000 * 4e5}
    grown = write_run(tmp_path / "grown", LOSS, start=start, init__start_from="grown/checkpoint")
    runs = read_runs([str(scratch), str(grown), str(base)])
    assert labels_of_bases(runs) == {"grown": "base"}


def test_two_matching_bases_are_ambiguous(tmp_path):
    one, two = (write_run(tmp_path / name, LOSS, layers=3) for name in ("one", "two"))
    grown = write_run(tmp_path / "grown", LOSS, start=row_at(one, 500))
    assert labels_of_bases(read_runs([str(one), str(two), str(grown)])) == {}


def test_seconds_before_add_up_over_generations(tmp_path):
    small = write_run(tmp_path / "small", LOSS, layers=3, flops_per_token=2e5)
    # The small run went on after 500 steps; only what the next one builds on counts.
    middle = write_run(
        tmp_path / "middle", LOSS, start=row_at(small, 500), init__grow_from=str(small)
    )
    large = write_run(
        tmp_path / "large", LOSS, start=row_at(middle, 1000), init__grow_from=str(middle)
    )
    runs = read_runs([str(small), str(middle), str(large)])
    bases = baseline.find_bases(runs)
    before = {run.label: baseline.seconds_before(run, bases) for run in runs}
    assert before == {"small": 0.0, "middle": 10.0, "large": 110.0}


def test_seconds_before_are_unknown_without_the_base(tmp_path):
    _, grown, _ = write_family(tmp_path)
    [run] = read_runs([str(grown)])
    assert baseline.seconds_before(run, {}) is None


def test_the_baseline_is_the_run_that_neither_grew_nor_is_a_base(tmp_path):
    runs = read_runs([str(path) for path in write_family(tmp_path)])
    assert baseline.find_baseline(runs, baseline.find_bases(runs)).label == "scratch"


def test_among_several_the_baseline_has_the_grown_runs_shape(tmp_path):
    family = write_family(tmp_path)
    smaller = write_run(tmp_path / "smaller", LOSS, layers=6)
    runs = read_runs([str(path) for path in (smaller, *family)])
    assert baseline.find_baseline(runs, baseline.find_bases(runs)).label == "scratch"


def test_a_base_alone_is_no_baseline_for_its_child(tmp_path):
    base, grown, _ = write_family(tmp_path)
    runs = read_runs([str(base), str(grown)])
    assert baseline.find_baseline(runs, baseline.find_bases(runs)) is None


def test_two_runs_from_scratch_need_a_named_baseline(tmp_path):
    runs = read_runs([str(write_run(tmp_path / name, LOSS)) for name in ("one", "two")])
    assert baseline.find_baseline(runs, {}) is None
    assert baseline.find_baseline(runs, {}, "two").label == "two"


def test_an_unknown_baseline_is_refused(tmp_path):
    runs = read_runs([str(write_run(tmp_path / "one", LOSS))])
    with pytest.raises(UserError, match="--baseline=three: no run has this label; the runs are"):
        baseline.find_baseline(runs, {}, "three")
