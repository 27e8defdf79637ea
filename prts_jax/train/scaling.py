"""Multipliers with which a learning rate tuned on a small proxy holds for wider and deeper models.

With m = width / proxy's width, r = fan-in / proxy's fan-in and, for "completep", l = layers /
proxy's layers (1 for "mup"), relative to the proxy:

    parameter                             standard deviation   learning rate   Adam's epsilon
    embedding                             1                    1               1 / m
    layer's maps that read the stream     1 / √r               1 / r           1 / (m l)
    layer's maps that write to it         1 / (√r l)           1 / (r l)       1 / m
    head                                  1 / r                1 / r           1
    norms of a layer                      1                    1               1 / (m l)
    final norm                            1                    1               1 / m
    final norm before a tied head         1 / m                1 / m           1

Weight decay keeps the common rate, so that it takes the same share of each weight in a step.

Source: μP, Yang et al. (arXiv 2203.03466), table 3; CompleteP, Dey et al. (arXiv 2505.01618), table
1 with α = 1 and equation 40, as in github.com/EleutherAI/nanoGPT-mup. There the branches of a layer
are multiplied by 1 / l and the head's input by 1 / m in the forward pass. Here both factors are in
the weights: with Adam, a factor θ of a weight is one of θ of its standard deviation and rate, and
of 1 / θ of its epsilon (2203.03466, section J.2.1); exports need no factors. Attention divides by
the root of a head's size, which must be the proxy's.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prts_jax import tree
from prts_jax.config import ModelConfig, RunConfig
from prts_jax.declaration import Declaration, Kind
from prts_jax.model.architecture import declare
from prts_jax.model.initialise import standard_deviation


class Multiplier(NamedTuple):
    """Factors of a parameter: of its fresh values, of its learning rate, of Adam's epsilon."""

    init: float
    rate: float
    eps: float


def multipliers(run: RunConfig) -> dict[str, Multiplier]:
    """Returns path → multiplier for the model of a stage, by its declarations and the proxy's."""
    model, proxy = run.model, proxy_of(run)
    ours, theirs = declare(model), declare(proxy)
    width = model.embed / proxy.embed
    depth = max(model.layers, 1) / max(proxy.layers, 1)
    of_leaves = {}
    for path, declaration in ours.items():
        fan_in = declaration.fan_in / theirs[path].fan_in
        factors = _multiplier(declaration, fan_in, width, depth, model.tied)
        if declaration.init != "ones":  # the initialiser's own rule knows shape and depth
            wanted, given = (
                standard_deviation(leaf, shape.layers, run.init.kind)
                for leaf, shape in ((theirs[path], proxy), (declaration, model))
            )
            factors = factors._replace(init=factors.init * wanted / given)
        of_leaves[path] = factors
    return of_leaves


def proxy_of(run: RunConfig) -> ModelConfig:
    """Returns the proxy's shape; heads and mlp not given are in proportion to the width."""
    model, scaling = run.model, run.scaling
    return dataclasses.replace(
        model,
        embed=scaling.embed,
        heads=scaling.heads or model.heads * scaling.embed // model.embed,
        kv_heads=1,  # no map sums over them
        mlp=scaling.mlp or model.mlp * scaling.embed // model.embed,
        layers=scaling.layers if scaling.kind == "completep" else model.layers,
    )


def _multiplier(
    declaration: Declaration, fan_in: float, width: float, depth: float, tied: bool
) -> Multiplier:
    if declaration.kind is Kind.TABLE:
        return Multiplier(1.0, 1.0, 1 / width)
    if declaration.kind is Kind.NORM and declaration.stacked:
        return Multiplier(1.0, 1.0, 1 / (width * depth))
    if declaration.kind is Kind.NORM:
        return Multiplier(1 / width, 1 / width, 1.0) if tied else Multiplier(1.0, 1.0, 1 / width)
    if not declaration.stacked:
        return Multiplier(1 / fan_in, 1 / fan_in, 1.0)
    branch = depth if declaration.writes_stream else 1.0
    return Multiplier(
        1 / (math.sqrt(fan_in) * branch), 1 / (fan_in * branch), branch / (width * depth)
    )


def scaled_params(params: Any, of_leaves: Mapping[str, Multiplier]) -> Any:
    """Returns fresh parameters, nested, times their multipliers."""
    return tree.unflatten(
        {path: leaf * of_leaves[path].init for path, leaf in tree.flatten(params).items()}
    )


def scale_by_adam(
    b1: float, b2: float, eps: float, of_leaves: Mapping[str, Multiplier]
) -> optax.GradientTransformation:
    """Returns Adam with a learning rate and an epsilon for each leaf; its state is optax's."""
    adam = optax.scale_by_adam(b1, b2, eps)
    rates, epsilons = (
        tree.unflatten({path: getattr(m, name) for path, m in of_leaves.items()})
        for name in ("rate", "eps")
    )

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        _, state = adam.update(gradient, state, params)
        corrected = (
            optax.tree.bias_correction(moment, decay, state.count)
            for moment, decay in ((state.mu, b1), (state.nu, b2))
        )
        updates = jax.tree.map(
            lambda m, v, rate, epsilon: rate * m / (jnp.sqrt(v) + epsilon * eps),
            *corrected,
            rates,
            epsilons,
        )
        return updates, state

    return optax.GradientTransformation(adam.init, update)
