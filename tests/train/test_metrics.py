"""The log of a run: no step twice, valid JSON, the terminal line; also as segments."""

import json
import re
import resource

import pytest

from prts_jax.errors import LostLockError, StorageError, UserError
from prts_jax.train import metrics
from prts_jax.train.metrics import MetricsLog, TerminalLine, peak_flops, read_metrics


@pytest.fixture(params=["a file", "segments"])
def workdir(request, tmp_path, monkeypatch):
    """A workdir as on local disk, and one that is written as on gs://."""
    if request.param == "segments":
        monkeypatch.setattr(metrics, "is_remote", lambda path: True)
    return str(tmp_path)


def steps(workdir):
    return [line["step"] for line in read_metrics(workdir)]


def write(log, *numbers, note="first"):
    for step in numbers:
        log.write({"step": step, "loss": 1.0 / (step + 1), "note": note})


def test_lines_come_back_in_order(workdir):
    log = MetricsLog(workdir, None, tensorboard=False)
    write(log, 0, 1, 2)
    log.flush()
    write(log, 3)
    log.close()
    assert steps(workdir) == [0, 1, 2, 3]
    assert read_metrics(workdir)[1] == {"step": 1, "loss": 0.5, "note": "first"}


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(workdir):
    log = MetricsLog(workdir, None, tensorboard=False)
    write(log, 0, 1, 2)
    log.flush()
    write(log, 3, 4)
    log.flush()

    again = MetricsLog(workdir, after_step=2, tensorboard=False)
    assert [line["step"] for line in again.kept] == [0, 1, 2]
    assert steps(workdir) == [0, 1, 2]
    write(again, 3, 4, note="second")
    again.close()
    assert steps(workdir) == [0, 1, 2, 3, 4]
    assert [line["note"] for line in read_metrics(workdir)] == ["first"] * 3 + ["second"] * 2


def test_lines_that_a_full_disk_refuses_are_kept_and_written_whole_and_in_order(tmp_path):
    said = []
    log = MetricsLog(str(tmp_path), None, tensorboard=True, say=said.append)
    file = tmp_path / "metrics.jsonl"
    write(log, 0, 1)
    stored = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # writes are cut off at this size, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(stored) + 10, limits[1]))
        write(log, 2, 3)
        with pytest.raises(StorageError, match="File too large"):
            log.flush()
        assert file.read_bytes() == stored
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert said == [
        f"{file}: cannot be written (File too large); free space; lines of metrics are kept in "
        "memory until they can be written"
    ]
    write(log, 4)
    assert steps(str(tmp_path)) == [0, 1, 2, 3, 4]
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert events.read_bytes().count(b"loss") == 5


def test_a_lost_lock_leaves_the_metrics_of_the_new_holder(tmp_path, monkeypatch):
    def lost():
        raise LostLockError("another process has taken this lock")

    monkeypatch.setattr(metrics, "is_remote", lambda path: True)
    log = MetricsLog(str(tmp_path), None, tensorboard=False)
    write(log, 0, 1)
    log.close()
    with pytest.raises(LostLockError, match="another process"):
        MetricsLog(str(tmp_path), 0, tensorboard=False, check_lock=lost)
    log._check_lock = lost
    write(log, 2)
    with pytest.raises(LostLockError, match="another process"):
        log.close()
    assert steps(str(tmp_path)) == [0, 1]


def test_a_fresh_run_drops_everything(workdir):
    log = MetricsLog(workdir, None, tensorboard=False)
    write(log, 0, 1)
    log.close()
    assert MetricsLog(workdir, None, tensorboard=False).kept == []
    assert steps(workdir) == []


def test_no_metrics_yet_are_no_lines(workdir):
    assert read_metrics(workdir) == []


def test_a_log_can_be_cut_several_times(workdir):
    for restored in (None, 1, 3, 0):
        log = MetricsLog(workdir, restored, tensorboard=False)
        first = 0 if restored is None else restored + 1
        write(log, *range(first, first + 4))
        log.close()
    assert steps(workdir) == [0, 1, 2, 3, 4]


def test_the_first_line_of_a_stage_holds_the_last_of_the_one_before(workdir):
    """Also when the stage is begun a second time, after a kill."""
    log = MetricsLog(workdir, None, tensorboard=False)
    write(log, 0, 1, 2, note="stage one")
    log.close()
    for note in ("killed", "stage two"):
        log = MetricsLog(workdir, after_step=2, tensorboard=False)
        write(log, 2, 3, note=note)
        log.close()
    lines = read_metrics(workdir)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert lines[2]["note"] == "stage two"
    assert lines[2]["previous_stage"] == {"step": 2, "loss": 1 / 3, "note": "stage one"}
    assert "previous_stage" not in lines[3]


