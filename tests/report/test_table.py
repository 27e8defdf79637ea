import time

import pytest

from prts_jax.heartbeats import Beat
from prts_jax.report import table
from prts_jax.report.comparison import as_json, compare
from prts_jax.text_table import duration
from tests.report.synthetic import power_law, read_runs, write_family, write_run

LOSS = power_law(8.0, 2.5, 1e10)


def cells(table):
    """Rows by their first cell, each as a dictionary by column."""
    return {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1.0, "1.000e0"), (1.2345e18, "1.234e18"), (9.9996e20, "1.000e21"), (None, "–")],
)
def test_flops_have_four_digits(value, text):
    assert table.flops(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (812, "812"),
        (2_097_152, "2.10M"),
        (10_485_760_000, "10.5B"),
        (627e9, "627B"),
        (999_900, "1.00M"),
        (1.2e12, "1.20T"),
        (None, "–"),
    ],
)
def test_quantities_have_three_digits_and_a_unit(value, text):
    assert table.quantity(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(42.4, "42 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_durations_have_units(seconds, text):
    assert duration(seconds) == text


def test_the_run_table_includes_ancestors(tmp_path):
    rows = cells(table.run_table(compare(read_runs([str(p) for p in write_family(tmp_path)]))))
    assert rows["base"]["of ancestors"] == "–"
    assert rows["grown"]["of ancestors"] == rows["base"]["FLOPs"] == "6.000e11"
    assert rows["grown"]["tokens"] == "3.50M"
    assert rows["grown"]["model"] == "12L128H"
    assert rows["scratch"]["speed-up"] == "baseline"
    assert rows["grown"]["speed-up"].startswith("+")
    assert rows["base"]["speed-up"] == "–"


def test_an_unfinished_run_has_not_reached_the_loss(tmp_path):
    scratch = write_run(tmp_path / "scratch", LOSS)
    going = write_run(tmp_path / "going", LOSS, steps=100, done=False, init__grow_from="elsewhere")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text("{}")
    runs = read_runs([str(scratch), str(going), str(tmp_path / "new")])
    comparison = compare(runs, "scratch")
    rows = cells(table.run_table(comparison))
    assert rows["going"]["speed-up"] == "not reached"
    assert rows["going"]["state"] == "running at 100%"
    assert rows["new"]["state"] == "no metrics yet"
    assert rows["new"]["val. loss"] == rows["new"]["FLOPs"] == "–"
    [primary, common, *_] = table.speedup_table(comparison).rows
    assert primary[4:] == ("not reached", "–", "–")
    assert common[1] == "the lowest of both"


def test_a_gap_of_the_metrics_is_said_in_the_run_table(tmp_path):
    workdir = write_run(tmp_path / "run", power_law(4.0, 2.0, 1e9))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    del lines[9:20]
    lines[9] = lines[9].replace("{", '{"gap_after": 80, ', 1)  # as a resumed run writes it
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    [run] = read_runs([str(workdir)])
    assert run.gaps() == [(80, 200)]
    [row] = table.run_table(compare([run])).rows
    assert row[2] == "finished; no metrics from step 80 to 200"


def test_tables_without_content_are_left_out(tmp_path):
    workdir = tmp_path / "new"
    workdir.mkdir()
    (workdir / "config.json").write_text("{}")
    comparison = compare(read_runs([str(workdir)]))
    assert table.speedup_table(comparison) is None
    assert table.source_table(comparison) is None
    assert table.config_table(comparison) is None
    assert table.hosts_table(comparison) is None


def test_the_hosts_of_a_run_have_a_row_each(tmp_path):
    workdir = write_run(tmp_path / "a", LOSS, done=False)
    (workdir / "heartbeats").mkdir()
    for host in (1, 0):
        beat = Beat(host, f"w-{host}", time.time() - 60 * host, 30, time.time() - 400)
        (workdir / f"heartbeats/host_{host}.json").write_text(beat.to_json())
    (workdir / "heartbeats/.host_0.json.123").write_text('{"being": "writt')
    comparison = compare(read_runs([str(workdir)]))
    shown = table.hosts_table(comparison)
    assert cells(shown)["a"]["last beat"] == "1 min 00 s"
    assert [row[1:4] for row in shown.rows] == [
        ("0 w-0", "stands still", "30"),
        ("1 w-1", "stands still", "30"),
    ]
    [run] = as_json(comparison)["runs"]
    assert [host["host"] for host in run["hosts"]] == [0, 1]
