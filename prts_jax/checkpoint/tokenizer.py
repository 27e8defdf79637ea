"""Tokenizer files stored with a checkpoint."""

from prts_jax.paths import as_path

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


def carry_tokenizer(source: str, target: str) -> list[str]:
    """Copies the files of `TOKENIZER_FILES` that exist.

    Args:
      source: a folder, or a single tokenizer file.
      target: a folder; created if a file is copied.

    Returns:
      The names of the copied files.
    """
    root = as_path(source)
    files = [root] if root.is_file() else [root / name for name in TOKENIZER_FILES]
    copied = [file for file in files if file.is_file()]
    if copied:
        as_path(target).mkdir(parents=True, exist_ok=True)
    for file in copied:
        (as_path(target) / file.name).write_bytes(file.read_bytes())
    return [file.name for file in copied]
