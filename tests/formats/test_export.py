"""Exported folders: another process loads them as they are and computes the same."""

import dataclasses
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prts_jax import config
from prts_jax.checkpoint import layout
from prts_jax.config import ComputeConfig
from prts_jax.errors import UserError
from prts_jax.evaluate.logits_check import load_params
from prts_jax.formats import convert, export
from prts_jax.growth.operators import make_map
from prts_jax.model.architecture import logits
from prts_jax.special_ids import SpecialIds
from prts_jax.train.loop import train
from tests.formats.foreign_models import save_transformers, shape
from tests.growth.on_disk.growing import stream
from tests.train import tiny

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")

TOKENIZER = Path(__file__).parents[2] / "data_pipelines" / "shakespeare" / "tokenizer.model"
TEXTS = ["To be, or not to be", "  two  spaces ", "\n\nROMEO:\nhé 日本", "", "a\tb"]
TOKENS = np.random.default_rng(0).integers(0, 1024, (2, 24))
KINDS = [(name, tied) for name in ("llama", "qwen3") for tied in (False, True)]

LOAD = """
import json, sys
import numpy as np, torch, transformers
tokens, texts, *folders = json.loads(sys.argv[1])
shown = {}
for folder in folders:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        np.save(f"{folder}.npy", model.eval()(torch.tensor(tokens)).logits.numpy())
    shown[folder] = {
        "layers": model.config.num_hidden_layers,
        "layer_types": getattr(model.config, "layer_types", None),
        "ids": [tokenizer(text).input_ids for text in texts],
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id],
        "size": len(tokenizer),
    }
print(json.dumps(shown))
"""


def our_logits(checkpoint: Path) -> np.ndarray:
    source = convert.open_checkpoint(str(checkpoint))
    params = jax.tree.map(jnp.asarray, load_params(source))
    compute = ComputeConfig(dtype="float32", attention="xla")
    return np.asarray(logits(params, jnp.asarray(TOKENS), source.model, compute))


def trained(checkpoint: Path, workdir: Path, model: config.ModelConfig) -> Path:
    """Trains a checkpoint for two steps on a store of the tokenizer's vocabulary."""
    digest = hashlib.sha256(TOKENIZER.read_bytes()).hexdigest()
    store = tiny.write_store(workdir / "store", 800, vocab=1024, tokenizer=digest)
    run = tiny.run_config(
        model=model,
        init__start_from=str(checkpoint),
        data__train=str(store.directory),
        data__validation="",
        train__steps=2,
    )
    train(run, str(workdir / "run"))
    return workdir / "run"


@pytest.mark.slow
def test_exports_of_grown_runs_load_as_they_are(tmp_path: Path) -> None:
    """Imported, trained, grown in depth and exported, with the tokenizer of the import."""
    folders = {}
    for name, tied in KINDS:
        root = tmp_path / f"{name}-{tied}"
        model = dataclasses.replace(shape(tied=tied, architecture=name), vocab=1024)
        save_transformers(root / "hf", model)
        (root / "hf" / "tokenizer.model").write_bytes(TOKENIZER.read_bytes())
        convert.write_checkpoint(convert.open_source("hf", str(root / "hf")), str(root / "ours"))
        source = trained(root / "ours", root, model) if (name, tied) == KINDS[0] else root / "ours"
        growth_map = make_map(model, None, "stack", factor=2)
        stream(layout.resolve(str(source)), str(root / "grown"), growth_map)
        folders[root / "grown"] = str(root / "exported")
        export.write_huggingface(
            convert.open_checkpoint(str(root / "grown")), folders[root / "grown"]
        )
    argument = json.dumps([TOKENS.tolist(), TEXTS, *folders.values()])
    output = subprocess.run(
        [sys.executable, "-c", LOAD, argument], capture_output=True, text=True, check=True
    ).stdout
    shown = json.loads(output.splitlines()[-1])
    library = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
    for checkpoint, folder in folders.items():
        ours, theirs = our_logits(checkpoint), np.load(f"{folder}.npy")
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max(), folder
        loaded = shown[folder]
        assert loaded["layers"] == 4
        assert loaded["layer_types"] in (None, ["full_attention"] * 4)
        assert loaded["ids"] == [library.encode(text) for text in TEXTS]
        assert loaded["special"] == [1, 2, 0]
        assert loaded["size"] == 1024


@pytest.mark.parametrize(
    "options",
    [
        {"bos_id": -1, "eos_id": 1},
        {"bos_id": -1, "eos_id": 1, "unk_id": 2, "pad_id": 0},
        {"bos_id": -1, "eos_id": -1, "add_dummy_prefix": False},
        {"bos_piece": "<start>", "eos_piece": "<end>", "model_type": "unigram"},
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
    ],
)
def test_a_bare_sentencepiece_model_gives_its_own_ids(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    model = io.BytesIO()
    own = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(Path(__file__).read_text().splitlines()),
        model_writer=model,
        vocab_size=400,
        hard_vocab_limit=False,
        minloglevel=2,
        **(own | options),
    )
    library = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    (tmp_path / "own.model").write_bytes(model.getvalue())
    source = exported(tmp_path, str(tmp_path / "own.model"))
    loaded = transformers.AutoTokenizer.from_pretrained(source)
    assert [loaded(text).input_ids for text in TEXTS] == [library.encode(text) for text in TEXTS]
    special = (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id, loaded.unk_token_id)
    theirs = (library.bos_id(), library.eos_id(), library.pad_id(), library.unk_id())
    assert special == tuple(None if at < 0 else at for at in theirs)
    assert len(loaded) == library.get_piece_size()


def exported(tmp_path: Path, tokenizer: str) -> Path:
    """Exports a model without special ids, with this tokenizer."""
    tiny_model = dataclasses.replace(shape(), vocab=1024)
    save_transformers(tmp_path / "hf", tiny_model)
    source = dataclasses.replace(
        convert.open_source("hf", str(tmp_path / "hf")), special_ids=SpecialIds(), repeats={}
    )
    export.write_huggingface(source, str(tmp_path / "out"), tokenizer=tokenizer)
    return tmp_path / "out"


def test_a_bare_tokenizer_json_gives_its_own_ids(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    built = tokenizers.ByteLevelBPETokenizer()
    built.train_from_iterator(
        Path(__file__).read_text().splitlines(), 300, special_tokens=["<|end|>"]
    )
    built.save(str(tmp_path / "made.json"))
    loaded = transformers.AutoTokenizer.from_pretrained(
        exported(tmp_path, str(tmp_path / "made.json"))
    )
    assert [loaded(text).input_ids for text in TEXTS] == [built.encode(text).ids for text in TEXTS]
    assert len(loaded) == built.get_vocab_size()


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--tokenizer=.*nowhere: has no tokenizer.json or"):
        exported(tmp_path, str(tmp_path / "nowhere"))
    assert not (tmp_path / "out").exists()
