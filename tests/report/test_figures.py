import io
import json

import numpy as np
import pytest
from matplotlib.image import imread

from prts_jax.report import figures
from prts_jax.report.comparison import compare
from prts_jax.report.style import BASELINE_COLOUR, COLOURS
from tests.report.synthetic import power_law, read_runs, write_family, write_run, write_staged

LOSS = power_law(8.0, 2.5, 1e10)


@pytest.fixture
def family(tmp_path):
    return compare(read_runs([str(path) for path in write_family(tmp_path)]))


def lines_by_label(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_figures_are_1000_pixels_wide(family):
    pictures = figures.draw_all(family)
    assert list(pictures) == [
        "loss_over_flops.png",
        "loss_over_tokens.png",
        "loss_over_time.png",
        "loss_by_source.png",
    ]
    for png in pictures.values():
        assert imread(io.BytesIO(png)).shape[1] == 1000


def test_the_grown_curve_begins_where_its_base_ends(family):
    lines = lines_by_label(figures.over_flops(family).axes[0])
    base, grown = lines["base (3L128H)"], lines["grown (12L128H)"]
    assert base.get_xdata()[-1] == grown.get_xdata()[0] == pytest.approx(0.6)
    assert base.get_color() == grown.get_color()
    assert lines["scratch (12L128H)"].get_color() == BASELINE_COLOUR


def test_the_arrow_spans_the_flops_at_equal_loss(family):
    level = family.best_level()
    texts = figures.over_flops(family).axes[0].texts
    [arrow] = [text for text in texts if getattr(text, "arrow_patch", None) is not None]
    assert arrow.xy == (level.flops_run / 1e12, level.loss)
    assert arrow.xyann == (level.flops_baseline / 1e12, level.loss)
    assert any(f"{100 * level.speedup:+.1f}% speed-up" in text.get_text() for text in texts)


def test_the_lowest_common_loss_is_shown_if_the_primary_is_not_reached(tmp_path):
    scratch = write_run(tmp_path / "scratch", LOSS)
    grown = write_run(tmp_path / "grown", LOSS, steps=300, init__grow_from="elsewhere")
    level = compare(read_runs([str(scratch), str(grown)])).best_level()
    assert level.at == "the lowest of both"
    assert level.speedup == pytest.approx(0)


def test_time_includes_the_base(family):
    over_time = figures.loss_over(family, figures.TIME)
    grown = lines_by_label(over_time.axes[0])["grown (12L128H)"]
    # The base took 60 s, the grown run 200 s.
    np.testing.assert_allclose(grown.get_xdata()[[0, -1]], [60 / 60, 260 / 60])


def test_the_steep_first_steps_are_cut_off(family):
    low, high = figures.over_flops(family).axes[0].get_ylim()
    assert high < 5 < 8.0
    assert low < min(run.last("validation_loss") for run in family.runs)


def test_every_source_has_a_panel(family):
    panels = figures.by_source(family).axes
    assert [panel.get_title(loc="left") for panel in panels] == family.sources()


def test_training_loss_is_drawn_without_validation(tmp_path):
    workdir = write_run(tmp_path / "run", LOSS, steps=100)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if not k.startswith("validation")} for row in rows]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    comparison = compare(read_runs([str(workdir)]))
    axes = figures.over_flops(comparison).axes[0]
    assert axes.get_ylabel() == "training loss (nats / token)"
    assert len(axes.get_lines()[0].get_xdata()) == 10
    assert "loss_by_source.png" not in figures.draw_all(comparison)


def test_a_run_of_one_evaluation_can_be_drawn(tmp_path):
    workdir = write_run(tmp_path / "run", LOSS, steps=0)
    assert figures.draw_all(compare(read_runs([str(workdir)])))


def test_more_runs_than_colours_can_be_drawn(tmp_path):
    names = [f"run{i}" for i in range(len(COLOURS) + 2)]
    runs = read_runs([str(write_run(tmp_path / name, LOSS, steps=100)) for name in names])
    assert figures.draw_all(compare(runs))


def test_without_metrics_there_are_no_figures(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert figures.draw_all(compare(read_runs([str(tmp_path)]))) == {}


def test_several_children_of_a_base_share_one_growth_point(tmp_path):
    base, grown, scratch = write_family(tmp_path)
    start = json.loads((grown / "metrics.jsonl").read_text().splitlines()[0])
    other = write_run(tmp_path / "other", LOSS, start=start, init__grow_from=str(base))
    runs = read_runs([str(path) for path in (base, grown, scratch, other)])
    texts = [text.get_text() for text in figures.over_flops(compare(runs)).axes[0].texts]
    assert texts.count("growth 3L128H → 12L128H") == 1


def test_every_growth_of_a_run_in_stages_has_a_star(tmp_path):
    staged = write_staged(tmp_path)
    scratch = write_run(tmp_path / "scratch", power_law(8.0, 2.7, 4e10), 3000, 12, 1e5)
    comparison = compare(read_runs([f"staged={staged}", str(scratch)]))
    assert comparison.baseline is not None
    assert comparison.baseline.label == "scratch"
    axes = figures.over_flops(comparison).axes[0]
    stars = [line for line in axes.lines if line.get_marker() == "*"]
    assert [float(star.get_xdata()[0]) for star in stars] == [50.0, 100.0]  # 10^9 FLOPs
    assert [text.get_text() for text in axes.texts if "growth" in text.get_text()] == [
        "growth 3L128H → 6L128H",
        "growth 6L128H → 12L128H",
    ]
