import json

from prts_jax.report.comparison import as_json, compare
from tests.report.synthetic import SOURCES, power_law, read_runs, write_family, write_run

LOSS = power_law(8.0, 2.5, 1e10)


def family(tmp_path):
    return compare(read_runs([str(path) for path in write_family(tmp_path)]))


def test_bases_are_not_compared_with_the_baseline(tmp_path):
    comparison = family(tmp_path)
    assert list(comparison.levels) == ["grown"]
    assert comparison.notes == []


def test_the_speedup_equals_the_formula(tmp_path):
    comparison = family(tmp_path)
    [primary, *_] = comparison.levels["grown"]
    # The baseline ends at 2.6e12 FLOPs. The grown run's own FLOPs to the same loss solve
    # 2.6 + 2 (1 + f / 4e10)^-0.35 = 2.6 + 5.4 (1 + 260)^-0.35; the base took 6e11.
    own = 4e10 * (261 * (5.4 / 2.0) ** (-1 / 0.35) - 1)
    # Straight lines between evaluations 1e11 apart lie a little above the curve.
    assert abs(primary.speedup - (2.6e12 / (6e11 + own) - 1)) < 0.01


def test_sources_are_the_validation_sets_of_all_runs(tmp_path):
    assert family(tmp_path).sources() == sorted(SOURCES)


def test_configs_are_compared_key_by_key(tmp_path):
    differences = family(tmp_path).config_differences()
    assert differences == {
        "init.grow_from": ["", str(tmp_path / "base"), ""],
        "model.layers": [3, 12, 12],
        "train.steps": [1500, 2000, 2600],
    }


def test_notes_name_missing_metrics_and_bases(tmp_path):
    _, grown, baseline = write_family(tmp_path)
    (baseline / "DONE").unlink()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text("{}")
    notes = compare(read_runs([str(grown), str(baseline), str(tmp_path / "new")])).notes
    assert notes == [
        "The time of grown excludes its base, which is not among the runs.",
        "scratch is not finished (running); its figures are preliminary.",
        "new has no metrics yet.",
        "new is not finished (running); its figures are preliminary.",
    ]


def test_a_note_says_why_decaying_runs_are_compared_only_at_their_ends(tmp_path):
    names = ("one", "two")
    runs = [write_run(tmp_path / n, LOSS, steps=100, schedule__kind="cosine") for n in names]
    [note] = compare(read_runs([str(path) for path in runs]), baseline="one").notes
    assert note.startswith("No speed-up at 25%, 50%, 75% of the FLOPs of one for two: the learning")


def test_a_note_asks_for_an_ambiguous_baseline(tmp_path):
    runs = read_runs([str(write_run(tmp_path / name, LOSS, steps=100)) for name in ("a", "b")])
    [note] = compare(runs).notes
    assert "choose one with --baseline" in note
    assert compare(runs, baseline="a").notes == []


def test_json_holds_no_nan(tmp_path):
    workdir = write_run(tmp_path / "run", LOSS, steps=100)
    with (workdir / "metrics.jsonl").open("a") as metrics:
        row = {"step": 110, "stage_step": 110, "tokens": 1, "flops": 1.0, "loss": float("nan")}
        metrics.write(json.dumps(row) + "\n")
    comparison = compare(read_runs([str(workdir)]))
    assert comparison.notes == ["run has diverged: its newest training loss is not a number."]
    [run] = json.loads(json.dumps(as_json(comparison), allow_nan=False))["runs"]
    assert run["loss"] is None
    assert run["validation_loss"] == LOSS(1e11)


def test_json_separates_a_run_from_its_ancestors(tmp_path):
    report = as_json(family(tmp_path))
    base, grown, scratch = report["runs"]
    assert grown["base"] == "base"
    assert grown["ancestors"] == {key: base[key] for key in ("tokens", "flops", "flops_6nd")}
    assert scratch["ancestors"] == {"tokens": 0, "flops": 0, "flops_6nd": 0}
    assert report["speedup"]["baseline"] == "scratch"
    assert grown["speedup"] == report["speedup"]["levels"][0]["speedup"]
    assert set(grown["per_source"]) == set(SOURCES)
