"""The workers' scripts, run with fakes of the programs of a TPU VM."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from prts_jax.errors import UserError
from prts_jax.launch import workers

WORKDIR = "gs://bucket/run"
TRIES = 4

FAKES = {
    # The metadata server of worker 0 of a slice of two hosts.
    "curl": """
        case "${@: -1}" in
          */worker-network-endpoints)
            printf '%s' "${ENDPOINTS-unknown:8470:10.0.0.1,unknown:8470:10.0.0.2}" ;;
          */tpu-env) printf "TYPE: 'V5P'\\n%s" "${TPU_ENV-}" ;;
          */agent-worker-number) printf '%s' "${WORKER-0}" ;;
          *) exit 22 ;;
        esac""",
    "gcloud": """
        echo "gcloud $*" >>"$TRACE"
        if [ "$1 $2" = "storage cat" ]; then cat "$ARCHIVE"; fi
        if [ "$1 $2 $4" = "storage cp -" ]; then echo "wrote $(cat)" >>"$TRACE"; fi""",
    "git": 'echo "git $*" >>"$TRACE"; mkdir -p "${@: -1}"',
    "uv": """
        echo "uv $*" >>"$TRACE"
        if [ "$1" = venv ]; then
          mkdir -p "${@: -1}/bin"
          for program in python prts; do
            printf '#!/bin/sh\\n' >"${@: -1}/bin/$program"
            chmod +x "${@: -1}/bin/$program"
          done
        fi""",
    "sleep": 'if [ "$1" = 60 ]; then exec /bin/sleep 60; fi',
    "hostname": "echo worker-0",
}

# Fails with the codes of $CODES one after the other, then succeeds.
PRTS = """#!/usr/bin/env bash
echo "prts $* in $PWD with port ${JAX_COORDINATOR_PORT-}" >>"$TRACE"
echo "step 1${SAYS-}"
count=$(grep -c '^prts' "$TRACE")
read -ra codes <<<"${CODES-}"
exit "${codes[count - 1]:-0}"
"""

# Stands for the handshake: `python -m prts_jax.launch.handshake COORDINATOR HOSTS PROCESS`.
PYTHON = """#!/usr/bin/env bash
echo "python $*, attempt ${PRTS_ATTEMPT-}" >>"$TRACE"
exit "${MEETING-0}"
"""


@pytest.fixture
def worker(tmp_path: Path):
    """Runs a script as a worker; returns the process' result and the calls that it made."""
    fakes = tmp_path / "bin"
    fakes.mkdir()
    for name, body in FAKES.items():
        (fakes / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (fakes / name).chmod(0o755)
    trace = tmp_path / "trace"

    def run(script: str, **env: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        trace.write_text("")
        done = subprocess.run(
            ["bash", "-c", script],
            env={
                "PATH": f"{fakes}:{os.environ['PATH']}",
                "TRACE": str(trace),
                **env,
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done, trace.read_text().splitlines()

    return run


@pytest.fixture
def root(tmp_path: Path) -> str:
    """The folder of a worker after set-up."""
    folder = tmp_path / "root"
    (folder / "source").mkdir(parents=True)
    (folder / "venv/bin").mkdir(parents=True)
    for name, text in (("prts", PRTS), ("python", PYTHON)):
        (folder / "venv/bin" / name).write_text(text)
        (folder / "venv/bin" / name).chmod(0o755)
    return str(folder)


def run_script(root: str, *arguments: str, **job) -> str:
    return workers.run_script(workers.Job(WORKDIR, arguments, **job), root, 0, TRIES)


def trained(trace: list[str]) -> list[str]:
    return [line for line in trace if line.startswith("prts train")]


def test_a_run_joins_all_hosts_on_the_open_port(worker, root):
    done, trace = worker(run_script(root, "--config=configs/x.py", "--config.data.path=a b"))
    assert done.returncode == 0, done.stderr
    assert trained(trace) == [
        f"prts train --workdir={WORKDIR} --config=configs/x.py --config.data.path=a b "
        f"--coordinator=10.0.0.1:8476 --processes=2 --process=0 in {root}/source with port 8476"
    ]
    assert trace[0] == "python -m prts_jax.launch.handshake 10.0.0.1:8476 2 0, attempt "


def test_a_multi_slice_run_counts_the_hosts_of_all_slices(worker, root):
    slices = "MEGASCALE_NUM_SLICES: '4'\nMEGASCALE_SLICE_ID: '1'\n"
    slices += "MEGASCALE_COORDINATOR_ADDRESS: '10.9.0.1:8080'"
    _, trace = worker(run_script(root), TPU_ENV=slices, WORKER="1")
    assert "--coordinator=10.9.0.1:8476 --processes=8 --process=3" in trained(trace)[0]


def test_slices_of_compute_engine_find_process_0_by_the_bucket(worker, root, tmp_path):
    (tmp_path / "bin/hostname").write_text("#!/bin/sh\necho grown-slice-1-x7y8\n")
    (tmp_path / "address").write_text("10.7.0.1\n")
    (tmp_path / "archive").write_text("10.7.0.1\n")
    script = run_script(root, attempt=3, nonce="ab", slices=2)
    _, trace = worker(script, ARCHIVE=str(tmp_path / "address"), WORKER="1")
    assert "--coordinator=10.7.0.1:8476 --processes=4 --process=3" in trained(trace)[0]
    assert any(f"storage cat {WORKDIR}/launch/coordinator-3-ab" in line for line in trace)
    (tmp_path / "bin/hostname").write_text("#!/bin/sh\necho grown-slice-0-x7y8\n")
    _, trace = worker(script)
    assert "wrote 10.0.0.1" in trace


@pytest.mark.parametrize(
    ("host", "trains"), [("grown-slice-1-x7.c.internal", True), ("own", False)]
)
def test_the_number_of_a_slice_comes_from_the_name_of_its_host(
    worker, root, tmp_path, host, trains
):
    (tmp_path / "bin/hostname").write_text(f"#!/bin/sh\necho {host}\n")
    (tmp_path / "address").write_text("10.7.0.1\n")
    script = run_script(root, attempt=3, nonce="ab", slices=2)
    _, trace = worker(script, ARCHIVE=str(tmp_path / "address"), WORKER="1")
    assert bool(trained(trace)) == trains


def test_a_part_of_a_slice_does_not_train(worker, root):
    done, trace = worker(run_script(root, hosts=4))
    assert done.returncode == 75
    assert trained(trace) == []
    assert "expected 4 hosts, 2 seen" in Path(root, "worker-0.log").read_text()
    done, trace = worker(run_script(root, attempt=2, nonce="x"), MEETING="2")
    assert (done.returncode, trained(trace)) == (2, [])
    assert f"gcloud storage cp --quiet - {WORKDIR}/launch/result-2-x" in trace
    assert "wrote 2" in trace


def test_what_follows_the_training_runs_once_on_process_0(worker, root):
    job = {"attempt": 1, "nonce": "x", "after": 'echo "after $PRTS_WORKDIR" >>"$TRACE"'}
    done, trace = worker(run_script(root, **job, on_success='echo deleted >>"$TRACE"'))
    assert done.returncode == 0
    assert f"after {WORKDIR}" in trace
    assert trace[-1] == "deleted"
    assert "wrote 0" in trace
    _, trace = worker(run_script(root, **job), WORKER="1")
    assert not any(line.startswith(("after", "wrote")) for line in trace)


def test_what_follows_the_training_is_retried_without_the_other_hosts(worker, root):
    after = 'echo after >>"$TRACE"; [ "$(grep -c after "$TRACE")" -gt 2 ] || exit 3'
    done, trace = worker(run_script(root, after=after))
    assert done.returncode == 0
    counts = [sum(word in line for line in trace) for word in ("handshake", "prts train", "after")]
    assert counts == [1, 1, 3]


def test_a_single_host_does_not_run_distributed(worker, root):
    _, trace = worker(run_script(root), ENDPOINTS="unknown:8470:10.0.0.1")
    assert "--multihost" not in trained(trace)[0]
    assert "--processes" not in trained(trace)[0]


@pytest.mark.parametrize(
    ("codes", "attempts", "ends_with"),
    [
        ("", 1, 0),  # finished
        ("75 1 134", 4, 0),  # preempted, lost a host, aborted; then finished
        ("2", 1, 2),  # a user error is not retried
        ("1 1 1 1 1", TRIES, 1),  # gives up
    ],
)
def test_a_run_is_retried_until_it_finishes(worker, root, codes, attempts, ends_with):
    done, trace = worker(run_script(root), CODES=codes)
    assert done.returncode == ends_with
    assert len(trained(trace)) == attempts


def test_a_run_that_has_diverged_is_not_retried(worker, root):
    script = run_script(root, attempt=1, nonce="x")
    says = ": training has diverged (3 steps were skipped)"
    done, trace = worker(script, CODES="1", SAYS=says)
    assert (done.returncode, len(trained(trace))) == (1, 1)
    assert "wrote 1 diverged" in trace
    done, trace = worker(script, CODES="1")
    assert (done.returncode, len(trained(trace))) == (0, 2), "an earlier divergence does not count"
    assert "wrote 0" in trace


def test_the_log_is_copied_to_the_bucket(worker, root):
    _, trace = worker(run_script(root))
    log = Path(root) / "worker-0.log"
    assert trace[-1] == f"gcloud storage cp --quiet {log} {WORKDIR}/logs/"
    assert "step 1" in log.read_text()
    assert "exit code 0" in log.read_text()


def test_two_runs_do_not_share_a_worker(worker, root):
    holder = subprocess.Popen(["flock", f"{root}/lock", "/bin/sleep", "60"], start_new_session=True)
    try:
        deadline = time.monotonic() + 10
        while subprocess.run(["flock", "-n", f"{root}/lock", "true"], check=False).returncode == 0:
            assert time.monotonic() < deadline
        done, trace = worker(run_script(root))
        assert done.returncode == 1
        assert "in progress here" in done.stderr
        assert trained(trace) == []
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()


def test_a_stop_signal_reaches_the_run_which_saves(worker, root, tmp_path):
    Path(root, "venv/bin/prts").write_text(
        "#!/usr/bin/env bash\n"
        "trap '/bin/sleep 0.3; echo saved; exit 75' TERM\n"
        "kill -TERM $PPID\n"
        "while :; do /bin/sleep 0.05; done\n"
    )
    done, _ = worker(run_script(root))
    assert done.returncode == 75
    assert "saved" in Path(root, "worker-0.log").read_text()


def test_a_stop_signal_between_two_tries_is_no_success(worker, root, tmp_path):
    pid = Path(root, "pid")
    (tmp_path / "bin/sleep").write_text(
        f'#!/bin/sh\n[ "$1" != 60 ] || exec /bin/sleep 60\nkill -TERM "$(cat {pid})"\n'
    )
    done, trace = worker(run_script(root, on_success='echo deleted >>"$TRACE"'), CODES="75 75")
    assert (done.returncode, len(trained(trace))) == (75, 1)
    assert "deleted" not in trace


def test_set_up_installs_an_archive_into_a_new_environment(worker, tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/setup.py").write_text("# new")
    archive = tmp_path / "source.tar.gz"
    subprocess.run(["tar", "-czf", archive, "-C", tmp_path / "tree", "."], check=True)
    root = tmp_path / "root"
    script = workers.setup_script(workers.Source("gs://bucket/source.tar.gz"), str(root))
    for _ in range(2):
        done, trace = worker(script, ARCHIVE=str(archive))
        assert (done.returncode, done.stdout) == (0, "worker-0: ready\n"), done.stderr
        assert (root / "source/setup.py").read_text() == "# new"
        assert (
            trace[-1] == f"uv pip install --quiet --python {root}/venv/bin/python "
            f"--editable {root}/source[tpu]"
        )
    assert not any(line.startswith("uv venv") for line in trace), "the environment is created once"
    pins = tmp_path / "tree/prts_jax/launch/pins.txt"
    pins.parent.mkdir(parents=True)
    pins.write_text("jax==0.10.2\n")
    subprocess.run(["tar", "-czf", archive, "-C", tmp_path / "tree", "."], check=True)
    _, trace = worker(script, ARCHIVE=str(archive))
    assert f"--constraint {root}/source/prts_jax/launch/pins.txt" in trace[-1]


def test_a_broken_archive_leaves_the_old_source(worker, root, tmp_path):
    (tmp_path / "broken").write_bytes(b"not an archive")
    Path(root, "source/setup.py").write_text("# old")
    Path(root, "venv/bin/python").write_text("#!/bin/sh\n")
    Path(root, "venv/bin/python").chmod(0o755)
    script = workers.setup_script(workers.Source("gs://bucket/source.tar.gz"), root)
    done, _ = worker(script, ARCHIVE=str(tmp_path / "broken"))
    assert done.returncode != 0
    assert Path(root, "source/setup.py").read_text() == "# old"


def test_a_start_up_script_sets_up_from_git_and_then_trains(worker, root):
    source = workers.Source("https://example.com/prts_jax.git", "v1.0")
    Path(root, "venv/bin/python").write_text("#!/bin/sh\n")
    Path(root, "venv/bin/python").chmod(0o755)
    job = workers.Job(WORKDIR, ("--config=x.py",))
    done, trace = worker(workers.startup_script(source, job, root))
    assert done.returncode == 0, done.stderr
    assert trace[0] == (f"git clone --quiet --depth=1 --branch=v1.0 {source.url} {root}/source.new")
    assert len(trained(trace)) == 1


def test_a_start_up_script_does_not_train_after_a_failed_set_up(worker, root):
    job = workers.Job(WORKDIR, attempt=4, nonce="x")
    script = workers.startup_script(workers.Source("gs://b/x.tar.gz"), job, root)
    done, trace = worker(script, ARCHIVE="/nowhere")
    assert done.returncode != 0
    assert trained(trace) == []
    assert sum("storage cat" in line for line in trace) == workers.SETUP_TRIES
    assert any(f"worker-0-setup.log {WORKDIR}/logs/" in line for line in trace)
    assert "wrote 1" in trace, "babysit learns of it"


@pytest.mark.parametrize(
    ("url", "revision", "named"),
    [
        ("gs://bucket/source.zip", "", "tar.gz"),
        ("gs://bucket/source.tar.gz", "main", "--revision"),
        ("/home/me/prts_jax", "", "/home/me/prts_jax"),
    ],
)
def test_a_source_that_workers_cannot_fetch_is_refused(url, revision, named):
    with pytest.raises(UserError, match=named):
        workers.Source(url, revision)


def test_a_workdir_outside_a_bucket_or_given_twice_is_refused():
    with pytest.raises(UserError, match="gs://"):
        workers.Job("/tmp/run")
    with pytest.raises(UserError, match="twice"):
        workers.Job(WORKDIR, ("--workdir=gs://bucket/other",))


def test_the_ssh_command_starts_a_detached_run(worker, root, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "ROOT", root)
    command = workers.run_command(workers.Job(WORKDIR, ("--config=configs/it's.py",)))
    (tmp_path / "bin/sudo").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "bin/sudo").chmod(0o755)
    done, trace = worker(command)
    assert (done.returncode, done.stdout) == (0, "worker-0: started\n"), done.stderr
    deadline = time.monotonic() + 20
    while not any(line.startswith("gcloud storage cp") for line in trace):
        assert time.monotonic() < deadline, "the detached run did not finish"
        time.sleep(0.05)
        trace = (tmp_path / "trace").read_text().splitlines()
    assert "--config=configs/it's.py" in trained(trace)[0]


def test_the_ssh_command_names_a_worker_without_set_up(worker, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "ROOT", str(tmp_path / "nothing"))
    (tmp_path / "bin/sudo").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "bin/sudo").chmod(0o755)
    command = workers.run_command(workers.Job(WORKDIR))
    done, _ = worker(command)
    assert done.returncode == 1
    assert done.stderr == "worker-0: not set up; run tpu_scripts/setup.sh\n"
