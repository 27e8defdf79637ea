"""`prts aot`: a small run compiled for a TPU that is not there, and its refusals."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import LIBTPU_FLAGS, ROOT, prts_environment

CONFIG = "--config=configs/quickstart.py:grown"
SMALL = [
    "--config.compute.dtype=bfloat16",
    "--config.data.length=128",
    "--config.data.batch=8",
    "--config.mesh.fsdp=2",
    "--config.mesh.tensor=2",
    "--config.compute.remat=full",
]


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    pytest.importorskip("libtpu")
    arguments = [CONFIG, *SMALL, "--source_config=configs/quickstart.py:base"]
    arguments += ["--topology=v5e:2x2", "--evaluation", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "prts_jax.cli", "aot", *arguments],
        cwd=ROOT,
        env=prts_environment(1, {"XLA_FLAGS": LIBTPU_FLAGS}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
def test_memory_is_stated_by_kind_and_fits(compiled: dict[str, Any]) -> None:
    memory = compiled["hbm_bytes"]
    assert compiled["fits"]
    assert compiled["hbm_available"] == 16 * 2**30
    # AdamW keeps two moments of each parameter, and one count.
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], rel=1e-4)
    assert memory["total"] == compiled["hbm_bytes_per_device"] > 3 * memory["parameters"]


@pytest.mark.slow
def test_time_has_phases_and_collectives_have_axes(compiled: dict[str, Any]) -> None:
    assert all(compiled["seconds"][phase] > 0 for phase in ("forward", "recomputation", "backward"))
    assert compiled["estimated_seconds"] == pytest.approx(sum(compiled["seconds"].values()))
    axes = {entry["axes"] for entry in compiled["collectives_by_axis"]}
    assert {"fsdp", "tensor"} <= axes
    assert 0 < compiled["mfu_bound"] < 1


@pytest.mark.slow
def test_validation_and_growth_are_compiled_as_well(compiled: dict[str, Any]) -> None:
    assert compiled["evaluation"]["fits"]
    assert compiled["growth"]["fits"]
    grown, base = compiled["hbm_bytes"], compiled["growth"]["hbm_bytes"]
    assert base["parameters"] < grown["parameters"]
    # Small arrays are padded to whole tiles on the device.
    assert grown["parameters"] <= base["outputs"] < 2 * grown["parameters"]


@pytest.mark.usefixtures("flags_for_libtpu")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--topology: is missing"),
        (["--topology=v5e"], "is not GENERATION:SHAPE"),
        (["--topology=v9:2x2"], "is not GENERATION:SHAPE"),
        (["--topology=v5e:200x200"], "no slice has 40000 chips"),
        (["--topology=v5e:2x2", "--slices=0"], "--slices=0: must be between"),
        (["--topology=v5e:3x5"], "the compiler has no such slice"),
        (["--topology=v5e:2x2", "--config.mesh.fsdp=3"], "does not fill 4 devices"),
        (["--topology=v5e:2x2", "--config.compute.tpu_flags=x"], "'x' is not NAME=VALUE"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from prts_jax import cli

    pytest.importorskip("libtpu")
    assert cli.main(["aot", CONFIG, *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
