"""Every implementation of attention against NumPy loops over heads and positions.

The splash kernels are computed by Pallas' interpreter here and compiled for TPUs in
test_compiled_for_tpu.py. cuDNN's attention needs a GPU (benchmarks/gpu.py compares it there): here
its arguments are checked, and that it lowers to cuDNN's forward and backward calls.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prts_jax.errors import UserError
from prts_jax.model.attention import causal_attention, on_gpu
from prts_jax.model.cudnn import SEGMENTS

HIGHEST = jax.lax.Precision.HIGHEST

BOTH_KERNELS = ["Softmax", "ScaleBiasSoftmax"]

Arrays = tuple[jax.Array, jax.Array, jax.Array]


def queries_keys_values(
    heads: int, kv_heads: int, length: int, head_dim: int, batch: int = 2
) -> Arrays:
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.normal(size=(batch, n, length, head_dim)), jnp.float32)
        for n in (heads, kv_heads, kv_heads)
    )
    # Divided by √D, and sharper than N(0, 1), so that a wrong scale shows.
    return 2 * q / head_dim**0.5, k, v


def segments_of(batch: int, length: int) -> jax.Array:
    """Each row falls into documents of other lengths, one of them a single token."""
    starts = [[0, 1, 6 + row, length // 2 + 1 + row] for row in range(batch)]
    return jnp.asarray(
        [np.searchsorted(row, np.arange(length), side="right") for row in starts], jnp.int32
    )


def reference_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, segment_ids: jax.Array | None = None
) -> np.ndarray:
    """float64, one head and position at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    batch, heads, length, _ = q.shape
    group = heads // k.shape[1]
    out = np.zeros(q.shape)
    for b, h, s in np.ndindex(batch, heads, length):
        seen = np.arange(s + 1)
        if segment_ids is not None:
            seen = seen[np.asarray(segment_ids)[b, seen] == np.asarray(segment_ids)[b, s]]
        scores = k[b, h // group, seen] @ q[b, h, s]
        weights = np.exp(scores - scores.max())
        out[b, h, s] = weights / weights.sum() @ v[b, h // group, seen]
    return out


def out_and_grads(
    implementation: str, qkv: Arrays, segment_ids: jax.Array | None = None, blocks: str = ""
) -> tuple[jax.Array, Arrays]:
    weights = jax.random.normal(jax.random.key(9), qkv[0].shape)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = causal_attention(q, k, v, implementation, HIGHEST, segment_ids, blocks)
        return jnp.vdot(out, weights), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)
    return out, grads


@pytest.fixture
def interpreted_splash(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    make = functools.partial(kernel.make_splash_mqa, interpret=True)
    monkeypatch.setattr(kernel, "make_splash_mqa", make)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
def test_xla_equals_numpy(heads: int, kv_heads: int) -> None:
    qkv = queries_keys_values(heads, kv_heads, length=17, head_dim=8)
    out = causal_attention(*qkv, "xla", HIGHEST)
    np.testing.assert_allclose(out, reference_attention(*qkv), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
def test_xla_attends_within_a_segment_only(heads: int, kv_heads: int) -> None:
    qkv = queries_keys_values(heads, kv_heads, length=17, head_dim=8)
    segment_ids = segments_of(batch=2, length=17)
    out = causal_attention(*qkv, "xla", HIGHEST, segment_ids)
    expected = reference_attention(*qkv, segment_ids)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_auto_is_xla_on_a_cpu() -> None:
    qkv = queries_keys_values(heads=4, kv_heads=2, length=128, head_dim=8)
    auto = causal_attention(*qkv, "auto", HIGHEST)
    np.testing.assert_array_equal(auto, causal_attention(*qkv, "xla", HIGHEST))


def test_scores_of_bfloat16_queries_are_float32() -> None:
    """Scores of about 20 in bfloat16 would be off by 0.06, and their exponentials by 6%."""
    q, k, v = queries_keys_values(heads=2, kv_heads=1, length=32, head_dim=16)
    low = tuple(x.astype(jnp.bfloat16) for x in (3 * q, k, v))
    out = causal_attention(*low, "xla", jax.lax.Precision.DEFAULT)
    assert out.dtype == jnp.bfloat16
    exact = reference_attention(*(x.astype(jnp.float32) for x in low))
    error = np.linalg.norm(np.asarray(out, np.float64) - exact) / np.linalg.norm(exact)
    assert error < 0.004  # weights and output are rounded to bfloat16


@pytest.mark.usefixtures("interpreted_splash")
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (2, 1)])
def test_splash_equals_numpy(heads: int, kv_heads: int, head_dim: int) -> None:
    qkv = queries_keys_values(heads, kv_heads, length=128, head_dim=head_dim)
    out = causal_attention(*qkv, "splash", HIGHEST)
    np.testing.assert_allclose(out, reference_attention(*qkv), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("interpreted_splash")
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2)])
def test_splash_and_its_gradients_stay_within_a_segment(heads: int, kv_heads: int) -> None:
    qkv = queries_keys_values(heads, kv_heads, length=256, head_dim=64)
    segment_ids = segments_of(batch=2, length=256)
    out, grads = out_and_grads("splash", qkv, segment_ids)
    expected = reference_attention(*qkv, segment_ids)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    _, xla_grads = out_and_grads("xla", qkv, segment_ids)
    for grad, xla_grad in zip(grads, xla_grads, strict=True):
        np.testing.assert_allclose(grad, xla_grad, rtol=1e-4, atol=3e-5)


