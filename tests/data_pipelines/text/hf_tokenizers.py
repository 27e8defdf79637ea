"""Small tokenizers of Hugging Face's library, in the forms of well-known models."""

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

END = "<|endoftext|>"
TURN = "<|im_end|>"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = ["The king's 1234 men, and the queen's; they'll COME\n\n  again! Äpfel 中文 x = y_1\n"] * 30


def pre_tokenizer(name: str) -> Any:
    """Returns the pre-tokenizer of a model family."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name != "llama3")
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    if name in ("llama3", "qwen2"):
        pattern = LLAMA3.replace("{1,3}", "") if name == "qwen2" else LLAMA3
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, byte_level])
    return byte_level


FAMILIES = ("gpt2", "smollm", "llama3", "qwen2")


def small(name: str = "gpt2", vocab: int = 320) -> Tokenizer:
    """A BPE over bytes that adds `END` at the start of a text, as a post-processor may."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer(name)
    tokenizer.decoder = decoders.ByteLevel()
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END, TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return tokenizer


def sentencepiece_like() -> Tokenizer:
    """A BPE as Llama 2's tokenizer.json has it: no cut before the merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=[END], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, **config: Any) -> Path:
    """Saves a tokenizer.json and a tokenizer_config.json; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