def test_a_kill_while_segments_are_merged_repeats_no_step(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "is_remote", lambda path: True)
    log = MetricsLog(str(tmp_path), None, tensorboard=False)
    write(log, 0, 1)
    log.flush()
    write(log, 2, 3)
    log.flush()
    first, second = sorted((tmp_path / "metrics").iterdir())
    first.write_text(first.read_text() + second.read_text())  # merged, and the old one still there
    assert steps(str(tmp_path)) == [0, 1, 2, 3]
    assert [line["step"] for line in MetricsLog(str(tmp_path), 2, False).kept] == [0, 1, 2]


def test_a_line_in_the_making_is_left_out_and_later_dropped(tmp_path):
    write(MetricsLog(str(tmp_path), None, tensorboard=False), 0, 1)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    assert steps(str(tmp_path)) == [0, 1]
    write(MetricsLog(str(tmp_path), 1, tensorboard=False), 2)
    assert steps(str(tmp_path)) == [0, 1, 2]


@pytest.mark.parametrize("damaged", [b"not json", b"\xff\xfe", b"[1]", b"3", b'{"loss": 2.0}'])
def test_a_damaged_line_is_refused(tmp_path, damaged):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + damaged + b'\n{"step": 2}\n')
    with pytest.raises(UserError, match="metrics hold a damaged line"):
        read_metrics(str(tmp_path))


def test_what_json_cannot_hold_is_never_written(workdir):
    log = MetricsLog(workdir, None, tensorboard=False)
    with pytest.raises(ValueError, match="JSON"):
        log.write({"step": 1, "loss": float("nan")})
    log.close()
    assert read_metrics(workdir) == []


def test_tensorboard_gets_the_numbers(tmp_path):
    log = MetricsLog(str(tmp_path), None, tensorboard=True)
    write(log, 1, 2)
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("cpu", None),
    ],
)
def test_peaks_of_devices(kind, peak):
    assert peak_flops(kind) == peak


def test_the_terminal_line_has_loss_rate_and_time_left(capsys):
    line = {"loss": 2.5, "validation_loss": 2.25, "tokens_per_second_per_device": 12345.6}
    TerminalLine(100, quiet=False).show(40, line | {"mfu": 0.5}, seconds_per_step=2.0)
    shown = capsys.readouterr().err
    assert shown == (
        "step 40/100  loss 2.5000  validation 2.2500  12,346 tokens/s/device  MFU 50.0%  "
        "00:02:00 left\n"
    )


def test_days_left_are_hours(capsys):
    TerminalLine(100_000, quiet=False).show(0, {}, seconds_per_step=3.0)
    assert re.search(r"\b83:20:00 left", capsys.readouterr().err)


def test_only_the_first_process_speaks(capsys):
    terminal = TerminalLine(100, quiet=True)
    terminal.show(1, {"loss": 1.0}, 1.0)
    terminal.say("hello")
    captured = capsys.readouterr()
    assert captured.err + captured.out == ""


def test_one_json_object_a_line(tmp_path):
    write(MetricsLog(str(tmp_path), None, tensorboard=False), 0, 1)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    assert [json.loads(line)["step"] for line in text.splitlines()] == [0, 1]


def test_lines_lost_before_a_resume_are_named_and_marked(tmp_path):
    path, workdir = tmp_path / "metrics.jsonl", str(tmp_path)
    path.write_bytes(b'{"step": 1}\n\xff\xfe broken\n{"step": 3}\n{"step": 4')
    log = MetricsLog(workdir, 5, tensorboard=False)
    assert "damaged lines are left out" in log.lost
    log.write({"step": 6})
    log.write({"step": 7})
    log.close()
    marks = [(line["step"], line.get("gap_after")) for line in read_metrics(workdir)]
    assert marks == [(1, None), (3, 1), (6, 3), (7, None)]
    path.unlink()
    log = MetricsLog(workdir, 7, tensorboard=False)
    assert log.lost == "metrics: the lines after step -1 up to step 7 are missing"
    assert MetricsLog(workdir, None, tensorboard=False).lost == ""
