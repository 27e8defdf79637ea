"""Start of supervised fine-tuning: a new stage on a store of instructions."""

import hashlib
from collections.abc import Collection

from data_pipelines.store.several import first_store
from data_pipelines.store.store import TOKENIZER_FILES, TokenStore, read_index
from prts_jax.checkpoint import layout
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.config import DataConfig
from prts_jax.errors import UserError
from prts_jax.paths import as_path


def begins(lineage: Lineage, data: DataConfig) -> bool:
    """Whether a run on `data` starts to fine-tune a checkpoint that was only pretrained.

    Args:
      lineage: lineage of the checkpoint.
      data: data section of the run's config.
    """
    return data.instructions and not lineage.config["data"].get("instructions", False)


def begin(lineage: Lineage, path: str, store: TokenStore, allow_change: Collection[str]) -> Lineage:
    """Returns the lineage at the start of fine-tuning, which may change the store freely.

    Args:
      lineage: lineage of the checkpoint.
      path: path of the checkpoint.
      store: store of instructions.
      allow_change: with "data.store", a store of another tokenizer is accepted too.

    Raises:
      UserError: the store has another tokenizer than the checkpoint.
    """
    known = tokenizers_of(lineage, path)
    if known and store.tokenizer not in known and "data.store" not in allow_change:
        raise UserError(
            f"config.data.train: the tokens of {store.directory} are of another tokenizer (sha256 "
            f"{store.tokenizer[:12]}) than {path} was trained with ({sorted(known)[0][:12]}); "
            "prepare the instructions with that one, or pass --allow_change=data.store"
        )
    return lineage.tuned()


def tokenizers_of(lineage: Lineage, path: str) -> set[str]:
    """Returns the sha256 digests of a checkpoint's tokenizer files, as far as they are available.

    Uses the tokenizer files in the checkpoint; without any, the digest in its training store.
    """
    folder = as_path(path) / layout.TOKENIZER
    carried = [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]
    if carried:
        return {hashlib.sha256(file.read_bytes()).hexdigest() for file in carried}
    try:
        return {read_index(first_store(lineage.config["data"]["train"]))["tokenizer_sha256"]}
    except UserError:  # the store no longer exists
        return set()
