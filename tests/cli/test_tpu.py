"""`prts tpu` in process, on a fake gcloud."""

import itertools
import re

import pytest

from prts_jax.cli import tpu
from prts_jax.cli.tpu_flags import SUMMARIES
from prts_jax.errors import UserError
from prts_jax.heartbeats import Beat
from prts_jax.launch import gcloud
from tests.launch.fake_gcloud import FakeCloud

FLAGS = ["--name=grown", "--zone=us-east5-a", "--project=p", "--bucket=gs://bkt"]
SOURCE = "--source=gs://bkt/code.tar.gz"
TRAIN = ["--", "--config=configs/x.py"]
SERVICES = {"queued": "--accelerator=v5litepod-16", "mig": "--accelerator=v5p-32"}
both = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


@pytest.fixture
def cloud(monkeypatch, tmp_path) -> FakeCloud:
    cloud = FakeCloud([["ACTIVE", "ACTIVE", "exit 0", "ACTIVE"]])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gcloud, "run", cloud)

    def in_view(command) -> int:
        result = cloud(command)
        print(result.stdout, result.stderr)
        return result.code

    monkeypatch.setattr(gcloud, "run_in_view", in_view)
    monkeypatch.setattr(tpu.time, "sleep", lambda seconds: None)
    return cloud


@both
def test_create_status_babysit_and_delete(cloud, capsys, service):
    assert tpu.main(["create", *FLAGS, service, SOURCE, *TRAIN]) == 0
    assert "--config=configs/x.py" in cloud.scripts[0]
    assert "--workdir=gs://bkt/grown" in cloud.scripts[0]
    assert tpu.main(["status", *FLAGS, service]) == 0
    shown = capsys.readouterr().out
    assert "grown: ACTIVE (4 of 4 hosts)" in shown
    assert "attempt 1 runs" in shown
    assert "last beat" not in shown
    cloud.files["gs://bkt/grown/heartbeats/host_1.json"] = Beat(1, "w-1", 0.0, 7, 0.0).to_json()
    assert tpu.main(["status", *FLAGS, service]) == 0
    assert re.search(r"grown +1 w-1 +silent +7 ", capsys.readouterr().out)
    assert tpu.main(["babysit", *FLAGS, service, SOURCE, "--delete_when_done", *TRAIN]) == 0
    assert len(cloud.scripts) == 1
    assert cloud.resources == []
    assert tpu.main(["delete", *FLAGS, service]) == 0


@both
def test_delete_when_done_is_part_of_the_start_up_script(cloud, service):
    assert tpu.main(["create", *FLAGS, service, SOURCE, "--delete_when_done", *TRAIN]) == 0
    last = next(line for line in cloud.scripts[0].splitlines() if "PRTS_ON_SUCCESS=" in line)
    assert " delete grown" in last


def test_create_keeps_a_run_that_exists(cloud):
    arguments = ["create", *FLAGS, SERVICES["mig"], SOURCE, *TRAIN]
    tpu.main(arguments)
    with pytest.raises(UserError, match="exists"):
        tpu.main(arguments)


def test_the_working_tree_is_the_code_of_a_launch(cloud, capsys, monkeypatch):
    def git_too(command, stdin=None):
        if command[0] == "git":
            words = {"rev-parse": "a" * 40, "stash": "b" * 40}
            return gcloud.Result(0, words.get(command[3], ""))
        return cloud(command, stdin)

    monkeypatch.setattr(gcloud, "run", git_too)
    url = f"gs://bkt/grown/code/{'a' * 40}-changed-{'b' * 12}.tar.gz"
    assert tpu.main(["create", *FLAGS, SERVICES["mig"], "--dry_run", *TRAIN]) == 0
    assert f"{'b' * 40}\ngcloud storage cp --quiet" in capsys.readouterr().out
    assert url not in cloud.files
    assert tpu.main(["create", *FLAGS, SERVICES["mig"], *TRAIN]) == 0
    assert url in cloud.files
    assert f"PRTS_SOURCE={url}" in cloud.scripts[0].replace("'", "")


COMMANDS = {
    "create": [SOURCE, *TRAIN],
    "setup": [SOURCE],
    "run": TRAIN,
    "status": [],
    "logs": ["--host=w-0"],
    "ssh": ["--host=0/0", "--", "date"],
    "stop": [],
    "delete": [],
    "babysit": [SOURCE, *TRAIN],
    "doctor": [],
}


@pytest.mark.parametrize(
    ("service", "command"), itertools.product(SERVICES.values(), COMMANDS), ids=str
)
def test_every_command_prints_its_arguments_and_runs_nothing(cloud, capsys, service, command):
    assert list(COMMANDS) == list(SUMMARIES)
    assert tpu.main([command, *FLAGS, service, "--dry_run", *COMMANDS[command]]) == 0
    assert capsys.readouterr().out.startswith("gcloud ")
    assert cloud.calls == []


def test_settings_come_from_a_file(cloud, tmp_path):
    (tmp_path / "tpu.toml").write_text(
        'name = "grown"\nzone = "us-east5-a"\nproject = "p"\nbucket = "gs://bkt"\n'
        'accelerator = "v6e-16"\nprovisioning = "spot"\n'
    )
    assert tpu.main(["create", SOURCE, *TRAIN]) == 0
    assert cloud.count("--provisioning-model=SPOT") == 1
    assert cloud.count("--machine-type=ct6e-standard-4t") == 1


def test_a_failed_launch_is_exit_code_1_and_says_how_to_clean_up(cloud, capsys):
    cloud.failures = [["managed create", "QUOTA_EXCEEDED: no TPUs", 1]]
    assert tpu.main(["create", *FLAGS, SERVICES["mig"], SOURCE, *TRAIN]) == 1
    assert "QUOTA_EXCEEDED" in capsys.readouterr().err
    assert tpu.main(["delete", *FLAGS, SERVICES["mig"], "--yes"]) == 0
    assert cloud.resources == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["babysit", *FLAGS, SERVICES["mig"], SOURCE, "--max_cost=5", *TRAIN], "--price"),
        (["babysit", *FLAGS, SERVICES["mig"], SOURCE, "--poll=0", *TRAIN], "--poll"),
        (["babysit", *FLAGS, SERVICES["mig"], SOURCE, "--max_hours=nan", *TRAIN], "--max_hours"),
        (["create", *FLAGS[:3], SERVICES["mig"], SOURCE, *TRAIN], "--bucket"),
        (["create", *FLAGS, SERVICES["mig"], SOURCE, "--after=none.sh", *TRAIN], "--after"),
        (["babysit", *FLAGS, SERVICES["mig"], SOURCE], "after --"),
        (["run", *FLAGS, SERVICES["mig"], "--"], "after --"),
        (["status", *FLAGS], "--accelerator_type"),
        (["ssh", *FLAGS, SERVICES["queued"], "--host=x"], "--host"),
        (["ssh", *FLAGS, SERVICES["mig"], "--host=x"], "--host"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(cloud, arguments, named):
    with pytest.raises(UserError, match=named):
        tpu.main(arguments)
    assert cloud.calls == []
