"""Saves by time."""

from prts_jax.train.saving import SaveClock


def test_the_clock_counts_minutes_since_the_last_save():
    now = [0.0]
    clock = SaveClock(2.0, lambda: now[0])
    assert not clock.due()
    now[0] = 120.0
    assert clock.due()
    clock.restart()
    assert not clock.due()
    now[0] = 1e6
    assert not SaveClock(0.0, lambda: now[0]).due()


def test_a_run_also_saves_by_time(run, tmp_path, monkeypatch):
    monkeypatch.setattr(SaveClock, "due", lambda clock: True)
    changes = {"checkpoint__every_steps": 100, "checkpoint__keep": 9, "logging__every_steps": 2}
    run(tmp_path, train__steps=6, checkpoint__every_minutes=1.0, **changes)
    saved = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert saved == [2, 4, 6]
