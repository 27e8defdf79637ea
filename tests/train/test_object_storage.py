"""A whole train–grow–resume cycle with every directory on gs://, against the same on local disk."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from prts_jax import cli
from prts_jax.checkpoint.layout import complete_steps, read_lineage, resolve
from prts_jax.train.metrics import read_metrics
from tests.conftest import RunPrts, StartPrts
from tests.gcs import fake_gcs, gcs_server  # noqa: F401 - fixtures
from tests.train import tiny
from tests.train.conftest import Stores

pytestmark = pytest.mark.slow


@pytest.fixture
def without_tensorflow(tmp_path: Path) -> dict[str, str]:
    """An environment in which whoever imports TensorFlow ends the process."""
    package = tmp_path / "path" / "tensorflow"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import os\nos._exit(99)\n")
    return {"PYTHONPATH": str(package.parent)}


def curve(workdir: str) -> list[dict[str, Any]]:
    """The run's lines without what a clock measured or a path names."""
    return tiny.curve(read_metrics(workdir))


def kill_after_first_checkpoint(process: Any, checkpoints: str) -> None:
    deadline = time.monotonic() + 120
    while not complete_steps(checkpoints):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_cycle_on_object_storage_equals_one_on_disk(
    stores: Stores,
    fake_gcs: str,  # noqa: F811
    tmp_path: Path,
    run_prts: RunPrts,
    start_prts: StartPrts,
    without_tensorflow: dict[str, str],
) -> None:
    def train(root: str, name: str, *flags: str) -> list[str]:
        return ["train", *stores.flags(), f"--workdir={root}/{name}", *flags]

    def here(*arguments: str, env: object) -> None:
        assert cli.main(arguments) == 0

    deeper = "--config.model.layers=4"
    long = "--config.train.steps=40"
    for root, run in ((fake_gcs, run_prts), (str(tmp_path), here)):
        base = train(root, "base", long, "--config.logging.tensorboard=True")
        if root == fake_gcs:
            killed = start_prts(*base, env=without_tensorflow)
            kill_after_first_checkpoint(killed, f"{root}/base/checkpoints")
        run(*base, env=without_tensorflow)
        grow_from = f"--config.init.grow_from={root}/base"
        run(*train(root, "on_mesh", deeper, grow_from), env=without_tensorflow)
        grow = ["grow", f"--source={root}/base", f"--target={root}/grown", "--factor=2"]
        run(*grow, env=without_tensorflow)
        start_from = f"--config.init.start_from={root}/grown"
        run(*train(root, "from_file", deeper, start_from), env=without_tensorflow)

    for name in ("base", "on_mesh", "from_file"):
        remote, local = f"{fake_gcs}/{name}", f"{tmp_path}/{name}"
        assert curve(remote) == curve(local)
        lineages = [read_lineage(resolve(run)) for run in (remote, local)]
        assert lineages[0].digests == lineages[1].digests
        assert lineages[0].flops == lineages[1].flops
    losses = [
        [line.get("validation_loss") for line in read_metrics(f"{fake_gcs}/{name}")]
        for name in ("on_mesh", "from_file")
    ]
    assert losses[0] == losses[1]
    report = run_prts("report", f"{fake_gcs}/base", f"{fake_gcs}/on_mesh", "--json")
    assert len(json.loads(report.stdout)["runs"]) == 2


def test_a_run_in_stages_on_object_storage_equals_one_on_disk(
    stores: Stores,
    fake_gcs: str,  # noqa: F811
    tmp_path: Path,
    run_prts: RunPrts,
    start_prts: StartPrts,
    without_tensorflow: dict[str, str],
) -> None:
    """Killed in its first stage, it resumes, grows, and ends as the undisturbed run does."""

    def train(root: str) -> list[str]:
        stages = ["--config=tests/train/tiny_staged.py", "--config.growth.stages[0].steps=30"]
        return ["train", *stores.flags(), *stages, f"--workdir={root}/staged"]

    killed = start_prts(*train(fake_gcs), env=without_tensorflow)
    kill_after_first_checkpoint(killed, f"{fake_gcs}/staged/checkpoints")
    run_prts(*train(fake_gcs), env=without_tensorflow)
    assert cli.main(train(str(tmp_path))) == 0
    remote, local = f"{fake_gcs}/staged", f"{tmp_path}/staged"
    assert curve(remote) == curve(local)
    lineages = [read_lineage(resolve(workdir)) for workdir in (remote, local)]
    assert lineages[0].digests == lineages[1].digests
    assert (lineages[0].stage, lineages[0].step) == (1, 32)
    assert [record.at_step for record in lineages[0].growth] == [30]
