"""A checkpoint that the first version wrote still restores, grows, is inspected and exported.

`data/v1` holds the workdir: 2 layers stacked to 4, 2 steps on, with the state of AdamW. Its
parameters are `random_params(…, seed=1)`; the moments are drawn from NumPy's generator of seed 2.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from prts_jax.checkpoint.layout import read_lineage, resolve
from prts_jax.checkpoint.records import ChangeRecord, GrowthRecord
from prts_jax.checkpoint.restore import restore_optimizer, restore_params
from prts_jax.cli import convert, grow, inspect
from prts_jax.config import ModelConfig, OptimizerConfig
from prts_jax.growth.operators import make_map
from prts_jax.model.architecture import declare
from prts_jax.train.optim import adamw
from tests.checkpoint.tiny import abstract, random_params

BASE = ModelConfig(vocab=48, layers=2, embed=8, heads=2, kv_heads=1, head_dim=4, mlp=16)
STACK = make_map(BASE, None, "stack", 2)
DATA = Path(__file__).parent / "data" / "v1"


@pytest.fixture
def workdir(tmp_path: Path) -> str:
    """A copy, so that nothing writes beside the stored files."""
    return str(shutil.copytree(DATA, tmp_path / "v1"))


@pytest.fixture(scope="module")
def params() -> Any:
    return random_params(declare(STACK.target), seed=1)


def assert_same(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_parameters_and_optimizer_restore(workdir: str, params: Any) -> None:
    path = resolve(workdir)
    assert_same(restore_params(path, abstract(params), declare(STACK.target)), params)
    state = adamw(OptimizerConfig()).init(params)
    rng = np.random.default_rng(2)
    moments = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype) if leaf.ndim else 2, state
    )
    assert_same(restore_optimizer(path, abstract(state)), moments)


def test_the_lineage_is_read_and_written_as_it_was(workdir: str) -> None:
    path = resolve(workdir)
    lineage = read_lineage(path)
    assert (lineage.step, lineage.stage_step, lineage.model) == (9, 2, STACK.target)
    assert lineage.growth == (GrowthRecord(7, 4096, 1.5e12, STACK),)
    assert lineage.changes == (ChangeRecord(7, "data.batch", 8, 16),)
    stored = json.loads((Path(path) / "lineage" / "lineage.json").read_text())
    written = lineage.to_json()
    for model in (written["growth"][0]["map"][end] for end in ("source", "target")):
        assert model.pop("architecture") == "llama"  # keys that came later
    assert written["growth"][0].pop("optimizer") == ""
    assert json.dumps(written) == json.dumps(stored)


def test_it_is_inspected(workdir: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([workdir, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["lineage"][0]["map"]["layers"] == [0, 1, 0, 1]
    assert [stage["last_step"] for stage in shown["stages"]] == [7, 9]
    assert inspect.main([workdir, "--lineage"]) == 0


@pytest.mark.parametrize("mode", ["reference", "stream"])
def test_it_grows(workdir: str, tmp_path: Path, params: Any, mode: str) -> None:
    target = str(tmp_path / "grown")
    arguments = [f"--source={workdir}", f"--target={target}", "--operator=stack", "--factor=2"]
    assert grow.main([*arguments, f"--mode={mode}"]) == 0
    model = make_map(STACK.target, None, "stack", 2).target
    deep = random_params(declare(model))
    actual = restore_params(target, abstract(deep), declare(model))
    up, expected = actual["layers"]["mlp"]["up"], params["layers"]["mlp"]["up"]
    np.testing.assert_array_equal(up, np.concatenate([expected, expected]))


def test_it_is_exported_to_hugging_face(workdir: str, tmp_path: Path, params: Any) -> None:
    pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.numpy")
    target = tmp_path / "hf"
    assert (
        convert.main(["--from=orbax", "--to=hf", f"--source={workdir}", f"--target={target}"]) == 0
    )
    tensors = library.load_file(target / "model.safetensors")
    actual = tensors["model.embed_tokens.weight"]
    assert any(
        leaf.shape == actual.shape and (np.asarray(leaf) == actual).all()
        for leaf in jax.tree.leaves(params)
    )
