"""The recipe end to end: babysit, a fake gcloud, and local processes as hosts.

The start-up script is executed as it is. Its `uv` and `curl` are stand-ins, `gcloud storage` is a
folder, and `prts` is the real one with 4 virtual devices a host.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prts_jax.launch import babysit, workers
from prts_jax.launch.gcloud import Result
from prts_jax.launch.settings import Settings
from tests.conftest import ROOT, prts_environment
from tests.launch.fake_gcloud import FakeCloud
from tests.train import tiny

pytestmark = [pytest.mark.slow, pytest.mark.alone]

HOSTS = 2
PROGRAMS = {
    "gcloud": """
        shift; [ "$2" != --recursive ] || { set -- "$1" "${@:3}"; }
        args=(); for a; do [ "$a" = --quiet ] || args+=("${a/#gs:\\/\\//$BUCKETS/}"); done
        target="${args[-1]}"
        if [ "${args[0]}" = cat ]; then cat "$target"; exit; fi
        mkdir -p "$(dirname "$target")"
        if [ "${args[1]}" = - ]; then cat >"$target"; exit; fi
        case "$target" in */) mkdir -p "$target" ;; esac
        cp -r "${args[@]:1}" """,
    "curl": """
        case "${@: -1}" in
          */worker-network-endpoints) printf 'unknown:8470:127.0.0.1,unknown:8470:127.0.0.1' ;;
          */agent-worker-number) printf '%s' "$WORKER" ;;
          */tpu-env) printf "TYPE: 'V5LITE_POD'\\n" ;;
        esac""",
    "hostname": 'echo "worker-$WORKER"',
    "uv": """
        if [ "$1" = venv ]; then
          mkdir -p "${@: -1}/bin"
          ln -s "$PYTHON" "${@: -1}/bin/python"
          cp "$PRTS" "${@: -1}/bin/prts"
        fi""",
}
PRTS = """
exec "$PYTHON" -m prts_jax.cli "${@//gs:\\/\\//$BUCKETS/}"
"""


class LocalCloud(FakeCloud):
    """Queued resources whose hosts are local processes and whose buckets are folders."""

    def prepare(self, folder: Path) -> None:
        """Writes the hosts' programs; call it once."""
        self.folder, self.processes = folder, []
        self.bin = folder / "bin"
        self.bin.mkdir()
        (folder / "buckets/bkt/grown").mkdir(parents=True)
        for name, body in PROGRAMS.items():
            (self.bin / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / "prts").write_text(f"#!/usr/bin/env bash\n{PRTS}\n")
        for program in (*self.bin.iterdir(), folder / "prts"):
            program.chmod(0o755)
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]

    def environment(self, worker: int) -> dict[str, str]:
        more = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "BUCKETS": str(self.folder / "buckets"),
            "PRTS": str(self.folder / "prts"),
            "WORKER": str(worker),
            "JAX_COORDINATOR_PORT": str(self.port),
        }
        return prts_environment(4, more)

    def _storage(self, words, stdin):
        done = subprocess.run(
            [self.bin / "gcloud", "storage", *words],
            input=stdin,
            env=self.environment(0),
            capture_output=True,
            text=True,
            check=False,
        )
        missing = "ERROR: matched no objects" if done.returncode else ""
        return Result(done.returncode, done.stdout, missing)

    def _launch(self, flags):
        super()._launch(flags)
        for worker in range(HOSTS):
            root = self.folder / f"host-{worker}"
            script = self.scripts[-1].replace(workers.ROOT, str(root))
            self.processes.append(
                subprocess.Popen(
                    ["bash", "-c", script], env=self.environment(worker), start_new_session=True
                )
            )

    def preempt(self) -> None:
        """Kills all hosts, as Google does."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[LocalCloud]:
    cloud = LocalCloud(hosts=HOSTS)
    cloud.prepare(tmp_path)
    yield cloud
    cloud.preempt()


def steps(file: Path) -> list[int]:
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line)["step"] for line in lines]


def test_the_recipe_survives_a_preemption_and_ends_with_an_export(cloud, tmp_path):
    archive = tmp_path / "buckets/bkt/code.tar.gz"
    subprocess.run(["tar", "-czf", archive, "-C", ROOT, "setup.py", "tests/train"], check=True)
    stores = {
        name: str(tiny.write_store(tmp_path / name, tokens, seed).directory)
        for name, tokens, seed in (("train", 4000, 0), ("validation", 500, 1))
    }
    config = ROOT / "tests/train/tiny_staged.py"
    arguments = (
        f"--config={config}",
        f"--config.data.train={stores['train']}",
        f"--config.data.validation={stores['validation']}",
        "--config.mesh.data=2",
        "--config.mesh.fsdp=4",
        "--config.growth.stages[1].steps=4",
        "--config.evaluation.every_steps=6",
    )
    after = (ROOT / "tpu_scripts/recipe_after.sh").read_text()
    job = workers.Job("gs://bkt/grown", arguments, after=after)
    settings = Settings("grown", "us-central2-b", "p", "gs://bkt", "v4-16")
    source = workers.Source("gs://bkt/code.tar.gz")
    watch = babysit.Watch(settings, job, source, lambda: "", delete_when_done=True)
    lines: list[str] = []
    metrics = tmp_path / "buckets/bkt/grown/metrics.jsonl"
    cloud.timelines = [["ACTIVE"], ["ACTIVE"]]
    deadline = time.monotonic() + 900
    skipped = 0.0

    def sleep(seconds: float) -> None:
        nonlocal skipped
        assert time.monotonic() < deadline, lines
        time.sleep(1.0)
        if not skipped and len(steps(metrics)) >= 5:
            cloud.preempt()
            cloud.timelines[0] = ["SUSPENDED"]
            skipped = 3600.0  # the pause before the next launch

    code = babysit.babysit(watch, cloud, lambda: time.time() + skipped, sleep, lines.append)
    log = "".join(file.read_text() for file in (metrics.parent / "logs").glob("*.log"))
    assert code == 0, log[-3000:]
    assert len(cloud.scripts) == 2
    assert cloud.resources == []
    assert sorted(set(steps(metrics))) == list(range(7))
    assert "2 processes have joined" in log
    export = metrics.parent / "export"
    assert (export / "hf/config.json").is_file()
    assert "perplexity" in (export / "perplexity.json").read_text()
    assert shlex.quote("--config.mesh.fsdp=4") in cloud.scripts[1]