@pytest.mark.usefixtures("interpreted_splash")
@pytest.mark.parametrize("length", [256, 384, 640, 1024])
def test_splash_and_its_gradients_equal_xla_for_every_tile(length: int) -> None:
    qkv = queries_keys_values(heads=2, kv_heads=1, length=length, head_dim=64, batch=1)
    out, grads = out_and_grads("splash", qkv)
    xla_out, xla_grads = out_and_grads("xla", qkv)
    np.testing.assert_allclose(out, xla_out, rtol=1e-4, atol=1e-5)
    for grad, xla_grad in zip(grads, xla_grads, strict=True):
        np.testing.assert_allclose(grad, xla_grad, rtol=1e-4, atol=3e-5)


@pytest.mark.usefixtures("interpreted_splash")
def test_tiles_of_the_config_change_nothing_but_time() -> None:
    qkv = queries_keys_values(heads=2, kv_heads=1, length=256, head_dim=64, batch=1)
    blocks = "q=128,kv=128,q_backward=128,kv_backward=256,kv_backward_compute=128"
    out, grads = out_and_grads("splash", qkv, blocks=blocks)
    xla_out, xla_grads = out_and_grads("xla", qkv)
    for ours, expected in zip((out, *grads), (xla_out, *xla_grads), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("rows=128", "'rows' is unknown"),
        ("q", "'q': is not a multiple of 128"),
        ("q=100", "'q=100': is not a multiple of 128"),
        ("kv=256,kv_compute=384", "kv_compute=384 does not divide kv=256"),
        ("q=384", "384 does not divide 256 positions"),
    ],
)
def test_mistakes_in_tiles_are_named(blocks: str, message: str) -> None:
    q = jnp.ones((1, 2, 256, 64), jnp.bfloat16)
    with pytest.raises(UserError, match=rf"config\.compute\.splash_blocks: .*{message}"):
        causal_attention(q, q, q, "splash", HIGHEST, None, blocks)


@pytest.mark.parametrize("length", [64, 200])
def test_splash_refuses_lengths_that_it_cannot_tile(length: int) -> None:
    qkv = queries_keys_values(heads=2, kv_heads=1, length=length, head_dim=64)
    with pytest.raises(UserError, match=rf"config\.compute\.attention: .*not {length};"):
        causal_attention(*qkv, "splash", HIGHEST)


def as_bfloat16(qkv: Arrays) -> Arrays:
    q, k, v = (x.astype(jnp.bfloat16) for x in qkv)
    return q, k, v


def packed_by_xla(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_seqlen: jax.Array,
    kv_seqlen: jax.Array,
    q_offsets: jax.Array,
    kv_offsets: jax.Array,
    scale: float,
    mask_type: Any,
) -> jax.Array:
    """Computes what cuDNN documents for packed rows: [B, S, H, D], each segment by itself."""
    assert (q_seqlen is kv_seqlen, q_offsets is kv_offsets, scale) == (True, True, 1.0)
    assert mask_type.name == "PADDING_CAUSAL"
    assert q.shape == k.shape == v.shape
    assert q_offsets.shape[1] == q_seqlen.shape[1] + 1
    starts, stops = q_offsets[:, :-1, None], q_offsets[:, :-1, None] + q_seqlen[:, :, None]
    positions = jnp.arange(q.shape[1])
    inside = (q_seqlen[:, :, None] > 0) & (positions >= starts) & (positions < stops)
    together = jnp.einsum("bms,bmt->bst", inside, inside, preferred_element_type=jnp.int32) > 0
    return jax.nn.dot_product_attention(q, k, v, mask=together[:, None], scale=1.0, is_causal=True)


