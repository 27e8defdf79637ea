"""Parameters and FLOPs, counted from declarations. The one definition of training FLOPs."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from prts_jax.config import ModelConfig
from prts_jax.declaration import Declaration
from prts_jax.model.architecture import architecture


@dataclass(frozen=True)
class ParameterCount:
    """The number of parameters of a model.

    Attributes:
      total: all parameters.
      non_embedding: without token embedding and head (what the paper's growth factor counts).
      matmul: those multiplied with every token: the head, but not the embedding look-up.
    """

    total: int
    non_embedding: int
    matmul: int


def count_parameters(declarations: Mapping[str, Declaration]) -> ParameterCount:
    """Counts parameters; the embedding look-up has a vocab axis and contracts no axis.

    Args:
      declarations: from `prts_jax.model.architecture.declare`.
    """
    sizes = {path: math.prod(d.shape) for path, d in declarations.items()}
    return ParameterCount(
        total=sum(sizes.values()),
        non_embedding=sum(n for path, n in sizes.items() if "vocab" not in declarations[path].axes),
        matmul=sum(n for path, n in sizes.items() if declarations[path].contracts),
    )


def forward_flops_per_token(
    model: ModelConfig, declarations: Mapping[str, Declaration], length: int
) -> int:
    """Returns the FLOPs of a token without a backward pass: 2 × matmul parameters + attention.

    Args:
      model: the model's shape.
      declarations: of its parameters.
      length: tokens of a sequence.
    """
    matmul = count_parameters(declarations).matmul
    return 2 * matmul + architecture(model).attention_flops_per_token(model, length)


def training_flops_per_token(
    model: ModelConfig,
    declarations: Mapping[str, Declaration],
    length: int,
    frozen: Collection[int] | None = None,
) -> int:
    """Returns the FLOPs of a training token: 6 × matmul parameters + 3 × causal attention.

    Norms, softmax, the loss, gates, rematerialisation, evaluation and padding are not counted. Of a
    frozen layer the gradient of its parameters is not computed (2 of the 6), and below the lowest
    trained layer nothing is but the forward pass.

    Args:
      model: the model's shape.
      declarations: of its parameters.
      length: tokens of a training sequence.
      frozen: layers that are not trained.
    """
    whole = 3 * forward_flops_per_token(model, declarations, length)
    if not frozen:
        return whole
    in_layers = {path: d for path, d in declarations.items() if d.stacked}
    matmul_of_layer = count_parameters(in_layers).matmul // model.layers
    attention = architecture(model).attention_flops_per_token(model, length)
    attention_of_layer = attention // model.layers
    below = min(set(range(model.layers)) - set(frozen), default=model.layers)
    above = sum(layer > below for layer in frozen)
    spared = below * (4 * matmul_of_layer + 2 * attention_of_layer) + above * 2 * matmul_of_layer
    return whole - spared


def six_n_d_per_token(declarations: Mapping[str, Declaration]) -> int:
    """Returns 6·N of the common estimate 6·N·D, N counting all parameters (the paper's axes)."""
    return 6 * count_parameters(declarations).total
