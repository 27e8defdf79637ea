"""Growth maps: what they refuse, how they are drawn, stored and hashed."""

import dataclasses
import json

import pytest

from prts_jax.config import ModelConfig
from prts_jax.errors import UserError
from prts_jax.growth.map import GrowthMap, format_ranges
from prts_jax.growth.notation import parse_layers

SOURCE = ModelConfig(vocab=64, layers=3, embed=16, heads=2, kv_heads=1, head_dim=8, mlp=32)


def grown(layers: tuple[int, ...], source: ModelConfig = SOURCE, **changes: int) -> GrowthMap:
    target = dataclasses.replace(source, layers=len(layers), **changes)
    return GrowthMap("layers", {}, source, target, layers)


def deep(layers: tuple[int, ...]) -> GrowthMap:
    source = dataclasses.replace(SOURCE, layers=max(layers) + 1)
    return grown(layers, source)


@pytest.mark.parametrize(
    ("layers", "connected", "pairs"),
    [
        ((0, 1, 2) * 2, 4, 5),
        ((0, 0, 1, 1, 2, 2), 2, 5),
        (tuple(range(8)) * 3, 21, 23),
        (tuple(layer for layer in range(8) for _ in range(3)), 7, 23),
    ],
)
def test_connection_rate_of_stacking_and_interpolation_is_the_papers(layers, connected, pairs):
    assert deep(layers).connection_rate() == pytest.approx(connected / pairs)


@pytest.mark.parametrize(
    ("notation", "connected"),
    [
        ("123456*4", 20),
        ("12-3456*5-56", 18),
        ("12-345*7-6", 17),
        ("123-456*7", 17),
        ("1234-56*10", 14),
        ("12-34*10-56", 14),
        ("1-234*7-56", 17),
        ("123*7-456", 17),
    ],
)
def test_connection_rate_of_partial_stacking_is_the_papers(notation, connected):
    layers = parse_layers(notation, 6)
    assert deep(layers).connection_rate() == pytest.approx(connected / 23)


def test_a_single_layer_has_no_seam():
    assert deep((0,)).connection_rate() == 1.0


def test_a_map_survives_json():
    growth_map = grown((0, 1, 1, 2, 2))
    assert GrowthMap.from_json(json.loads(json.dumps(growth_map.to_json()))) == growth_map


def test_the_digest_names_everything_in_the_map():
    growth_map = grown((0, 1, 1, 2, 2))
    same = GrowthMap.from_json(json.loads(json.dumps(growth_map.to_json())))
    assert same.digest() == growth_map.digest()
    assert grown((0, 1, 2, 1, 2)).digest() != growth_map.digest()
    assert dataclasses.replace(growth_map, operator="stack").digest() != growth_map.digest()


@pytest.mark.parametrize(
    ("growth_map", "message"),
    [
        (grown((0, 1)), r"from 3 to 2 layers; growth never shrinks"),
        (grown((0, 1, 2, 3)), r"target layer 3 copies source layer 3, but the source has 3"),
        (grown((0, -2, 2)), r"target layer 1 copies source layer -2"),
        (grown((0, 1, 2, 2), embed=32), r"config\.model\.embed: 16 in the source, 32 in the"),
        (grown((0, 1, 2, 2), kv_heads=2), r"config\.model\.kv_heads: 1 in the source, 2"),
        (dataclasses.replace(grown((0, 1, 2, 2)), layers=(0, 1, 2, 2, 2)), r"list has 5 layers"),
    ],
)
def test_a_map_that_cannot_be_is_refused(growth_map, message):
    with pytest.raises(UserError, match=message):
        growth_map.validate()


@pytest.mark.parametrize("zeroed", [(4,), (-1,), (2, 1), (1, 1)])
def test_zeroed_layers_are_a_rising_list_of_target_layers(zeroed):
    with pytest.raises(UserError, match="zeroed target layers .* are no rising list"):
        dataclasses.replace(grown((0, 1, 2, 2)), zeroed=zeroed).validate()


def test_a_map_with_zeroed_layers_survives_json_and_has_a_digest_of_its_own():
    kept = grown((0, 1, 2, 2))
    zeroed = dataclasses.replace(kept, zeroed=(3,))
    assert GrowthMap.from_json(json.loads(json.dumps(zeroed.to_json()))) == zeroed
    assert zeroed.digest() != kept.digest()


def test_maps_stored_before_there_were_zeroed_layers_still_read():
    values = grown((0, 1, 2, 2)).to_json()
    assert sorted(values) == ["layers", "operator", "options", "source", "target"]
    assert GrowthMap.from_json(values).zeroed == ()


def test_reading_a_map_of_another_version_is_refused():
    values = grown((0, 1, 2)).to_json()
    del values["layers"]
    with pytest.raises(UserError, match="growth map: cannot be read"):
        GrowthMap.from_json(values)


def test_the_drawing_has_a_row_a_source_layer_and_a_column_a_target_layer():
    assert str(grown((0, 1, 2, 0, 1, 2))).splitlines() == [
        "layers: 3 → 6 layers (0:3,0:3), connection rate 4/5",
        "source 2 ··●··●",
        "       1 ·●··●·",
        "       0 ●··●··",
        "  target 0",
    ]


def test_zero_outputs_are_drawn_hollow():
    growth_map = dataclasses.replace(grown((0, 1, 1, 2)), zeroed=(2,))
    assert str(growth_map).splitlines() == [
        "layers: 3 → 4 layers (0:2,1:3), connection rate 2/3, outputs of 1 layers zero, "
        "function preserving",
        "source 2 ···●",
        "       1 ·●○·",
        "       0 ●···",
        "  target 0",
    ]


def test_fresh_layers_have_a_row_of_their_own():
    assert str(grown((0, 1, 2, -1, -1))).splitlines() == [
        "layers: 3 → 5 layers (0:3,2 new), connection rate 2/4",
        "source 2 ··●··",
        "       1 ·●···",
        "       0 ●····",
        "     new ···◆◆",
        "  target 0",
    ]


def test_ranges_read_back_as_the_list():
    layers = (0, 1, 2, 2, 1, 5, 6)
    assert format_ranges(layers) == "0:3,2:3,1:2,5:7"
    assert parse_layers(format_ranges(layers), 7) == layers