@pytest.mark.parametrize("rows", ["one document", "documents", "too many documents"])
def test_what_cudnn_is_given_means_causal_grouped_attention(
    monkeypatch: pytest.MonkeyPatch, rows: str
) -> None:
    """jax computes the same calls in XLA instead, forward and backward."""
    cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    original: Callable[..., jax.Array] = jax.nn.dot_product_attention

    def computed_by_xla(*args: jax.Array, implementation: str = "xla", **options: Any) -> jax.Array:
        return original(*args, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", computed_by_xla)
    monkeypatch.setattr(cudnn, "dot_product_attention", packed_by_xla)
    qkv = as_bfloat16(queries_keys_values(heads=6, kv_heads=2, length=2 * SEGMENTS + 2, head_dim=8))
    segment_ids = {
        "one document": None,
        "documents": segments_of(batch=2, length=2 * SEGMENTS + 2),
        "too many documents": jnp.tile(jnp.arange(2 * SEGMENTS + 2, dtype=jnp.int32) // 2, (2, 1)),
    }[rows]
    out, grads = out_and_grads("cudnn", qkv, segment_ids)
    xla_out, xla_grads = out_and_grads("xla", qkv, segment_ids)
    for ours, expected in zip((out, *grads), (xla_out, *xla_grads), strict=True):
        np.testing.assert_allclose(
            np.asarray(ours, np.float32), np.asarray(expected, np.float32), rtol=0.05, atol=0.05
        )


@pytest.mark.parametrize(("segmented", "kinds"), [(False, ["Softmax"]), (True, BOTH_KERNELS)])
def test_cudnn_lowers_for_gpus(
    monkeypatch: pytest.MonkeyPatch, segmented: bool, kinds: list[str]
) -> None:
    """As far as a machine without a GPU goes: jax checks the shapes and emits cuDNN's calls.

    Rows of documents have the packed layout, and a mask where they hold too many.
    """
    cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        out = causal_attention(q, k, v, "cudnn", HIGHEST, segment_ids)
        return out.astype(jnp.float32).sum()

    segment_ids = segments_of(batch=2, length=256) if segmented else None

    q, k = (jax.ShapeDtypeStruct((2, heads, 256, 64), jnp.bfloat16) for heads in (4, 2))
    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(q, k, k)
    module = traced.lower(lowering_platforms=("cuda",)).as_text()
    for kind in kinds:
        assert module.count(f"@__cudnn$fmha{kind}(") == 1
        assert module.count(f"@__cudnn$fmha{kind}Backward(") == 1
    assert module.count("@__cudnn$fmha") == 2 * len(kinds)


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((256, 64), "float32", "bfloat16 or float16, not float32"),
        ((256, 60), "bfloat16", "multiple of 8 up to 128, not 60"),
        ((256, 136), "bfloat16", "multiple of 8 up to 128, not 136"),
        ((255, 64), "bfloat16", "even lengths, not 255"),
    ],
)
def test_cudnn_refuses_shapes_and_auto_then_takes_xla(
    shape: tuple[int, int], dtype: str, reason: str
) -> None:
    length, head_dim = shape
    q = jnp.ones((1, 2, length, head_dim), dtype)
    with pytest.raises(UserError, match=rf"config\.compute\.attention: cudnn .*{reason}"):
        causal_attention(q, q, q, "cudnn", HIGHEST)
    assert on_gpu(length, head_dim, dtype, "9.0") == "xla"


@pytest.mark.parametrize(
    ("capability", "chosen"), [("8.0", "xla"), ("9.0", "cudnn"), ("10.0", "cudnn")]
)
def test_auto_is_cudnn_from_compute_capability_9(capability: str, chosen: str) -> None:
    assert on_gpu(2048, 64, "bfloat16", capability) == chosen
