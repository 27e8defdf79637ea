"""The model against Hugging Face's Llama, and against itself computed in other ways."""

import dataclasses
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from prts_jax import tree
from prts_jax.config import ComputeConfig, ModelConfig, RopeScaling
from prts_jax.model import architecture
from prts_jax.model.initialise import init_params
from prts_jax.model.inputs import Documents
from tests.formats.foreign_models import transformers_of

SMALL = ModelConfig(vocab=97, layers=3, embed=48, heads=6, kv_heads=2, head_dim=8, mlp=80)
FLOAT32 = ComputeConfig(dtype="float32", attention="xla")

logits = jax.jit(architecture.logits, static_argnums=(2, 3))


def random_params(model: ModelConfig, seed: int = 0) -> dict[str, Any]:
    """Parameters of the size that training gives them; norms differ from one, too."""
    rng = np.random.default_rng(seed)
    leaves = {}
    for path, declaration in architecture.declare(model).items():
        if declaration.init == "ones":
            leaf = rng.uniform(0.5, 1.5, declaration.shape)
        else:
            fan_in = model.embed if path == "token_embedding" else declaration.fan_in
            leaf = rng.normal(0, fan_in**-0.5, declaration.shape)
        leaves[path] = jnp.asarray(leaf, jnp.float32)
    return tree.unflatten(leaves)


def tokens_of(model: ModelConfig, batch: int = 2, length: int = 24) -> jax.Array:
    return jax.random.randint(jax.random.key(1), (batch, length), 0, model.vocab, jnp.int32)


def next_token_loss(
    params: Mapping[str, Any], tokens_BxS: jax.Array, model: ModelConfig, compute: ComputeConfig
) -> jax.Array:
    log_probs = jax.nn.log_softmax(logits(params, tokens_BxS, model, compute))
    return -jnp.take_along_axis(log_probs[:, :-1], tokens_BxS[:, 1:, None], axis=-1).mean()


value_and_grad = jax.jit(jax.value_and_grad(next_token_loss), static_argnums=(2, 3))


def loss_and_grads(
    model: ModelConfig, compute: ComputeConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    loss, grads = value_and_grad(random_params(model), tokens_of(model), model, compute)
    return loss, tree.flatten(grads)


def hugging_face_logits(
    params: Mapping[str, Any],
    tokens_BxS: jax.Array,
    model: ModelConfig,
    documents: Documents | None = None,
) -> np.ndarray:
    """Runs transformers' code on our weights.

    Documents become a 4-dimensional additive mask, and position ids.
    """
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    reference = transformers_of(params, model)
    packed: dict[str, Any] = {}
    if documents is not None:
        segment_ids = np.asarray(documents.segment_ids_BxS)
        same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
        seen = np.tril(same)
        packed["attention_mask"] = torch.tensor(np.where(seen, 0.0, np.finfo(np.float32).min))
        packed["attention_mask"] = packed["attention_mask"].float()
        packed["position_ids"] = torch.tensor(np.asarray(documents.positions_BxS)).long()
    with torch.no_grad():
        return reference(torch.tensor(np.asarray(tokens_BxS)).long(), **packed).logits.numpy()


def packed_rows() -> Documents:
    """Two rows of 24 tokens: documents of 10 and 14 tokens, and of 1, 20 and 3."""
    lengths = [[10, 14], [1, 20, 3]]
    return Documents(
        jnp.asarray([np.repeat(range(len(row)), row) for row in lengths], jnp.int32),
        jnp.asarray([np.concatenate([np.arange(n) for n in row]) for row in lengths], jnp.int32),
    )


# A short original length, so that 24 positions reach all three branches of the scaling.
LLAMA3_SCALING = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=64
)

