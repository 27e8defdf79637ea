"""Names of shapes."""

import dataclasses

import pytest

from prts_jax.config import check_model
from prts_jax.errors import UserError
from prts_jax.model.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_possible_model(name: str) -> None:
    model = preset(name)
    check_model(model)
    if model.architecture == "llama":
        assert model.heads * model.head_dim == model.embed
    else:
        assert model.head_dim == 128


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("24L1024H", "paper_410m"),
        ("6L1024H", "paper_410m_base"),
        ("24L2048H", "paper_1.1b"),
        ("6L2048H", "paper_1.1b_base"),
        ("32L2560H", "paper_3b"),
        ("8L4096H", "paper_7b_base"),
    ],
)
def test_the_originals_names_are_understood(alias: str, name: str) -> None:
    assert preset(alias) == preset(name)


def test_an_alias_has_any_depth() -> None:
    assert preset("12L2048H") == dataclasses.replace(preset("paper_1.1b"), layers=12)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("paper_1b", "paper_1.1b"), ("llama2_7B", "llama2_7b"), ("24L2047H", "24L2048H")],
)
def test_an_unknown_name_names_the_nearest(name: str, suggestion: str) -> None:
    with pytest.raises(UserError, match=rf"^preset: '{name}' is unknown; .*'{suggestion}'\?$"):
        preset(name)


def test_a_name_like_no_other_lists_what_there_is() -> None:
    with pytest.raises(UserError, match=r"it has paper_410m, .*24L4096H$"):
        preset("?")
