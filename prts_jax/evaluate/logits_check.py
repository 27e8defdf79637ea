"""Comparison of two formats of a model by their float32 logits."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax import tree
from prts_jax.config import ComputeConfig
from prts_jax.errors import UserError
from prts_jax.formats.model_source import ModelSource, leaf_layers
from prts_jax.model.architecture import declare, logits

TOKENS = 64
TOLERANCE = 1e-4
"""Largest difference of equal models, relative to the largest logit.

Both compute in float32 whatever the dtype of the weights. Random Llamas of 2 to 32 layers and
widths 16 to 1,024 differ by up to 2.3e-6 with weights as large as trained ones, and by up to 3.7e-5
with weights six times as large; weights in bfloat16 make no difference.
"""


@dataclass(frozen=True)
class LogitsComparison:
    """Difference of two models' logits.

    Attributes:
      same_arg_max: share of positions at which both have the same most likely token.
    """

    largest_difference: float
    largest_logit: float
    same_arg_max: float

    @property
    def agree(self) -> bool:
        """Whether the difference is one of rounding in float32."""
        return self.largest_difference <= TOLERANCE * max(self.largest_logit, 1.0)


def compare(one: ModelSource, other: ModelSource, seed: int = 0) -> LogitsComparison:
    """Runs two models of one vocabulary on the same random tokens.

    Transformers runs a model in Hugging Face's format, our code any other. One model at a time is
    in memory.

    Raises:
      UserError: transformers is needed and not installed.
    """
    vocab = min(one.model.vocab, other.model.vocab)
    tokens = np.random.default_rng(seed).integers(0, vocab, (1, TOKENS))
    first, second = (_logits(model, tokens)[..., :vocab] for model in (one, other))
    return LogitsComparison(
        largest_difference=float(np.abs(first - second).max()),
        largest_logit=float(np.abs(first).max()),
        same_arg_max=float((first.argmax(-1) == second.argmax(-1)).mean()),
    )


def load_params(model: ModelSource) -> dict[str, Any]:
    """Returns a model's parameters as nested float32 NumPy arrays, `[layers, …]` where stacked.

    Raises:
      UserError: the model is damaged.
    """
    leaves = {path: np.empty(d.shape, np.float32) for path, d in declare(model.model).items()}
    for path, layer in leaf_layers(model.model):
        leaves[path][... if layer is None else layer] = model.read(path, layer)
    return tree.unflatten(leaves)


def _logits(model: ModelSource, tokens_BxS: np.ndarray) -> np.ndarray:
    if model.format == "hf":
        return _transformers_logits(model.path, tokens_BxS)
    compute = ComputeConfig(dtype="float32", attention="xla")
    params = jax.tree.map(jnp.asarray, load_params(model))
    ids = jnp.asarray(tokens_BxS, jnp.int32)
    run = jax.jit(logits, static_argnums=(2, 3))
    return np.asarray(run(params, ids, model.model, compute))


def _transformers_logits(folder: str, tokens_BxS: np.ndarray) -> np.ndarray:
    try:
        import torch
        import transformers
    except ImportError:
        raise UserError(
            "--verify=logits runs transformers; pip install 'prts_jax[hf]', or use --verify=weights"
        ) from None
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    with torch.no_grad():
        return np.asarray(model.eval()(torch.tensor(tokens_BxS)).logits.numpy())
