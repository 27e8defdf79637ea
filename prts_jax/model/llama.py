"""Llama 2 and 3, and the paper's models: their names in transformers and published shapes."""

from prts_jax.config import ModelConfig, RopeScaling
from prts_jax.model.decoder import Decoder, attention_flops_per_token
from prts_jax.model.spec import Architecture, HuggingFaceNames

HUGGING_FACE = HuggingFaceNames(
    model_type="llama",
    model_class="LlamaForCausalLM",
    tensors={
        "token_embedding": "model.embed_tokens.weight",
        "layers/attention_norm": "model.layers.{layer}.input_layernorm.weight",
        "layers/attention/q": "model.layers.{layer}.self_attn.q_proj.weight",
        "layers/attention/k": "model.layers.{layer}.self_attn.k_proj.weight",
        "layers/attention/v": "model.layers.{layer}.self_attn.v_proj.weight",
        "layers/attention/o": "model.layers.{layer}.self_attn.o_proj.weight",
        "layers/mlp_norm": "model.layers.{layer}.post_attention_layernorm.weight",
        "layers/mlp/gate": "model.layers.{layer}.mlp.gate_proj.weight",
        "layers/mlp/up": "model.layers.{layer}.mlp.up_proj.weight",
        "layers/mlp/down": "model.layers.{layer}.mlp.down_proj.weight",
        "final_norm": "model.norm.weight",
        "head": "lm_head.weight",
    },
    fixed={
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False,),
        "mlp_bias": (False,),
    },
    heads_divide_width=True,
    defaults={"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 2048},
)

_FUSED = ("transformer.h.{layer}.attn.attn.weight", "transformer.h.{layer}.attn.qkv.weight")

LIT_GPT = {
    "token_embedding": ("transformer.wte.weight",),
    "layers/attention_norm": ("transformer.h.{layer}.norm_1.weight",),
    "layers/attention/q": _FUSED,
    "layers/attention/k": _FUSED,
    "layers/attention/v": _FUSED,
    "layers/attention/o": ("transformer.h.{layer}.attn.proj.weight",),
    "layers/mlp_norm": ("transformer.h.{layer}.norm_2.weight",),
    "layers/mlp/gate": (
        "transformer.h.{layer}.mlp.swiglu.w1.weight",
        "transformer.h.{layer}.mlp.fc_1.weight",
    ),
    "layers/mlp/up": (
        "transformer.h.{layer}.mlp.swiglu.w2.weight",
        "transformer.h.{layer}.mlp.fc_2.weight",
    ),
    "layers/mlp/down": (
        "transformer.h.{layer}.mlp.swiglu.w3.weight",
        "transformer.h.{layer}.mlp.proj.weight",
    ),
    "final_norm": ("transformer.ln_f.weight",),
    "head": ("lm_head.weight",),
}
"""Names in the paper's code, then in lit-gpt."""

_UNSCALED = RopeScaling()
_LLAMA3_1 = RopeScaling(factor=8.0)
_LLAMA3_2 = RopeScaling(factor=32.0)


def _llama(
    layers: int,
    embed: int,
    heads: int,
    kv_heads: int,
    mlp: int,
    vocab: int = 32000,
    theta: float = 10000.0,
    scaling: RopeScaling = _UNSCALED,
    tied: bool = False,
) -> ModelConfig:
    return ModelConfig(
        vocab=vocab,
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=embed // heads,
        mlp=mlp,
        rope_theta=theta,
        rope_scaling=scaling,
        tied=tied,
    )


PRESETS = {
    "paper_410m": _llama(24, 1024, 16, 16, 2816),
    "paper_410m_base": _llama(6, 1024, 16, 16, 2816),
    "paper_1.1b": _llama(24, 2048, 32, 32, 5632),
    "paper_1.1b_base": _llama(6, 2048, 32, 32, 5632),
    "paper_3b": _llama(32, 2560, 20, 4, 7040),
    "paper_3b_base": _llama(8, 2560, 20, 4, 7040),
    "paper_7b": _llama(32, 4096, 32, 8, 11008),
    "paper_7b_base": _llama(8, 4096, 32, 8, 11008),
    "llama2_7b": _llama(32, 4096, 32, 32, 11008),
    "llama2_13b": _llama(40, 5120, 40, 40, 13824),
    "llama2_70b": _llama(80, 8192, 64, 8, 28672),
    "llama3_8b": _llama(32, 4096, 32, 8, 14336, 128256, 500000.0),
    "llama3_70b": _llama(80, 8192, 64, 8, 28672, 128256, 500000.0),
    "llama3.1_8b": _llama(32, 4096, 32, 8, 14336, 128256, 500000.0, _LLAMA3_1),
    "llama3.1_70b": _llama(80, 8192, 64, 8, 28672, 128256, 500000.0, _LLAMA3_1),
    "llama3.2_1b": _llama(16, 2048, 32, 8, 8192, 128256, 500000.0, _LLAMA3_2, tied=True),
}
"""`paper_*` are those of Du et al., arXiv 2405.15319; the others are from the published
config.json files."""

LLAMA = Architecture(
    module=Decoder,
    attention_flops_per_token=attention_flops_per_token,
    hugging_face=HUGGING_FACE,
    presets=PRESETS,
    lit_gpt=LIT_GPT,
)
