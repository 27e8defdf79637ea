"""The record that describes an architecture to the rest of the project."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn

from prts_jax.config import ComputeConfig, ModelConfig


@dataclass(frozen=True)
class HuggingFaceNames:
    """Names and limits of an architecture's folders of transformers.

    Attributes:
      model_type: `model_type` of config.json.
      model_class: class in transformers ("LlamaForCausalLM").
      tensors: path of a leaf → name of its tensor, with `{layer}` for the layer's index.
      fixed: key of config.json → values that our computation allows, the one to export first. Each
        entry of a list must be allowed. An absent key is allowed.
      defaults: key of config.json → value that transformers takes for an absent key.
      heads_divide_width: whether transformers refuses a width that is no multiple of the heads.
    """

    model_type: str
    model_class: str
    tensors: Mapping[str, str]
    fixed: Mapping[str, tuple[Any, ...]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    heads_divide_width: bool = False


@dataclass(frozen=True)
class Architecture:
    """A model family.

    Attributes:
      module: (model, compute, frozen layers) → a Linen module that declares its parameters with
        `prts_jax.model.parameters.declare_param`; it maps (tokens [B, S], documents, gates,
        cached) to (logits [B, S, vocab] float32, cache).
      attention_flops_per_token: (model, length) → forward FLOPs of what multiplies no parameters.
      hugging_face: names in transformers.
      presets: name → published shape.
      lit_gpt: path of a leaf → its tensor's names in the versions of lit-gpt; {} if it is not read
        from there.
    """

    module: Callable[[ModelConfig, ComputeConfig, tuple[int, ...] | None], nn.Module]
    attention_flops_per_token: Callable[[ModelConfig, int], int]
    hugging_face: HuggingFaceNames
    presets: Mapping[str, ModelConfig]
    lit_gpt: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
