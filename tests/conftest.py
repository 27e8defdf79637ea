"""The environment of all tests (JAX on the CPU, one compilation cache), and `prts` as a process.

Tests run on one CPU device. A test that needs several devices, another environment or a kill starts
a process with the fixtures `run_prts` and `start_prts`.
"""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import hypothesis
import pytest

# A busy machine fails no property: how fast something is, benchmarks measure.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")

ROOT = Path(__file__).resolve().parent.parent

JAXLIB = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))

XLA_FLAGS = (
    # Tests spend most of their time compiling. Without LLVM's optimizations and XLA's fusion
    # emitters a gradient of the model compiles in a fifth of the time.
    "--xla_backend_optimization_level=0",
    *(["--xla_cpu_use_fusion_emitters=false"] if JAXLIB < (0, 11) else []),  # gone since
    "--xla_cpu_parallel_codegen_split_count=1",
    # AVX has no fused multiply-add, which LLVM would use in one program and not in another: values
    # that two programs compute alike would differ in their last bit.
    *(["--xla_cpu_max_isa=AVX"] if platform.machine() == "x86_64" else []),
    # Virtual devices on few busy cores reach a collective late: XLA's default limits abort the
    # process.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    "--xla_cpu_collective_timeout_seconds=600",
)

# libtpu reads XLA_FLAGS when it is loaded, and ends the process at a flag that it does not know.
LIBTPU_FLAGS = " ".join(flag for flag in XLA_FLAGS if "fusion_emitters" not in flag)

CPU_ONLY = {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    # All programs: most of those that a new process compiles take less than JAX's limit of 1 s.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "XLA_FLAGS": " ".join(XLA_FLAGS),
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "CUDA_VISIBLE_DEVICES": "",
    "MPLBACKEND": "Agg",
}
# Set before any test file imports jax. The caller's cache directory wins.
for name, value in CPU_ONLY.items():
    if name == "JAX_COMPILATION_CACHE_DIR":
        os.environ.setdefault(name, value)
    else:
        os.environ[name] = value

# A torch built for CUDA brings Triton, whose library crashes a process that has TensorFlow loaded.
# No test on a CPU needs it; commands never load torch and TensorFlow together.
sys.modules["triton"] = None  # type: ignore[assignment]


@pytest.fixture
def flags_for_libtpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a test load libtpu in this process, whose CPU keeps its own flags."""
    import jax

    jax.devices()  # XLA reads the CPU's flags now, if it has not yet
    monkeypatch.setenv("XLA_FLAGS", LIBTPU_FLAGS)


StartPrts = Callable[..., subprocess.Popen[str]]
RunPrts = Callable[..., subprocess.CompletedProcess[str]]


def prts_environment(devices: int, env: Mapping[str, str] | None) -> dict[str, str]:
    """Returns the environment of a `prts` process with `devices` virtual CPU devices.

    It is the tests' own environment (CPU only, shared compilation cache) with `env` added.
    """
    environment = dict(os.environ)
    environment["JAX_NUM_CPU_DEVICES"] = str(devices)
    environment["PYTHONUNBUFFERED"] = "1"
    environment.update(env or {})
    return environment


@pytest.fixture
def start_prts() -> Iterator[StartPrts]:
    """Starts `prts ARGS…` and returns its `Popen`, for tests that kill or watch it.

    `start_prts(*args, devices=1, env=None)`: both streams are text pipes, the working directory is
    the repository's root, and the process leads a group of its own. The end of the test kills
    processes that still run.
    """
    started: list[subprocess.Popen[str]] = []

    def start(
        *args: str | os.PathLike[str], devices: int = 1, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "prts_jax.cli", *map(os.fspath, args)],
            cwd=ROOT,
            env=prts_environment(devices, env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def run_prts(start_prts: StartPrts) -> RunPrts:
    """Runs `prts ARGS…` to its end and returns a `CompletedProcess` with text streams.

    `run_prts(*args, devices=1, env=None, check=True, timeout=600)`: `devices` virtual CPU devices,
    `env` added to the environment, `timeout` in seconds. With `check`, an exit code other than zero
    fails the test and shows the command's output; `check=False` is for commands that must fail.

    >>> run_prts("train", "--config=configs/quickstart.py", f"--workdir={tmp_path}", devices=4)
    """

    def run(
        *args: str | os.PathLike[str],
        devices: int = 1,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        timeout: float = 600,
    ) -> subprocess.CompletedProcess[str]:
        process = start_prts(*args, devices=devices, env=env)
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
            pytest.fail(f"prts {args}: not done in {timeout} s\n{stdout[-2000:]}\n{stderr[-6000:]}")
        if check and process.returncode != 0:
            pytest.fail(
                f"prts {args}: exit code {process.returncode}\n{stdout[-2000:]}\n{stderr[-6000:]}"
            )
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return run
