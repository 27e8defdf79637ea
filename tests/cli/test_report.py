import json
import subprocess
import sys

import pytest

from prts_jax.cli import run
from prts_jax.cli.report import main
from prts_jax.errors import UserError
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such directory"),
        (["run", "run"], "another run has the label 'run'"),
        (["run", "--baseline=other"], "no run has this label"),
        (["run", "--out=run/config.json"], "--out=run/config.json: cannot be written"),
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
