"""`prts train` from the command line: its flags, its config, and one line for every mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.store.store import TokenStore
from prts_jax import cli
from prts_jax.config import to_dict
from tests.conftest import ROOT, prts_environment
from tests.train import tiny

CONFIG = "--config=tests/train/tiny.py"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.write_store(tmp_path_factory.mktemp("stores") / "train", 2000).directory)


def config_file(folder: Path, body: str) -> str:
    """Writes a config file whose `get_config` has `body` between its first and last line."""
    path = folder / "config.py"
    path.write_text(
        "from prts_jax import config\n\n\ndef get_config():\n    c = config.default_config()\n"
        f"    {body}\n    return c\n"
    )
    return f"--config={path}"


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs `prts train` here, expects exit code 2, and returns its one line."""
    assert cli.main(["train", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("prts train: ")
    return line


def test_print_config_prints_the_resolved_whole(capsys):
    assert cli.main(["train", CONFIG, "--config.data.batch=4", "--print_config"]) == 0
    printed = json.loads(capsys.readouterr().out)
    expected = tiny.run_config(data__batch=4)
    assert printed == to_dict(expected)
    assert printed["model"]["layers"] == 2
    assert printed["optimizer"]["b2"] == 0.95


def test_a_key_that_the_file_leaves_out_can_be_given_by_a_flag(tmp_path, capsys):
    file = tmp_path / "config.py"
    file.write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n"
        "    return ConfigDict({'model': {'layers': 2}})\n"
    )
    arguments = [f"--config={file}", "--config.data.batch=3", "--config.init.growth.factor=2"]
    assert cli.main(["train", *arguments, "--print_config"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["model"]["layers"] == 2
    assert (printed["data"]["batch"], printed["init"]["growth"]["factor"]) == (3, 2)


def test_a_printed_config_is_a_config_file(tmp_path, capsys):
    file = tmp_path / "config.json"
    assert cli.main(["train", CONFIG, "--config.data.batch=4", "--print_config"]) == 0
    file.write_text(capsys.readouterr().out)
    assert cli.main(["train", f"--config={file}", "--config.data.seed=3", "--print_config"]) == 0
    assert json.loads(capsys.readouterr().out) == to_dict(
        tiny.run_config(data__batch=4, data__seed=3)
    )


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, '{"model": {"layers": "2"}}', "\xff"]
)
def test_a_damaged_json_config_is_one_line(text, tmp_path, capsys):
    file = tmp_path / "config.json"
    file.write_bytes(text.encode("latin-1"))
    assert "config" in refusal(capsys, f"--config={file}", "--print_config")


@pytest.mark.parametrize("value", ["x" * 100_000, "[" * 100_000, "9" * 5000, "a\nb", "\x1b[31m"])
@pytest.mark.parametrize("flag", ["--config.data.batch", "--config.model", "--config", "--workdri"])
def test_an_odd_value_ends_in_one_short_line(flag, value, capsys):
    line = refusal(capsys, CONFIG, f"{flag}={value}")
    assert line.isprintable()
    assert len(line) < 1500


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for flag in (
        "--workdir",
        "--allow_change",
        "--print_config",
        "--multihost",
        "--coordinator",
        "--processes",
        "--process",
        "--config=FILE.py[:arg]",
        "--config.a.b=value",
    ):
        assert flag in shown


def test_a_flag_may_be_parted_from_its_value_by_a_space(capsys):
    arguments = ["train", "--config", "tests/train/tiny.py", "--config.data.batch", "4"]
    assert cli.main([*arguments, "--print_config"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["batch"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CONFIG], "--workdir: is missing"),
        ([], "--config: is missing"),
        (["--config=configs/none.py"], "there is no file configs/none.py"),
        ([CONFIG, "--wrkdir=x"], "unrecognized arguments: --wrkdir=x; see `prts train --help`"),
        ([CONFIG, "--work=x"], "unrecognized arguments: --work=x"),
        (["--config=configs/paper.py:1.1b"], "'1.1b' is not SIZE,RUN"),
        (["--config=configs/paper.py:1.1b,bse"], "run 'bse' is none of base, grown, scratch"),
        (["--config=configs/quickstart.py:base,lng"], "size 'lng' is none of short, long"),
        ([f"{CONFIG}:argument"], "takes 0 positional arguments but 1 was given"),
        (
            [CONFIG, "--config.data.bacth=4"],
            "--config.data.bacth: no such key; did you mean 'batch",
        ),
        ([CONFIG, "--config.dta.batch=4"], "--config.dta: no such key; did you mean 'data'"),
        ([CONFIG, "--config.data.batch.x=4"], "--config.data.batch.x: no such key"),
        ([CONFIG, "--config.data.batch=many"], "batch"),
        ([CONFIG, "--config.data.batch=1.5"], "batch"),
        ([CONFIG, "--config.data.batch"], "--config.data.batch: has no value"),
        ([CONFIG, "--config.schedule.peak=nan"], "config.schedule.peak: is nan"),
        ([CONFIG, "--config.schedule.kind=cosin"], "did you mean 'cosine'?"),
        ([CONFIG, "--config.model.heads=3"], "config.model.heads: 3 heads do not divide among"),
        ([CONFIG, "--config.train.accumulation=3"], "config.train.accumulation: 3 does not divide"),
        ([CONFIG, "--config.train.steps=0"], "config.train.steps: is 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_in_the_flags_ends_in_one_line(capsys, arguments, message):
    assert message in refusal(capsys, *arguments)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("c.data.bacth = 4", "batch"),
        ("c.data.batch = 'many'", "batch"),
        ("c.data = 4", "data"),
        ("c.modle = {}", "model"),
        ("c.data.batch =", "line 6: invalid syntax"),
        ("1 / 0", "line 6: division by zero"),
        ("import nowhere", "No module named 'nowhere"),
        ("return 3", "get_config returns no ConfigDict"),
        ("raise ValueError(\"'a' is not 'b'\")", "line 6: 'a' is not 'b'"),
        ("import sys; sys.exit(3)", "line 6: it ends the command"),
    ],
)
def test_a_mistake_in_the_config_file_ends_in_one_line(capsys, tmp_path, body, message):
    line = refusal(capsys, config_file(tmp_path, body), "--print_config")
    assert "config.py" in line
    assert message in line


def test_a_config_file_without_get_config_is_refused(capsys, tmp_path):
    (tmp_path / "empty.py").write_text("")
    assert "get_config" in refusal(capsys, f"--config={tmp_path / 'empty.py'}", "--print_config")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.data.train=/nowhere"], "no finished token store: /nowhere"),
        (["--config.init.grow_from=/nowhere"], "/nowhere: does not exist"),
        (["--allow_change=data.sede"], "--allow_change=data.sede: no such key; did you mean"),
        (["--allow_change=batch"], "--allow_change=batch: no such key; did you mean 'data.batch'?"),
        (["--allow_change=qqq"], "--allow_change=qqq: no such key; --print_config shows them all"),
        (
            ["--config.mesh.tensor=4"],
            "config.mesh: data=1, fsdp=-1, sequence=1, tensor=4 does not fill 1",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_trained_ends_in_one_line(capsys, tmp_path, store, flags, message):
    train = f"--config.data.train={store}"
    assert message in refusal(
        capsys, CONFIG, train, *flags, f"--workdir={tmp_path / 'new' / 'run'}"
    )
    assert not (tmp_path / "new").exists()


def test_a_wrong_store_ends_in_one_line_and_changes_nothing(capsys, tmp_path, store):
    """Other text or another tokenizer, on resume, when starting from it, and to validate on."""
    text, tokenizer = (
        str(tiny.write_store(tmp_path / name, 2000, seed, tokenizer=sha256).directory)
        for name, seed, sha256 in (("text", 5, "0"), ("tokenizer", 0, "1" * 64))
    )
    run, new = tmp_path / "run", f"--workdir={tmp_path / 'new'}"
    train = f"--config.data.train={store}"
    resume = [CONFIG, "--config.train.steps=1", f"--workdir={run}"]
    start_from = [CONFIG, f"--config.init.start_from={run}", new]
    assert cli.main(["train", *resume, train]) == 0
    capsys.readouterr()

    def files() -> dict[Path, int]:
        actual = (path for path in run.rglob("*") if path.name != ".lock")
        return {path: path.stat().st_mtime_ns for path in actual}

    before = files()
    for other in (text, tokenizer):
        fingerprints = [TokenStore.open(folder).fingerprint[:12] for folder in (other, store)]
        for flags in (resume, start_from):
            assert refusal(capsys, *flags, f"--config.data.train={other}") == (
                f"prts train: config.data.train: {other!r} is not what the checkpoint was trained "
                f"on (fingerprint {fingerprints[0]}, not {fingerprints[1]}); set it back, or pass "
                "--allow_change=data.store to start from its beginning"
            )
    assert refusal(capsys, CONFIG, train, f"--config.data.validation={tokenizer}", new) == (
        f"prts train: config.data.validation: the tokens of {tokenizer} are of another tokenizer "
        f"(sha256 111111111111) than those of {store} (0); cache both with the same --tokenizer"
    )
    assert files() == before


def test_a_workdir_that_cannot_be_written_ends_in_one_line(capsys, tmp_path, store):
    (tmp_path / "file").write_text("")
    line = refusal(capsys, CONFIG, f"--config.data.train={store}", f"--workdir={tmp_path / 'file'}")
    assert "cannot be written" in line


def test_an_incomplete_set_of_processes_is_refused(capsys, tmp_path, store):
    arguments = (CONFIG, f"--config.data.train={store}", f"--workdir={tmp_path}")
    line = refusal(capsys, *arguments, "--coordinator=localhost:1234")
    assert "--coordinator: needs --processes=N and --process=0…N-1" in line


@pytest.mark.parametrize("module", [["prts_jax.cli", "train"], ["prts_jax.cli.train"]])
def test_both_ways_to_call_it_refuse_without_a_traceback(module):
    done = subprocess.run(
        [sys.executable, "-m", *module, CONFIG],
        cwd=ROOT,
        env=prts_environment(1, None),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "prts train: --workdir: is missing; give the run's directory, --workdir=DIR\n"
    )


def test_training_never_loads_tensorflow(store, tmp_path):
    """Also while it writes metrics for TensorBoard and a checkpoint."""
    program = (
        "import sys\n"
        "from prts_jax import cli\n"
        "code = cli.main(sys.argv[1:])\n"
        "print(sorted({'tensorflow', 'seqio'} & sys.modules.keys()))\n"
        "sys.exit(code)\n"
    )
    arguments = [
        "train",
        CONFIG,
        f"--config.data.train={store}",
        f"--config.data.validation={store}",
        "--config.train.steps=2",
        "--config.logging.tensorboard=True",
        f"--workdir={tmp_path}",
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env=prts_environment(1, None),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "[]\n"
    assert os.listdir(tmp_path / "tensorboard")


@pytest.mark.slow
def test_a_workdir_grown_by_the_trainer_equals_what_prts_grow_writes(store: str, tmp_path: Path):
    """`prts grow` and `init.grow_from` write the same lineage and the same bits."""

    def prts(*arguments: str) -> None:
        assert cli.main(arguments) == 0

    base, streamed, grown = (tmp_path / name for name in ("base", "streamed", "grown"))
    run = (CONFIG, f"--config.data.train={store}", "--config.train.steps=1")
    deeper = ("--config.model.layers=8", "--config.schedule.peak=0.0")  # a step changes nothing
    prts("train", *run, f"--workdir={base}")
    prts("grow", f"--source={base}", f"--target={streamed}", "--factor=4")
    prts("train", *run, *deeper, f"--config.init.grow_from={base}", f"--workdir={grown}")
    tiny.assert_same(tiny.stored_params(grown), tiny.stored_params(streamed))
    started = tmp_path / "started"
    prts("train", *run, *deeper, f"--config.init.start_from={streamed}", f"--workdir={started}")
    assert tiny.curve(tiny.read_lines(started)) == tiny.curve(tiny.read_lines(grown))
