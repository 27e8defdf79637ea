"""The proof on real weights: SmolLM2-135M in, grown, out, and transformers computes the same."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prts_jax.cli import convert as convert_command
from prts_jax.cli import data, generate, grow, train
from prts_jax.config import ComputeConfig, ModelConfig
from prts_jax.evaluate.logits_check import load_params
from prts_jax.evaluate.tokenizer import open_tokenizer
from prts_jax.formats import convert
from prts_jax.model.architecture import logits
from tests.formats import smollm2

pytestmark = pytest.mark.slow

FLOAT32 = ComputeConfig(dtype="float32", attention="xla")
PLAYS = Path(__file__).parents[2] / "data_pipelines" / "shakespeare"

# Operator → its flags, whether it keeps the function, and how it is grown.
OPERATORS = {
    "stack": (["--factor=2"], False, "reference"),
    "split": (["--widths=mlp=3072"], True, "stream"),
}


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, np.ndarray]:
    """The folders, transformers' model, and real text as tokens [1, 96]."""
    root = tmp_path_factory.mktemp("smollm2")
    model, tokenizer = smollm2.save(root / "hf")
    tokens = np.asarray(tokenizer(a_play())["input_ids"][:96])[None]
    argv = ["--from=hf", "--to=orbax", f"--source={root / 'hf'}", f"--target={root / 'ours'}"]
    assert convert_command.main([*argv, "--verify"]) == 0
    return root, model, tokens


def a_play() -> str:
    zstandard = pytest.importorskip("zstandard")
    with zstandard.open(sorted(PLAYS.rglob("*.jsonl.zst"))[0], "rt") as file:
        return str(json.loads(file.readline())["text"])[:4000]


def our_logits(params: Any, tokens: np.ndarray, model: ModelConfig) -> np.ndarray:
    run = jax.jit(logits, static_argnums=(2, 3))
    return np.asarray(run(params, jnp.asarray(tokens, jnp.int32), model, FLOAT32))[0]


def their_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.tensor(tokens)).logits[0].numpy())


def perplexity(logits_SxV: np.ndarray, tokens: np.ndarray) -> float:
    values = logits_SxV[:-1].astype(np.float64)
    log_normaliser = np.logaddexp.reduce(values, axis=-1)
    picked = values[np.arange(len(values)), tokens[0, 1:]]
    return float(np.exp((log_normaliser - picked).mean()))


def ours(folder: Path, tokens: np.ndarray) -> np.ndarray:
    opened = convert.open_checkpoint(str(folder))
    return our_logits(load_params(opened), tokens, opened.model)


def test_logits_of_real_weights(smol: tuple[Path, Any, np.ndarray]) -> None:
    root, model, tokens = smol
    expected, actual = their_logits(model, tokens), ours(root / "ours", tokens)
    assert np.abs(expected).max() > 20
    np.testing.assert_allclose(actual, expected, atol=5e-4)
    np.testing.assert_array_equal(actual.argmax(-1), expected.argmax(-1))


def test_greedy_text_is_that_of_transformers(
    smol: tuple[Path, Any, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    root, model, tokens = smol
    prompt = list(map(int, tokens[0, :20]))
    opened = open_tokenizer(str(root / "hf" / "tokenizer.json"))
    flags = ["--tokens=24", "--dtype=float32", "--json", f"--prompt={opened.decode(prompt)}"]
    assert generate.main([f"--checkpoint={root / 'ours'}", *flags]) == 0
    actual = json.loads(capsys.readouterr().out)
    ids = torch.tensor([opened.encode(actual["prompt"])])
    expected = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :].tolist()
    assert actual["tokens"] == expected[: len(actual["tokens"])]
    assert len(actual["tokens"]) == 24 or expected[len(actual["tokens"])] == opened.eos


@pytest.mark.parametrize("operator", OPERATORS)
def test_grown_and_exported(
    smol: tuple[Path, Any, np.ndarray], operator: str, tmp_path: Path
) -> None:
    """Before and after growth we and transformers agree in logits and in perplexity."""
    import transformers

    root, model, tokens = smol
    options, preserving, mode = OPERATORS[operator]
    argv = [f"--source={root / 'ours'}", f"--target={tmp_path / 'grown'}"]
    assert grow.main([*argv, f"--operator={operator}", f"--mode={mode}", *options]) == 0
    out = ["--from=orbax", "--to=hf", f"--source={tmp_path / 'grown'}"]
    assert convert_command.main([*out, f"--target={tmp_path / 'hf'}"]) == 0
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", attn_implementation="eager"
    ).eval()
    actual, theirs = ours(tmp_path / "grown", tokens), their_logits(loaded, tokens)
    np.testing.assert_allclose(actual, theirs, atol=1e-3)
    after = perplexity(actual, tokens)
    assert after == pytest.approx(perplexity(theirs, tokens), rel=1e-4)
    before = perplexity(their_logits(model, tokens), tokens)
    assert (after == pytest.approx(before, rel=1e-4)) == preserving


def test_a_grown_model_trains_on_a_store_of_its_own_tokenizer(
    smol: tuple[Path, Any, np.ndarray], tmp_path: Path
) -> None:
    """The walk of docs/smollm2.md: the export has the tokenizer, with the same ids."""
    import transformers

    root, _, _ = smol
    (tmp_path / "text/train").mkdir(parents=True)
    (tmp_path / "text/train/play.txt").write_text(a_play())
    cache = ["cache", "--format=text", f"--input={tmp_path / 'text'}", "--workers=1"]
    stores = tmp_path / "stores"
    assert data.main([*cache, f"--tokenizer={root / 'hf'}", f"--output={stores}"]) == 0
    grown, run, out = (str(tmp_path / name) for name in ("grown", "run", "out"))
    flags = ["--operator=block_expansion", "--every=15", f"--source={root / 'ours'}"]
    assert grow.main([*flags, f"--target={grown}"]) == 0
    config = Path(__file__).parents[2] / "configs" / "continued.py"
    argv = [f"--config={config}:{grown},{stores},2", f"--workdir={run}"]
    small = ["compute.dtype=float32", "data.length=32", "data.batch=2"]
    assert train.main([*argv, *(f"--config.{one}" for one in small)]) == 0
    losses = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    assert all(row["loss"] < 6 for row in losses if "loss" in row)
    assert (
        convert_command.main(["--from=orbax", "--to=hf", f"--source={run}", f"--target={out}"]) == 0
    )
    text = "Enter the king. <|im_start|> 1599 é"
    ours, theirs = (transformers.AutoTokenizer.from_pretrained(one) for one in (out, root / "hf"))
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.eos_token_id == theirs.eos_token_id