SHAPES = {
    "mha": dataclasses.replace(SMALL, kv_heads=6),
    "gqa": SMALL,
    "mqa": dataclasses.replace(SMALL, kv_heads=1),
    "tied": dataclasses.replace(SMALL, tied=True),
    "head_dim_apart_from_width": dataclasses.replace(SMALL, head_dim=16),
    "rope_theta": dataclasses.replace(SMALL, rope_theta=500000.0),
    "llama3_scaling": dataclasses.replace(SMALL, head_dim=16, rope_scaling=LLAMA3_SCALING),
    "norm_eps": dataclasses.replace(SMALL, norm_eps=1e-2),
    "one_layer": dataclasses.replace(SMALL, layers=1),
    "no_layers": dataclasses.replace(SMALL, layers=0),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_hugging_face(shape: str) -> None:
    model = SHAPES[shape]
    params, tokens = random_params(model), tokens_of(model)
    ours = logits(params, tokens, model, FLOAT32)
    theirs = hugging_face_logits(params, tokens, model)
    assert np.abs(theirs).max() > 1  # else an absolute tolerance says nothing
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", ["gqa", "tied", "llama3_scaling"])
def test_packed_documents_equal_hugging_face_given_mask_and_positions(shape: str) -> None:
    model = SHAPES[shape]
    params, tokens = random_params(model), tokens_of(model)
    ours = logits(params, tokens, model, FLOAT32, documents=packed_rows())
    theirs = hugging_face_logits(params, tokens, model, packed_rows())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{}, {"remat": "dots"}, {"scan": False}], ids=["plain", "remat", "unrolled"]
)
def test_packed_documents_equal_each_document_alone(changes: dict[str, Any]) -> None:
    compute = dataclasses.replace(FLOAT32, **changes)
    params, tokens, documents = random_params(SMALL), tokens_of(SMALL), packed_rows()
    packed = logits(params, tokens, SMALL, compute, documents=documents)
    first, second = tokens[:1, :10], tokens[:1, 10:]
    np.testing.assert_allclose(
        packed[:1, :10], logits(params, first, SMALL, FLOAT32), rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(
        packed[:1, 10:], logits(params, second, SMALL, FLOAT32), rtol=0, atol=1e-5
    )
    joined = logits(params, tokens, SMALL, FLOAT32)
    assert jnp.abs(packed - joined)[:1, 10:].max() > 1e-2  # what plain concatenation computes


def test_one_document_a_row_is_no_document_at_all() -> None:
    tokens = tokens_of(SMALL)
    whole = Documents(
        jnp.zeros_like(tokens), jnp.broadcast_to(jnp.arange(24, dtype=jnp.int32), tokens.shape)
    )
    actual = logits(random_params(SMALL), tokens, SMALL, FLOAT32, documents=whole)
    expected = logits(random_params(SMALL), tokens, SMALL, FLOAT32)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["rope_theta", "llama3_scaling", "norm_eps"])
def test_each_constant_changes_the_logits(name: str) -> None:
    """Guards the comparison above: a constant that both sides ignored would pass it."""
    default, changed = ModelConfig(), SHAPES[name]
    plain = dataclasses.replace(
        changed,
        rope_theta=default.rope_theta,
        rope_scaling=default.rope_scaling,
        norm_eps=default.norm_eps,
    )
    params, tokens = random_params(plain), tokens_of(plain)
    difference = logits(params, tokens, changed, FLOAT32) - logits(params, tokens, plain, FLOAT32)
    assert jnp.abs(difference).max() > 1e-3


def test_logits_depend_on_earlier_tokens_only() -> None:
    params, tokens = random_params(SMALL), tokens_of(SMALL)
    changed = tokens.at[:, 10].set((tokens[:, 10] + 1) % SMALL.vocab)
    before = logits(params, tokens, SMALL, FLOAT32)
    after = logits(params, changed, SMALL, FLOAT32)
    np.testing.assert_array_equal(before[:, :10], after[:, :10])
    assert (jnp.abs(before[:, 10:] - after[:, 10:]).max(axis=(0, 2)) > 0).all()


