import html
import json
import subprocess
import sys

import pytest

from prts_jax.cli import run
from prts_jax.cli.report import main
from prts_jax.errors import UserError, escaped
from tests.report.synthetic import power_law, write_family, write_run

LOSS = power_law(8.0, 2.5, 1e10)


def test_a_report_has_tables_a_page_and_figures(tmp_path, capsys):
    runs = [str(path) for path in write_family(tmp_path)]
    assert main([*runs, f"--out={tmp_path / 'out'}"]) == 0
    printed = capsys.readouterr().out
    assert "Speed-up at equal validation loss against scratch." in printed
    assert "Nothing is extrapolated" in " ".join(printed.split())
    assert printed.endswith(f"wrote {tmp_path}/out/report.html and 4 figures beside it\n")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.html",
        "loss_over_flops.png",
        "loss_over_tokens.png",
        "loss_over_time.png",
        "loss_by_source.png",
    }


def test_json_is_one_object(tmp_path, capsys):
    runs = [str(path) for path in write_family(tmp_path)]
    assert main([*runs, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [run["label"] for run in report["runs"]] == ["base", "grown", "scratch"]
    assert set(report["speedup"]) == {"definition", "baseline", "levels"}
    assert report["files"] == []


def test_a_report_of_a_running_run_can_be_repeated(tmp_path, capsys):
    workdir = write_run(tmp_path / "run", LOSS, steps=100, done=False, train__steps=200)
    arguments = [str(workdir), f"--out={tmp_path / 'out'}", "--json"]
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    before = (tmp_path / "out" / "loss_over_flops.png").read_bytes()
    row = {"step": 200, "stage_step": 200, "tokens": 2e5, "flops": 2e11, "validation_loss": 3.0}
    with (workdir / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps(row) + '\n{"step": 210')
    assert main(arguments) == 0
    second = json.loads(capsys.readouterr().out)
    assert (first["runs"][0]["step"], second["runs"][0]["step"]) == (100, 200)
    assert (tmp_path / "out" / "loss_over_flops.png").read_bytes() != before


def test_the_baseline_can_be_chosen(tmp_path, capsys):
    runs = [str(write_run(tmp_path / name, LOSS)) for name in ("one", "two")]
    assert main([*runs, "--baseline=two", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["speedup"]["levels"][0]["speedup"] == 0


NAMES = ["a$\\alpha$b_{", "e\x1b[31mred", "_hidden", "new\nline", "‮over"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_escaped(tmp_path, capsys, name):
    """On the terminal, on the page and in figures; "$" starts no formula there."""
    workdir = write_run(tmp_path / name, LOSS, steps=200)
    other = write_run(tmp_path / "other", LOSS, steps=200, init__grow_from=f"gone/{name}")
    arguments = [str(workdir), str(other), f"--baseline={name}", f"--out={tmp_path / name}-out"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    shown = escaped(name)
    assert all(line.isprintable() for line in printed.splitlines())
    assert shown in printed
    page = (tmp_path / f"{name}-out" / "report.html").read_text()
    assert html.escape(shown) in page


def test_seeds_are_summarised_by_mean_and_range(tmp_path, capsys):
    families = [write_family(tmp_path / str(seed)) for seed in range(3)]
    for seed, (_, grown, _) in enumerate(families):  # seed 2 needs more FLOPs for the same loss
        lines = map(json.loads, (grown / "metrics.jsonl").read_text().splitlines())
        scaled = [line | {"flops": line["flops"] * (1 + seed / 10)} for line in lines]
        (grown / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scaled))
    runs = [
        f"{name}={','.join(str(family[at]) for family in families)}"
        for at, name in enumerate(("base", "grown", "scratch"))
    ]
    assert main([*runs, "--json", "--baseline=scratch"]) == 0
    report = json.loads(capsys.readouterr().out)
    speedups = report["seeds"]["grown"]["speedup"]
    alone = []
    for family in families:
        assert main([*map(str, family), "--json", "--baseline=scratch"]) == 0
        [of_seed] = [
            r for r in json.loads(capsys.readouterr().out)["runs"] if r["label"] == "grown"
        ]
        alone.append(of_seed["speedup"])
    assert speedups["values"] == alone
    assert speedups["mean"] == pytest.approx(sum(alone) / 3)
    assert (speedups["low"], speedups["high"]) == (min(alone), max(alone))
    assert main([*runs, f"--out={tmp_path / 'out'}"]) == 0
    line = f"{100 * speedups['mean']:+.1f}% ({100 * min(alone):+.1f}% to {100 * max(alone):+.1f}%)"
    assert line in capsys.readouterr().out
    assert line in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such directory"),
        (["run", "run"], "another run has the label 'run'"),
        (["run", "--baseline=other"], "no run has this label"),
        (["run", "--out=run/config.json"], "--out=run/config.json: cannot be written"),
        (["a=run,run"], "run: is named twice for a"),
        (["a=run,run2,x", "b=run,run2"], "b: has 2 seeds and another run 3; give as many, or one"),
        (["x" * 5000], "no such directory"),
        (["a=gcs://b/x"], "gcs://b/x: paths of gcs:// are not supported; give gs://b/x"),
        (["run", "a=run,s3://b/x"], "s3://b/x: paths of s3:// are not supported; give a local"),
        (["run", "--out=" + "x/" * 5000], "cannot be written"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", LOSS, steps=100)
    before = (tmp_path / "run" / "config.json").read_text()
    with pytest.raises(UserError, match=message):
        main(arguments)
    assert run(main, arguments, "report") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "run" / "config.json").read_text() == before


def test_a_report_imports_neither_jax_nor_tensorflow(tmp_path):
    workdir = write_run(tmp_path / "run", LOSS, steps=100)
    program = (
        "import sys\n"
        "from prts_jax.cli.report import main\n"
        f"main([{str(workdir)!r}, '--out={tmp_path / 'out'}'])\n"
        "heavy = {'jax', 'flax', 'orbax', 'tensorflow', 'torch'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
