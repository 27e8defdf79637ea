"""A checkpoint that is loaded computes what it computed where it was trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prts_jax.errors import UserError
from prts_jax.evaluate.loaded import load
from prts_jax.growth.operators import make_map
from prts_jax.model.architecture import logits
from tests.checkpoint.tiny import MODEL, write_source
from tests.growth.on_disk.growing import stream

TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, MODEL.vocab, (2, 9)), jnp.int32)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("loaded") / "source"
    write_source(path)
    return str(path)


def logits_of(checkpoint):
    loaded = load(str(checkpoint), dtype="float32", attention="xla")
    return logits(loaded.params, TOKENS, loaded.model, loaded.compute)


def test_layers_with_closed_gates_do_not_change_logits(source, tmp_path):
    stream(source, str(tmp_path / "grown"), make_map(MODEL, None, "random", factor=2))
    before = logits_of(source)
    tolerance = 1e-6 * float(jnp.abs(before).max())
    np.testing.assert_allclose(logits_of(tmp_path / "grown"), before, rtol=0, atol=tolerance)


def test_half_open_gates_of_width_are_refused(source, tmp_path):
    stream(source, str(tmp_path / "grown"), make_map(MODEL, None, "random_width", widths="mlp=32"))
    with pytest.raises(UserError, match="gates of mlp are open by 0% only"):
        load(str(tmp_path / "grown"))


def test_a_hugging_face_folder_is_refused_with_the_convert_command(tmp_path):
    with pytest.raises(UserError, match="no complete checkpoint there"):
        load(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is a model of Hugging Face; import it first: prts conv"):
        load(str(tmp_path))


def applied_by_hand(checkpoint, layers):
    """The logits of the layers, one after another, each as a model of one layer."""
    loaded = load(str(checkpoint), dtype="float32", attention="xla")
    stacked = loaded.params["layers"]
    picked = jax.tree.map(lambda leaf: jnp.stack([leaf[layer] for layer in layers]), stacked)
    model = dataclasses.replace(loaded.model, layers=len(layers))
    return logits(loaded.params | {"layers": picked}, TOKENS, model, loaded.compute)


@pytest.mark.parametrize(
    ("text", "layers"),
    [("0:3,1:3", [0, 1, 2, 1, 2]), ("0:1,2:3", [0, 2]), ("2:3,0:1,1:2", [2, 0, 1])],
    ids=["looped", "one removed", "permuted"],
)
def test_a_list_of_layers_is_applied_in_its_order(source, text, layers):
    loaded = load(source, dtype="float32", attention="xla", layers=text)
    assert loaded.model.layers == len(layers)
    of_list = logits(loaded.params, TOKENS, loaded.model, loaded.compute)
    np.testing.assert_array_equal(of_list, applied_by_hand(source, layers))
    assert not np.array_equal(of_list, logits_of(source))


@pytest.mark.parametrize("text", ["0:9", "x", "2:2"])
def test_a_list_of_other_layers_is_refused(source, text):
    with pytest.raises(UserError, match="--layers="):
        load(source, layers=text)
