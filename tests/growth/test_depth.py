"""Depth operators and the notations for lists of layers, against the paper's own lists."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prts_jax.config import MAX_LAYERS, ModelConfig
from prts_jax.errors import UserError
from prts_jax.growth.depth import index_list, stack
from prts_jax.growth.map import format_ranges
from prts_jax.growth.notation import parse_layers


def model(layers: int) -> ModelConfig:
    return ModelConfig(vocab=64, layers=layers, embed=16, heads=2, kv_heads=1, head_dim=8, mlp=32)


def test_stack_6_to_24_is_the_source_four_times():
    growth_map = stack(model(6), None, {"factor": 4})
    assert growth_map.layers == tuple(range(6)) * 4
    assert growth_map.target == model(24)


def test_stack_takes_its_factor_from_the_target():
    growth_map = stack(model(6), model(24), {})
    assert growth_map.layers == tuple(range(6)) * 4
    assert growth_map.options == {"factor": 4}


def test_the_grown_model_keeps_everything_of_its_source_but_depth():
    source = dataclasses.replace(model(2), norm_eps=1e-6, rope_theta=5e5, tied=True)
    assert stack(source, None, {"factor": 2}).target == dataclasses.replace(source, layers=4)


@pytest.mark.parametrize(
    ("source", "notation", "layers"),
    [
        (3, "0,0,1,1,2,2", (0, 0, 1, 1, 2, 2)),  # interpolation
        (32, "0:24,8:32", (*range(24), *range(8, 32))),  # SOLAR, m = 8
        (6, "0:6,3:6", (0, 1, 2, 3, 4, 5, 3, 4, 5)),  # gradual 6 → 9
        (9, "0:9,0:9", (*range(9), *range(9))),  # gradual 9 → 18
        (3, " 0:2 , 1:3 ", (0, 1, 1, 2)),
    ],
)
def test_zero_based_lists(source, notation, layers):
    assert index_list(model(source), None, {"layers": notation}).layers == layers


@pytest.mark.parametrize(
    "notation",
    [
        "1-234*7-56",
        "123456*4",
        "12-3456*5-56",
        "12-345*7-6",
        "123-456*7",
        "1234-56*10",
        "12-34*10-56",
        "123*7-456",
    ],
)
def test_each_of_the_papers_partial_stackings_makes_24_layers(notation):
    assert len(parse_layers(notation, 6)) == 24


def test_a_star_repeats_the_group_before_it():
    assert parse_layers("1-234*7-56", 6) == (0, *(1, 2, 3) * 7, 4, 5)
    assert parse_layers("12-34*2", 4) == (0, 1, 2, 3, 2, 3)


@pytest.mark.parametrize(
    ("notation", "source", "message"),
    [
        ("", 6, "is no group"),
        ("1-2--3", 6, "is no group"),
        ("12*", 6, "is no group"),
        ("*3", 6, "is no group"),
        ("1-٣", 6, "is no group"),
        ("12*0", 6, "repeats no times"),
        ("17", 6, "layer 7 is none of the source's layers 1 to 6"),
        ("01", 6, "layer 0 is none of the source's layers 1 to 6"),
        ("123", 12, "use zero-based ranges"),
        ("12*99999", 6, "more than 10000 layers"),
        ("12*9999999999", 6, "is no group"),
        ("0:7", 6, "layer 6 is none of the source's layers 0 to 5"),
        ("3:3", 6, "the range '3:3' is empty"),
        ("4:2", 6, "the range '4:2' is empty"),
        ("0:6,", 6, "is neither a range"),
        ("0:6;3:6", 6, "is neither a range"),
        ("0:-1", 6, "is neither a range"),
        ("0:99999", 6, "more than 10000 layers"),
    ],
)
def test_a_list_that_cannot_be_read_says_why_in_one_line(notation, source, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_layers(notation, source)
    assert "\n" not in str(caught.value)


@given(st.text(), st.integers(0, 40))
def test_any_text_is_a_list_of_source_layers_or_a_user_error(notation, source):
    try:
        layers = parse_layers(notation, source)
    except UserError as error:
        assert "growth.layers" in str(error)
    else:
        assert 0 < len(layers) <= MAX_LAYERS
        assert all(0 <= layer < source for layer in layers)


@given(st.text(alphabet="0123456789-*:,", min_size=1, max_size=30), st.integers(1, 9))
def test_text_of_the_right_letters_is_a_list_or_a_user_error(notation, source):
    try:
        layers = parse_layers(notation, source)
    except UserError:
        return
    assert all(0 <= layer < source for layer in layers)


@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 12)),
        min_size=1,
        max_size=6,
    )
)
def test_groups_written_out_read_back(groups):
    notation = "-".join(
        "".join(map(str, digits)) + (f"*{times}" if times > 1 else "") for digits, times in groups
    )
    expected = [digit - 1 for digits, times in groups for _ in range(times) for digit in digits]
    assert parse_layers(notation, 9) == tuple(expected)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60))
def test_any_index_list_reads_back_from_its_ranges(layers):
    assert parse_layers(format_ranges(tuple(layers)), 31) == tuple(layers)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (None, {}, "growth.factor: is 0 and no target is given"),
        (model(20), {}, "20 target layers are no multiple of the source's 6"),
        (model(5), {}, "5 target layers are no multiple"),
        (model(24), {"factor": 3}, "list has 18 layers and the target model.layers=24"),
        (None, {"factor": -1}, "growth.factor: is -1"),
        (None, {"factor": 10**9}, "growth.factor: is 1000000000"),
    ],
)
def test_a_stack_that_cannot_be_is_refused(target, options, message):
    with pytest.raises(UserError, match=message):
        stack(model(6), target, options)


def test_nothing_can_be_stacked_from_no_layers():
    with pytest.raises(UserError, match="has no layers to stack"):
        stack(model(0), model(6), {})


def test_a_list_must_not_be_shorter_than_its_source():
    with pytest.raises(UserError, match="from 6 to 3 layers; growth never shrinks"):
        index_list(model(6), None, {"layers": "0:3"})


def test_a_list_must_fit_the_target():
    with pytest.raises(UserError, match="the list has 6 layers"):
        index_list(model(6), model(12), {"layers": "0:6"})
