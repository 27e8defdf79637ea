"""Counts against the paper, published models, and the compiler's own count."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from prts_jax import tree
from prts_jax.config import ComputeConfig, ModelConfig
from prts_jax.model import architecture
from prts_jax.model.counts import (
    count_parameters,
    six_n_d_per_token,
    training_flops_per_token,
)
from prts_jax.model.decoder import attention_flops_per_token
from prts_jax.model.presets import PRESETS, preset

SMALL = ModelConfig(vocab=512, layers=2, embed=256, heads=4, kv_heads=2, head_dim=64, mlp=1024)


@pytest.mark.parametrize(
    ("name", "unit", "digits", "non_embedding", "total"),
    [
        ("paper_410m", 1e6, 1, "308.3", "373.9"),
        ("paper_1.1b", 1e9, 4, "1.2332", "1.3643"),
        ("paper_1.1b_base", 1e9, 4, "0.3083", "0.4394"),
        ("paper_3b", 1e9, 4, "2.2336", "2.3975"),
        ("paper_7b", 1e9, 4, "5.6710", "5.9331"),
        ("llama2_7b", 1e9, 4, "6.4763", "6.7384"),
    ],
)
def test_parameters_equal_the_papers_table_as_printed(
    name: str, unit: float, digits: int, non_embedding: str, total: str
) -> None:
    count = count_parameters(architecture.declare(preset(name)))
    assert f"{count.non_embedding / unit:.{digits}f}" == non_embedding
    assert f"{count.total / unit:.{digits}f}" == total


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("llama2_7b", 6_738_415_616),
        ("llama2_13b", 13_015_864_320),
        ("llama2_70b", 68_976_648_192),
        ("llama3_8b", 8_030_261_248),
        ("llama3_70b", 70_553_706_496),
        ("llama3.1_8b", 8_030_261_248),
        ("llama3.1_70b", 70_553_706_496),
        ("llama3.2_1b", 1_235_814_400),
        ("qwen3_0.6b", 596_049_920),
        ("qwen3_1.7b", 1_720_574_976),
        ("qwen3_4b", 4_022_468_096),
        ("qwen3_8b", 8_190_735_360),
        ("qwen3_14b", 14_768_307_200),
        ("qwen3_32b", 32_762_123_264),
    ],
)
def test_parameters_equal_those_of_the_published_checkpoints(name: str, total: int) -> None:
    assert count_parameters(architecture.declare(preset(name))).total == total


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_equal_the_sum_written_out(name: str) -> None:
    m = preset(name)
    attention = m.embed * m.head_dim * (2 * m.heads + 2 * m.kv_heads)
    layer = attention + 3 * m.embed * m.mlp
    head_norms = 2 * m.head_dim if m.architecture == "qwen3" else 0
    norms = (2 * m.layers + 1) * m.embed + m.layers * head_norms
    count = count_parameters(architecture.declare(m))
    assert count.matmul == m.layers * layer + m.vocab * m.embed
    assert count.non_embedding == m.layers * layer + norms
    assert count.total == count.non_embedding + (1 if m.tied else 2) * m.vocab * m.embed


@pytest.mark.parametrize("size", ["410m", "1.1b", "3b", "7b"])
def test_a_base_is_a_quarter_of_its_target(size: str) -> None:
    """The growth factor counts non-embedding parameters; the final norm is not a layer's."""
    target, base = preset(f"paper_{size}"), preset(f"paper_{size}_base")
    assert dataclasses.replace(base, layers=target.layers) == target
    counts = [
        count_parameters(architecture.declare(m)).non_embedding - m.embed for m in (target, base)
    ]
    assert counts[0] == 4 * counts[1]


def test_causal_attention_counts_each_pair_that_is_seen() -> None:
    model, length = dataclasses.replace(SMALL, layers=3), 9
    pairs = sum(1 for query in range(length) for key in range(length) if key <= query)
    scores_and_sums = 2 * 2 * model.heads * model.head_dim * pairs
    assert attention_flops_per_token(model, length) * length == model.layers * scores_and_sums


def compiled_flops_per_token(model: ModelConfig, length: int, batch: int = 2) -> float:
    """The compiler's count of a loss and its gradient, without loops, which it counts once."""
    compute = ComputeConfig(dtype="float32", attention="xla", scan=False)

    def loss(params: Mapping[str, Any], tokens_BxS: jax.Array) -> jax.Array:
        log_probs = jax.nn.log_softmax(architecture.logits(params, tokens_BxS, model, compute))
        return -jnp.take_along_axis(log_probs, tokens_BxS[..., None], axis=-1).mean()

    params = tree.unflatten(
        {
            path: jax.ShapeDtypeStruct(d.shape, d.dtype)
            for path, d in architecture.declare(model).items()
        }
    )
    tokens_BxS = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    compiled = jax.jit(jax.value_and_grad(loss)).lower(params, tokens_BxS).compile()
    return compiled.cost_analysis()["flops"] / (batch * length)


def with_full_attention(model: ModelConfig, length: int) -> int:
    """Ours, plus the pairs that a causal mask hides and XLA's attention computes all the same."""
    seen = attention_flops_per_token(model, length)
    full = model.layers * 2 * 2 * model.heads * model.head_dim * length
    return training_flops_per_token(model, architecture.declare(model), length) + 3 * (full - seen)


@pytest.mark.parametrize(
    "model",
    [
        SMALL,
        dataclasses.replace(SMALL, layers=4),
        dataclasses.replace(SMALL, tied=True),
        dataclasses.replace(SMALL, layers=0),
    ],
    ids=["gqa", "deeper", "tied", "no_layers"],
)
def test_training_flops_equal_the_compilers_count(model: ModelConfig) -> None:
    """The compiler also counts norms, softmax, activations and the loss: 0.4 to 1% here.

    They are linear in the width where products are quadratic. No product may be missing: the
    smallest, of keys or values, is 2.5% of a layer.
    """
    ratio = compiled_flops_per_token(model, 128) / with_full_attention(model, 128)
    assert 1 <= ratio < 1.015


def test_attention_flops_equal_the_compilers_growth_with_length() -> None:
    """Per token, only attention depends on the length; the softmax adds 6 FLOPs a score or so."""
    compiled = compiled_flops_per_token(SMALL, 512) - compiled_flops_per_token(SMALL, 128)
    counted = with_full_attention(SMALL, 512) - with_full_attention(SMALL, 128)
    assert 1 <= compiled / counted < 1.03


def test_six_n_d_counts_all_parameters() -> None:
    declarations = architecture.declare(preset("paper_410m"))
    assert six_n_d_per_token(declarations) == 6 * count_parameters(declarations).total
