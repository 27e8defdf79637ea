"""Tokenizer files stored with a checkpoint, and the special ids of its model."""

import hashlib
from collections.abc import Mapping

from prts_jax.checkpoint import layout
from prts_jax.checkpoint.damage import DamagedError, reading
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.paths import as_path
from prts_jax.special_ids import SpecialIds, from_values, of_tokenizer, read_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""Files beside the weights that define the tokenizer, chat template and generation config."""


def read_tokenizer(source: str) -> dict[str, bytes]:
    """Returns name → contents of the files of `TOKENIZER_FILES` that exist.

    Args:
      source: a folder, or a single tokenizer file of any name: tokenizer.json if it ends in .json,
        else tokenizer.model.
    """
    root = as_path(source)
    if root.is_file():
        return {f"tokenizer{'.json' if root.suffix == '.json' else '.model'}": root.read_bytes()}
    files = [root / name for name in TOKENIZER_FILES]
    return {file.name: file.read_bytes() for file in files if file.is_file()}


def holds_tokenizer(source: str) -> bool:
    """Returns whether `read_tokenizer` would return a tokenizer's own file."""
    root = as_path(source)
    return any(file.is_file() for file in (root, root / "tokenizer.json", root / "tokenizer.model"))


def carry_tokenizer(source: str, target: str) -> list[str]:
    """Copies the files of `read_tokenizer`.

    Args:
      source: a folder, or a single tokenizer file.
      target: a folder; created if a file is copied.

    Returns:
      The names of the copied files.
    """
    files = read_tokenizer(source)
    if files:
        as_path(target).mkdir(parents=True, exist_ok=True)
    for name, contents in files.items():
        (as_path(target) / name).write_bytes(contents)
    return list(files)


def file_digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """Returns name → SHA-256 of files, as `Lineage.tokenizer` records them."""
    return {name: hashlib.sha256(contents).hexdigest() for name, contents in files.items()}


def check_tokenizer(checkpoint: str, lineage: Lineage) -> None:
    """Compares the tokenizer's files in a checkpoint with their digests in the lineage.

    Raises:
      DamagedError: a file is missing or is not what was saved (names it). Checkpoints of older
        versions have no digests.
      StorageError: a file cannot be read.
    """
    for name, digest in lineage.tokenizer.items():
        file = f"{checkpoint}/{layout.TOKENIZER}/{name}"
        with reading(checkpoint, layout.TOKENIZER, file):
            contents = as_path(file).read_bytes()
        if file_digests({name: contents})[name] != digest:
            raise DamagedError(
                checkpoint,
                layout.TOKENIZER,
                f"{file}: is not what was saved (its SHA-256 differs); copy it from where the "
                "model came from, or use another checkpoint",
            )


def special_ids_of(path: str, lineage: Lineage) -> SpecialIds:
    """Returns the ids of a checkpoint's model.

    A checkpoint of an older version has no record of them: then those of its generation_config.json
    and tokenizer, or of its token store, count.

    Args:
      path: the checkpoint's directory.
      lineage: of the checkpoint.

    Raises:
      UserError: a file of the tokenizer is damaged.
    """
    if lineage.special_ids is not None:
        return lineage.special_ids
    ids, store = SpecialIds(), str(lineage.config.get("data", {}).get("train", ""))
    for folder in filter(None, (f"{path}/{layout.TOKENIZER}", store)):
        generation = as_path(folder) / "generation_config.json"
        ids = ids.or_else(from_values(read_json(generation), str(generation)))
        ids = ids.or_else(of_tokenizer(folder))
    return ids
