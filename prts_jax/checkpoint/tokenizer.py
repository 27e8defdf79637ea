"""The tokenizer files that a checkpoint carries along."""

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
"""Small files beside the weights that say how text becomes tokens, and back."""


def carry_tokenizer(source: str, target: str) -> list[str]:
    """Copies what there is of `TOKENIZER_FILES`.

    Args:
      source: a folder, or a single file of them.
      target: a folder, made where needed.

    Returns:
      The names copied.
    """
    root = as_path(source)
    files = [root] if root.is_file() else [root / name for name in TOKENIZER_FILES]
    copied = [file for file in files if file.is_file()]
    if copied:
        as_path(target).mkdir(parents=True, exist_ok=True)
    for file in copied:
        (as_path(target) / file.name).write_bytes(file.read_bytes())
    return [file.name for file in copied]
