"""Qwen3's dense models: Llama with an RMS norm on each head's queries and keys.

The norms come before the rotation and share `norm_eps` with the others; head_dim is not always
embed / heads (Qwen3 Technical Report, arXiv 2505.09388; transformers' `Qwen3ForCausalLM`).
"""

import functools

from prts_jax.config import ModelConfig
from prts_jax.model import llama
from prts_jax.model.decoder import Decoder, attention_flops_per_token
from prts_jax.model.spec import Architecture, HuggingFaceNames

HUGGING_FACE = HuggingFaceNames(
    model_type="qwen3",
    model_class="Qwen3ForCausalLM",
    tensors={
        **llama.HUGGING_FACE.tensors,
        "layers/attention/q_norm": "model.layers.{layer}.self_attn.q_norm.weight",
        "layers/attention/k_norm": "model.layers.{layer}.self_attn.k_norm.weight",
    },
    fixed={
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False,),
        "use_sliding_window": (False,),
        "layer_types": ("full_attention", None),
    },
    defaults={"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768},
)


def _qwen3(
    layers: int, embed: int, heads: int, kv_heads: int, mlp: int, tied: bool = False
) -> ModelConfig:
    return ModelConfig(
        architecture="qwen3",
        vocab=151936,
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=128,
        mlp=mlp,
        norm_eps=1e-6,
        rope_theta=1e6,
        tied=tied,
    )


PRESETS = {
    "qwen3_0.6b": _qwen3(28, 1024, 16, 8, 3072, tied=True),
    "qwen3_1.7b": _qwen3(28, 2048, 16, 8, 6144, tied=True),
    "qwen3_4b": _qwen3(36, 2560, 32, 8, 9728, tied=True),
    "qwen3_8b": _qwen3(36, 4096, 32, 8, 12288),
    "qwen3_14b": _qwen3(40, 5120, 40, 8, 17408),
    "qwen3_32b": _qwen3(64, 5120, 64, 8, 25600),
}
"""From the published config.json files."""

QWEN3 = Architecture(
    module=functools.partial(Decoder, head_norms=True),
    attention_flops_per_token=attention_flops_per_token,
    hugging_face=HUGGING_FACE,
    presets=PRESETS,
)
