"""TensorBoard's event files on local disk and on gs://."""

import pytest

from prts_jax.paths import as_path
from prts_jax.train import event_file
from prts_jax.train.event_file import EventFile, summary_writer
from tests.gcs import fake_gcs, gcs_server  # noqa: F401 - fixtures


@pytest.mark.parametrize("remote", [False, True])
def test_scalars_reach_the_folder_and_no_flush_loses_any(remote, tmp_path, request):
    root = request.getfixturevalue("fake_gcs") if remote else str(tmp_path)
    writer = summary_writer(f"{root}/run/tensorboard", purge_step=None)
    for step in (1, 2):
        writer.add_scalar("loss", 1.0 / step, step)
        writer.flush()
    writer.close()
    (events,) = as_path(f"{root}/run/tensorboard").iterdir()
    assert events.read_bytes().count(b"loss") == 2


def test_what_cannot_be_written_is_written_in_order_later(tmp_path, monkeypatch):
    file = EventFile(str(tmp_path / "events"))
    file.write(b"one ")
    with monkeypatch.context() as patch:

        def full(path, data):
            raise OSError(28, "No space left on device")

        patch.setattr(event_file, "append_whole", full)
        file.flush()
        file.write(b"two ")
        file.flush()
    file.write(b"three")
    file.close()
    assert (tmp_path / "events").read_bytes() == b"one two three"
