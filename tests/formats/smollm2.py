"""SmolLM2-135M-Instruct as a folder of transformers, made from what `make smollm2` fetched."""

import os
from pathlib import Path
from typing import Any

import pytest

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def source() -> Path:
    """The folder that holds the GGUF file; without it the test is skipped."""
    folder = Path(os.environ.get("PRTS_SMOLLM2", Path(__file__).parents[2] / ".cache" / "smollm2"))
    if not (folder / GGUF).exists():
        pytest.skip("SmolLM2's weights are not here: `make smollm2` fetches them")
    return folder


def save(folder: Path) -> tuple[Any, Any]:
    """Saves the dequantized model as transformers would; returns it and its tokenizer."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    where = str(source())
    read = transformers.AutoModelForCausalLM.from_pretrained(
        where, gguf_file=GGUF, dtype=torch.float32
    )
    values = read.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "architectures"):
        values.pop(name, None)  # a plain Llama: saving what was read as GGUF would quantize
    clean = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values))
    clean.load_state_dict(read.state_dict(), strict=False)
    clean.tie_weights()
    clean.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(where, gguf_file=GGUF)
    tokenizer.save_pretrained(folder)
    return clean.eval(), tokenizer
