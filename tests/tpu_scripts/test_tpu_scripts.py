"""The scripts of tpu_scripts/ with a fake `gcloud` that records its arguments."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "tpu_scripts"
RESOURCE = ("--name=grown-7b", "--zone=us-central2-b")

FAKE_GCLOUD = f"""#!/bin/sh
PYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.quote(sys.executable)} -S \\
  {shlex.quote(str(ROOT / "tests/launch/fake_gcloud.py"))} "$@"
"""

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def calls(tmp_path: Path) -> Callable[[], list[list[str]]]:
    """The argument lists that gcloud was called with."""
    cloud = tmp_path / "cloud"
    return lambda: json.loads(cloud.read_text()).get("calls", []) if cloud.exists() else []


@pytest.fixture
def script(tmp_path: Path) -> Call:
    """Runs a script of tpu_scripts/ with the fake gcloud and a bare python3 on PATH."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "gcloud").write_text(FAKE_GCLOUD)
    # No site-packages, as on a laptop without this package.
    (binaries / "python3").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S "$@"\n')
    for program in binaries.iterdir():
        program.chmod(0o755)
    for program in ("bash", "dirname", "sed"):
        (binaries / program).symlink_to(shutil.which(program) or program)

    def call(name: str, *args: str, gcloud: bool = True):
        if not gcloud:
            (binaries / "gcloud").unlink()
        return subprocess.run(
            [SCRIPTS / name, *args],
            cwd=tmp_path,
            env={
                "PATH": str(binaries),
                "HOME": str(tmp_path),
                "FAKE_CLOUD": str(tmp_path / "cloud"),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return call


def test_create_requests_a_queued_resource(script: Call, calls):
    done = script("create.sh", *RESOURCE, "--accelerator_type=v5litepod-16", "--spot")
    assert done.returncode == 0, done.stderr
    assert calls() == [
        [
            *("gcloud", "compute", "tpus", "queued-resources", "create", "grown-7b"),
            "--zone=us-central2-b",
            "--accelerator-type=v5litepod-16",
            "--runtime-version=v2-alpha-tpuv5-lite",
            "--node-id=grown-7b",
            "--spot",
        ]
    ]


def test_delete_forces_and_lets_gcloud_ask(script: Call, calls):
    v4 = "--accelerator_type=v4-8"
    for flags in (["--project=my-project"], ["--yes"], ["--yes"]):
        assert script("create.sh", *RESOURCE, v4).returncode == 0 or flags == ["--yes"]
        assert script("delete.sh", *RESOURCE, v4, *flags).returncode == 0
    assert script("delete.sh", *RESOURCE, v4).returncode == 0, "may be repeated"
    delete = ["gcloud", "compute", "tpus", "queued-resources", "delete", "grown-7b"]
    assert [call for call in calls() if "delete" in call] == [
        [*delete, "--zone=us-central2-b", "--project=my-project", "--force"],
        [*delete, "--zone=us-central2-b", "--force", "--quiet"],
        [*delete, "--zone=us-central2-b", "--force", "--quiet"],
    ]


COMMANDS = {
    "create.sh": ["--accelerator_type=v5litepod-16"],
    "setup.sh": ["--source=gs://bucket/prts_jax.tar.gz"],
    "run.sh": ["--workdir=gs://bucket/run", "--", "--config=configs/a b.py", "--config.seed=1"],
    "delete.sh": [],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_dry_run_prints_the_exact_gcloud_arguments(script: Call, calls, tmp_path, name: str):
    exists = [] if name == "create.sh" else ["request grown-7b"]
    (tmp_path / "cloud").write_text(json.dumps({"resources": exists}))
    arguments = ["--backend=queued", *COMMANDS[name]]
    dry = script(name, *RESOURCE, "--dry_run", *arguments)
    assert dry.returncode == 0, dry.stderr
    assert calls() == []
    wet = script(name, *RESOURCE, *arguments)
    assert wet.returncode == 0, wet.stderr
    assert calls()[-1] == shlex.split(dry.stdout)


@pytest.mark.parametrize("name", ["setup.sh", "run.sh"])
def test_set_up_and_run_reach_every_worker_of_every_slice(script: Call, calls, name: str):
    script(name, *RESOURCE, *COMMANDS[name])
    script(name, *RESOURCE, "--internal_ips", *COMMANDS[name])
    direct, tunnelled = calls()
    assert direct[4:7] == ["ssh", "grown-7b", "--zone=us-central2-b"]
    assert direct[7:9] == ["--node=all", "--worker=all"]
    assert "--tunnel-through-iap" in tunnelled
    assert [flag for flag in tunnelled if flag != "--tunnel-through-iap"] == direct


def test_a_startup_script_goes_from_run_to_create(script: Call, calls, tmp_path: Path):
    source = "--source=https://example.com/prts_jax.git"
    wrote = script(
        "run.sh", *RESOURCE, source, "--write_startup_script=boot.sh", *COMMANDS["run.sh"]
    )
    assert wrote.returncode == 0, wrote.stderr
    assert calls() == []
    text = (tmp_path / "boot.sh").read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "--workdir=gs://bucket/run '--config=configs/a b.py' --config.seed=1" in text
    arguments = ["--accelerator_type=v5litepod-256", "--slices=2", "--startup_script=boot.sh"]
    assert script("create.sh", *RESOURCE, *arguments).returncode == 0
    assert calls()[0][-3:] == [
        "--node-count=2",
        "--node-prefix=grown-7b",
        "--metadata-from-file=startup-script=boot.sh",
    ]


def test_the_recipe_is_babysitting_with_export_and_evaluation(script: Call, calls):
    flags = [
        "--accelerator=v6e-16",
        "--project=p",
        "--bucket=gs://bkt",
        "--source=gs://bkt/c.tar.gz",
    ]
    stores = ["gs://bkt/train", "gs://bkt/validation"]
    dry = script("recipe.sh", "configs/recipe.py:1.1b", *stores, *RESOURCE, *flags, "--dry_run")
    assert dry.returncode == 0, dry.stderr
    assert "instance-groups managed create grown-7b-slice-0" in dry.stdout
    assert script("recipe.sh", "configs/recipe.py:1.1b").returncode == 2
    assert calls() == []


REFUSALS = {
    "unknown generation": ("create.sh", ["--accelerator_type=v9-8"], "v9"),
    "a newer generation without its hosts": ("create.sh", ["--accelerator=v9-8"], "--machine_type"),
    "a name that gcloud does not use": (
        "create.sh",
        ["--accelerator_type=v5e-16"],
        "--accelerator_type=v5litepod-16",
    ),
    "no such size": ("create.sh", ["--accelerator_type=v6e-12"], "256 chips"),
    "no accelerator type": ("create.sh", [], "--accelerator_type"),
    "two ways to be provisioned": (
        "create.sh",
        ["--accelerator_type=v4-8", "--spot", "--reserved"],
        "--reserved",
    ),
    "a misspelt flag": ("create.sh", ["--accelerator_type=v4-8", "--slice_count=2"], "slice_count"),
    "a start-up script that is not there": (
        "create.sh",
        ["--accelerator_type=v4-8", "--startup_script=missing.sh"],
        "missing.sh",
    ),
    "a source on the laptop": ("setup.sh", ["--source=/home/me/prts_jax"], "gs://"),
    "a workdir that workers do not share": (
        "run.sh",
        ["--workdir=/tmp/run", "--", "--config=x"],
        "gs://",
    ),
    "a source to run.sh": (
        "run.sh",
        ["--workdir=gs://b/r", "--source=gs://b/x.tar.gz", "--", "--config=x"],
        "tpu setup",
    ),
    "training arguments for delete.sh": ("delete.sh", ["--", "--config=x"], "run"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_user_errors_are_one_line_and_exit_code_2(script: Call, calls, case: str):
    name, arguments, named = REFUSALS[case]
    done = script(name, *RESOURCE, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert calls() == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_script_requires_a_name(script: Call, calls, name: str):
    done = script(name, "--zone=us-central2-b", *COMMANDS[name])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--name" in done.stderr
    assert calls() == []


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--name=a"], "--zone"),
        (["--name=a", "--zone=us-central2"], "us-central2"),
        (["--name=Grown_7B", "--zone=us-central2-b"], "Grown_7B"),
        (["--name=-x", "--zone=us-central2-b"], "-x"),
        (["--name=a", "--zone=us-central2-b", "--project=a b"], "a b"),
    ],
)
def test_invalid_names_zones_and_projects_are_refused(script: Call, calls, flags, named: str):
    done = script("delete.sh", *flags)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert calls() == []


def test_a_missing_gcloud_is_a_user_error(script: Call):
    done = script("delete.sh", *RESOURCE, gcloud=False)
    assert done.returncode == 2
    assert "Google Cloud CLI" in done.stderr


def test_a_failure_of_gcloud_is_exit_code_1(script: Call, tmp_path: Path):
    (tmp_path / "cloud").write_text('{"failures": [["create", "QUOTA_EXCEEDED: ask for more", 1]]}')
    done = script("create.sh", *RESOURCE, "--accelerator_type=v4-8")
    assert done.returncode == 1
    assert "QUOTA_EXCEEDED" in done.stderr
    assert "exit code 1" in done.stderr


def test_scripts_are_executable():
    for path in SCRIPTS.glob("*.sh"):
        assert os.access(path, os.X_OK), path.name


SHELL = [
    *sorted(SCRIPTS.glob("*.sh")),
    *sorted(ROOT.glob("prts_jax/launch/*.sh")),
    ROOT / ".ci/run",
]
SHELLCHECK = Path(sys.executable).with_name("shellcheck")


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_shellcheck_finds_nothing(path: Path):
    done = subprocess.run([SHELLCHECK, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_shellcheck_finds_a_fault(tmp_path: Path):
    faulty = tmp_path / "faulty.sh"
    faulty.write_text('#!/bin/bash\nrm -rf $1/*\nif [ "$2" == yes ]; then cd $3; fi\n')
    done = subprocess.run([SHELLCHECK, faulty], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "SC2086" in done.stdout
