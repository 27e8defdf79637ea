"""A tiny checkpoint whose tokens are words, text in two sources, and a token store of that text."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from data_pipelines.store.writer import Encoded, write_index, write_shard
from prts_jax.checkpoint.store import save_checkpoint
from prts_jax.tree import flatten, unflatten
from tests.checkpoint.tiny import MODEL, lineage_of, random_params

TEXT = "the a cat dog sat ran on mat log and then it was late so they slept till morning came"
WORDS = TEXT.split()
BOS, EOS = 0, 1
LENGTH = 16
SOURCES = ("cats", "text")
"""Folders right below the root; "text" is what files in the root are called."""


def write_tokenizer(folder: Path) -> None:
    """A word is a token; what is no word is <s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["<s>", "</s>", *WORDS]
    words = models.WordLevel({name: at for at, name in enumerate(names)}, unk_token="<s>")
    built = Tokenizer(words)
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder.mkdir(parents=True, exist_ok=True)
    built.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))


def write_checkpoint(
    path: Path, seed: int = 0, documents: bool = False, imported: bool = False
) -> None:
    """A model of `tests.checkpoint.tiny`, trained (it says) on rows of `LENGTH` tokens."""
    # Smaller than drawn, or every loss would be that of a few tokens.
    drawn = flatten(random_params(seed=seed))
    params = unflatten({name: leaf * 0.3 for name, leaf in drawn.items()})
    lineage = lineage_of(params)
    data = {**lineage.config["data"], "length": LENGTH, "documents": documents}
    lineage = dataclasses.replace(lineage, config={**lineage.config, "data": data})
    if imported:
        about = {"format": "hf", "path": "m", "dtype": "float32", "length": LENGTH}
        lineage = dataclasses.replace(lineage, imported=about, tokens=0)
    save_checkpoint(str(path), params, lineage)
    write_tokenizer(path / "tokenizer")


def write_text(root: Path) -> list[tuple[str, str]]:
    """Returns (source, text) of every file, in the order of their paths."""
    rng = np.random.default_rng(5)
    texts = {
        name: " ".join(rng.choice(WORDS, count))
        for name, count in (("cats/1.txt", 33), ("cats/deep/2.md", 9), ("z.txt", 40))
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "notes.csv").write_text("no,text")
    return [("cats" if "/" in name else "text", text) for name, text in texts.items()]


def tokens_of(texts: list[tuple[str, str]]) -> list[tuple[np.ndarray, int]]:
    """Returns (tokens with the end token, source) of each text."""
    return [
        (np.array([2 + WORDS.index(word) for word in text.split()] + [EOS]), SOURCES.index(source))
        for source, text in texts
    ]


def write_store(folder: Path, texts: list[tuple[str, str]]) -> None:
    """The same text as a token store that knows its bytes."""
    folder.mkdir()
    documents = [Encoded(*row) for row in tokens_of(texts)]
    shard = write_shard(folder, "shard-00000", "0", 1, documents, len(WORDS) + 2, 2)
    sizes = tuple(sum(len(t.encode()) for s, t in texts if s == source) for source in SOURCES)
    shard = dataclasses.replace(shard, bytes_per_source=sizes)
    identity = {"task": "tiny", "split": "train", "tokenizer_sha256": "words", "inputs": []}
    write_index(
        folder,
        identity=identity,
        vocab_size=len(WORDS) + 2,
        eos_id=EOS,
        sources=SOURCES,
        shards=[shard],
    )


assert MODEL.vocab >= len(WORDS) + 2