@pytest.mark.parametrize(
    ("remat", "scan"),
    [
        *(pytest.param(name, True, id=name) for name in ("dots", "minimal", "save_qkv", "full")),
        *(pytest.param(name, False, id=f"{name}, unrolled") for name in ("none", "dots", "full")),
    ],
)
def test_remat_and_unrolling_change_nothing_but_rounding(remat: str, scan: bool) -> None:
    compute = dataclasses.replace(FLOAT32, remat=remat, scan=scan)
    loss, grads = loss_and_grads(SMALL, compute)
    plain_loss, plain_grads = loss_and_grads(SMALL, FLOAT32)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-6)
    for path, grad in plain_grads.items():
        np.testing.assert_allclose(grads[path], grad, rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_losses_in_chunks_are_those_of_the_whole(tied: bool) -> None:
    model = dataclasses.replace(SMALL, tied=tied)
    tokens_BxS = tokens_of(model)

    def mean_loss(params: Any, chunks: int) -> jax.Array:
        compute = dataclasses.replace(FLOAT32, loss_chunks=chunks)
        return architecture.losses(
            params, tokens_BxS, jnp.roll(tokens_BxS, -1, 1), model, compute
        ).mean()

    with_gradient = jax.jit(jax.value_and_grad(mean_loss), static_argnums=1)
    whole, whole_gradient = with_gradient(random_params(model), 1)
    parts, gradient = with_gradient(random_params(model), 4)
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    for path, grad in tree.flatten(whole_gradient).items():
        np.testing.assert_allclose(
            tree.flatten(gradient)[path], grad, rtol=1e-4, atol=1e-7, err_msg=path
        )


@pytest.mark.parametrize("scan", [True, False], ids=["scan", "unrolled"])
def test_full_remat_computes_the_forward_pass_again(scan: bool) -> None:
    """The compiler may merge the recomputation with the first pass; then nothing is saved."""
    model = dataclasses.replace(SMALL, layers=2)

    def flops(remat: str) -> float:
        compute = dataclasses.replace(FLOAT32, remat=remat, scan=scan)
        step = jax.jit(jax.grad(next_token_loss), static_argnums=(2, 3))
        lowered = step.lower(random_params(model), tokens_of(model), model, compute)
        return lowered.compile().cost_analysis()["flops"]

    assert flops("full") > 1.15 * flops("none")


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_every_parameter_has_a_gradient(layers: int, tied: bool) -> None:
    model = dataclasses.replace(SMALL, layers=layers, tied=tied)
    _, grads = loss_and_grads(model, FLOAT32)
    assert set(grads) == set(architecture.declare(model))
    for path, grad in grads.items():
        assert jnp.isfinite(grad).all(), path
        per_layer = grad.reshape(layers, -1) if path.startswith("layers/") else grad.reshape(1, -1)
        assert (jnp.abs(per_layer).max(axis=1) > 0).all(), path


def test_gradient_is_that_of_finite_differences() -> None:
    params, tokens = random_params(SMALL), tokens_of(SMALL)
    _, grads = loss_and_grads(SMALL, FLOAT32)
    direction = random_params(SMALL, seed=1)
    slope = sum(jnp.vdot(grads[path], leaf) for path, leaf in tree.flatten(direction).items())

    @jax.jit
    def along(step: float) -> jax.Array:
        moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
        return next_token_loss(moved, tokens, SMALL, FLOAT32)

    step = 1e-3
    np.testing.assert_allclose((along(step) - along(-step)) / (2 * step), slope, rtol=1e-2)


def test_bfloat16_compute_stays_close_to_float32_and_logits_are_float32() -> None:
    params, tokens = random_params(SMALL), tokens_of(SMALL)
    exact = logits(params, tokens, SMALL, FLOAT32)
    rounded = logits(params, tokens, SMALL, dataclasses.replace(FLOAT32, dtype="bfloat16"))
    assert exact.dtype == rounded.dtype == jnp.float32
    error = jnp.abs(rounded - exact).max() / jnp.abs(exact).max()
    assert 1e-5 < error < 0.05  # bfloat16 keeps 8 bits: 0.4% a rounding, over three layers


def test_gradients_of_bfloat16_compute_are_float32() -> None:
    _, grads = loss_and_grads(SMALL, dataclasses.replace(FLOAT32, dtype="bfloat16"))
    _, exact = loss_and_grads(SMALL, FLOAT32)
    for path, grad in grads.items():
        assert grad.dtype == jnp.float32
        norm = jnp.linalg.norm(exact[path])
        assert jnp.linalg.norm(grad - exact[path]) < 0.05 * norm, path


def matrix_products(compute: ComputeConfig) -> list[str]:
    """Every matrix product of a loss and its gradient, as StableHLO."""
    lowered = value_and_grad.lower(random_params(SMALL), tokens_of(SMALL), SMALL, compute)
    return [line for line in lowered.as_text().splitlines() if "stablehlo.dot_general" in line]


@pytest.mark.parametrize("remat", ["none", "full"])
def test_float32_products_are_float32_on_every_accelerator(remat: str) -> None:
    """TPUs and GPUs would otherwise round the operands, which a CPU's logits do not show."""
    products = matrix_products(dataclasses.replace(FLOAT32, remat=remat))
    assert len(products) >= 3 * 10  # 9 in a layer and the head, each with two gradients
    assert all("precision = [HIGHEST, HIGHEST]" in product for product in products)


def test_bfloat16_products_read_bfloat16() -> None:
    """But for the gradients of the scores, which are themselves float32."""
    products = matrix_products(dataclasses.replace(FLOAT32, dtype="bfloat16"))
    operands = [product.split(" : ")[-1].split("->")[0] for product in products]
    wide = [pair for pair in operands if "xf32>" in pair]
    assert len(operands) >= 3 * 10
    assert len(wide) == 2  # of scores, towards either operand


def test_declarations_name_every_parameter_once() -> None:
    """Pins the names and axes that are stored on disk and that growth goes by."""
    declared = {path: (d.axes, d.contracts) for path, d in architecture.declare(SMALL).items()}
    into_heads, into_kv_heads = (
        (("layers", "embed", axis, "head_dim"), ("embed",)) for axis in ("heads", "kv_heads")
    )
    into_mlp, norm = (("layers", "embed", "mlp"), ("embed",)), (("layers", "embed"), ())
    assert declared == {
        "token_embedding": (("vocab", "embed"), ()),
        "layers/attention_norm": norm,
        "layers/attention/q": into_heads,
        "layers/attention/k": into_kv_heads,
        "layers/attention/v": into_kv_heads,
        "layers/attention/o": (("layers", "heads", "head_dim", "embed"), ("heads", "head_dim")),
        "layers/mlp_norm": norm,
        "layers/mlp/gate": into_mlp,
        "layers/mlp/up": into_mlp,
        "layers/mlp/down": (("layers", "mlp", "embed"), ("mlp",)),
        "final_norm": (("embed",), ()),
        "head": (("embed", "vocab"), ("embed",)),
    }


def test_declared_shapes_follow_the_config() -> None:
    sizes = dataclasses.asdict(SMALL)
    for path, declaration in architecture.declare(SMALL).items():
        assert declaration.shape == tuple(sizes[axis] for axis in declaration.axes), path
        assert declaration.dtype == "float32"
        assert declaration.stacked == path.startswith("layers/")


def test_a_tied_embedding_contracts_its_width_and_there_is_no_head() -> None:
    declared = architecture.declare(dataclasses.replace(SMALL, tied=True))
    assert "head" not in declared
    assert declared["token_embedding"].contracts == ("embed",)


def test_a_model_without_layers_has_no_layer_parameters() -> None:
    declared = architecture.declare(dataclasses.replace(SMALL, layers=0))
    assert set(declared) == {"token_embedding", "final_norm", "head"}


def test_a_mesh_in_context_changes_no_declaration() -> None:
    """Nor are its devices asked to compute: they may be absent, and the batch here is one."""
    mesh = AbstractMesh((2, 4, 1, 2), ("data", "fsdp", "sequence", "tensor"))
    with jax.sharding.use_abstract_mesh(mesh):
        inside = architecture.declare(SMALL)
    assert inside == architecture.declare(SMALL)


@pytest.mark.parametrize("model", [SMALL, SHAPES["tied"], SHAPES["no_layers"]])
def test_fresh_parameters_are_what_the_model_takes(model: ModelConfig) -> None:
    params = init_params(architecture.declare(model), model.layers, "paper", seed=0)
    out = logits(params, tokens_of(model), model, FLOAT32)
    assert out.shape == (2, 24, model.vocab)
    assert jnp.isfinite(out).all()


def test_declaring_touches_no_device() -> None:
    """Config files count FLOPs, and on a pod no device may be asked for before its hosts joined."""
    program = (
        "from jax._src import xla_bridge\n"
        "from prts_jax.config import ModelConfig\n"
        "from prts_jax.model.architecture import declare\n"
        "declare(ModelConfig())\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
