"""A run whose lock in an object store was taken over writes nothing more."""

import pytest

from prts_jax.checkpoint import lock
from prts_jax.checkpoint.layout import complete_steps
from prts_jax.errors import StorageError
from prts_jax.paths import as_path
from prts_jax.train import loop
from tests.gcs import fake_gcs, gcs_server  # noqa: F401 - fixtures
from tests.train.interrupting import call_during_step


def test_a_run_whose_lock_was_taken_over_stops_before_it_saves(
    configure,
    fake_gcs,  # noqa: F811
    monkeypatch,
):
    monkeypatch.setattr(lock, "REFRESH_SECONDS", 60.0)
    workdir = f"{fake_gcs}/run"
    call_during_step(
        monkeypatch, 3, lambda: (as_path(workdir) / lock.LOCK_FILE).write_text("another")
    )
    config = configure(evaluation__every_steps=0, logging__tensorboard=False)
    with pytest.raises(StorageError, match="another process has taken this lock"):
        loop.train(config, workdir)
    assert complete_steps(f"{workdir}/checkpoints") == [2]
    assert (as_path(workdir) / lock.LOCK_FILE).read_text() == "another"
