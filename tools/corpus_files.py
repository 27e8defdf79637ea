"""Writes documents as a corpus in SlimPajama's form."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

from data_pipelines.text.rows import SET_FIELD, TEXT_FIELD

TRAIN_SHARDS = 8
SHUFFLE_SEED = 0
ZSTD_LEVEL = 19
VALIDATION = "validation/chunk1/example_holdout_0.jsonl.zst"
"""Path of the validation split's file in the folder."""


@dataclass(frozen=True)
class Document:
    """One row: the name of its set, as `meta.redpajama_set_name` has it, and its text."""

    set_name: str
    text: str


def write_splits(
    directory: str | Path, train: Sequence[Document], validation: Sequence[Document]
) -> list[Path]:
    """Writes `train/chunk1/…` and `validation/chunk1/…` under a folder.

    Documents are shuffled with a fixed seed, so that every file, and any beginning of the
    validation text, holds every set.

    Args:
      directory: created where missing; files of the same names are replaced.
      train: documents of the training split, for `TRAIN_SHARDS` files.
      validation: documents of the validation split, for one file.

    Returns:
      The files written.
    """
    folder = Path(directory)
    train, validation = _shuffled(train), _shuffled(validation)
    parts = {
        folder / "train" / "chunk1" / f"example_train_{shard}.jsonl.zst": train[shard::TRAIN_SHARDS]
        for shard in range(TRAIN_SHARDS)
    }
    parts[folder / VALIDATION] = validation
    for path, documents in parts.items():
        _write_file(path, documents)
    return list(parts)


def _shuffled(documents: Sequence[Document]) -> list[Document]:
    shuffled = list(documents)
    random.Random(SHUFFLE_SEED).shuffle(shuffled)
    return shuffled


def _write_file(path: Path, documents: Sequence[Document]) -> None:
    rows = ({TEXT_FIELD: d.text, "meta": {SET_FIELD: d.set_name}} for d in documents)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress("".join(lines).encode()))
