"""Rows become turns, and turns become tokens that know which of them are answers."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.chat.template import PLAIN
from data_pipelines.chat.turns import Turn, tokens_of, turns_of
from data_pipelines.text.rows import CHAT_FAULTS, FAULTS, Fault

EOS = 0


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def said(row: dict[str, Any]) -> tuple[str, str]:
    """Returns a row's text, and below each character `a` where it is an answer; the end is `$`."""
    turns = turns_of(row, 1)
    assert not isinstance(turns, Fault)
    tokens, answers = tokens_of(turns, letters, EOS)
    text = "".join("$" if token == EOS else chr(token) for token in tokens)
    return text, "".join("a" if counted else "." for counted in answers)


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_an_instruction_is_a_user_turn_and_its_output_an_answer():
    text, answers = said({"instruction": "Add.", "input": "1 2", "output": "3"})
    assert text == "### Instruction:\nAdd.\n\n1 2\n\n### Response:\n3$"
    assert answers == "." * (len(text) - 2) + "aa"


@pytest.mark.parametrize("rest", [{}, {"input": ""}])
def test_an_instruction_needs_no_input(rest: dict[str, str]):
    text, _ = said({"instruction": "Sing.", "output": "La", **rest})
    assert text == "### Instruction:\nSing.\n\n### Response:\nLa$"


def test_every_answer_of_a_conversation_counts_with_its_end():
    text, answers = said(
        {
            "messages": [
                message("system", "Be {}."),
                message("user", "Hi"),
                message("assistant", "Ho"),
                message("user", "And?"),
                message("assistant", "No"),
                message("user", "left out, for nothing answers it"),
            ]
        }
    )
    first = "### System:\nBe {}.\n\n### Instruction:\nHi\n\n### Response:\n"
    second = "### Instruction:\nAnd?\n\n### Response:\n"
    assert text == f"{first}Ho${second}No$"
    assert answers == "." * len(first) + "aaa" + "." * len(second) + "aaa"


spoken = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
answered = spoken.filter(str.strip)


@given(
    system=st.none() | spoken, talk=st.lists(st.tuples(spoken, answered), min_size=1, max_size=4)
)
def test_marked_tokens_are_exactly_the_answers(system: str | None, talk: list[tuple[str, str]]):
    messages = [] if system is None else [message("system", system)]
    for asked, answer in talk:
        messages += [message("user", asked), message("assistant", answer)]
    turns = turns_of({"messages": messages}, 1)
    assert not isinstance(turns, Fault)
    assert [turn.role for turn in turns] == [turn["role"] for turn in messages]
    tokens, answers = tokens_of(turns, letters, EOS)
    counted = [chr(token) for token, mark in zip(tokens, answers, strict=True) if mark]
    assert "".join(counted) == "".join(f"{answer}\0" for _, answer in talk)
    assert not answers[0]


def test_turns_between_two_answers_are_encoded_as_one_text():
    pieces: list[str] = []

    def whole(text: str) -> list[int]:
        pieces.append(text)
        return [1]

    turns = [Turn("system", "s"), Turn("user", "u"), Turn("assistant", "a")]
    tokens, answers = tokens_of(turns, whole, EOS)
    assert pieces == ["### System:\ns\n\n### Instruction:\nu\n\n### Response:\n", "a"]
    assert (tokens.tolist(), answers.tolist()) == ([1, 1, EOS], [0, 1, 1])


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_a_prompt_has_the_tokens_of_training(system: str):
    told = [message("system", system)] if system else []
    messages = [*told, message("user", "Sing {}."), message("assistant", "La")]
    text, answers = said({"messages": messages})
    assert text[: answers.index("a")] == PLAIN.prompt("Sing {}.", system)


USER, ASSISTANT = message("user", "u"), message("assistant", "a")


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "missing_turns"),
    ({"instruction": "i"}, "missing_turns"),
    ({"output": "o"}, "missing_turns"),
    ({"instruction": 1, "output": "o"}, "bad_turn"),
    ({"instruction": "i", "input": None, "output": "o"}, "bad_turn"),
    ({"instruction": "i", "output": ["o"]}, "bad_turn"),
    ({"messages": "hello"}, "bad_turn"),
    ({"messages": ["hello"]}, "bad_turn"),
    ({"messages": [{"role": "user"}]}, "bad_turn"),
    ({"messages": [USER, message("assistant", None)]}, "bad_turn"),
    ({"messages": [USER, message("tool", "t")]}, "unknown_role"),
    ({"messages": [message(["user"], "u")]}, "unknown_role"),
    ({"messages": [ASSISTANT]}, "turns_out_of_order"),
    ({"messages": [USER, USER, ASSISTANT]}, "turns_out_of_order"),
    ({"messages": [USER, message("system", "s"), ASSISTANT]}, "turns_out_of_order"),
    ({"messages": []}, "no_answer"),
    ({"messages": [USER]}, "no_answer"),
    ({"messages": [message("system", "s")]}, "no_answer"),
    ({"messages": [USER, message("assistant", " \n")]}, "no_answer"),
    ({"instruction": "i", "output": ""}, "no_answer"),
    ({"instruction": "\ud800", "output": "o"}, "lone_surrogate"),
    ({"messages": [USER, {**ASSISTANT, "weight": 0.5}]}, "bad_weight"),
    ({"messages": [USER, {**ASSISTANT, "train": "no"}]}, "bad_weight"),
    ({"messages": [{**USER, "train": True}, ASSISTANT]}, "bad_weight"),
    ({"messages": [USER, {**ASSISTANT, "weight": 0}]}, "no_answer"),
    ({"messages": [USER, ASSISTANT], "weight": 0}, "no_answer"),
    ({"messages": [USER, {**ASSISTANT, "tool_calls": [{}]}]}, "unsupported_field"),
    ({"messages": [USER, ASSISTANT], "tools": [{}]}, "unsupported_field"),
    (
        {"conversations": [{"from": "human", "value": "u"}, {"from": "bard", "value": "a"}]},
        "unknown_role",
    ),
    ({"conversations": {"from": "human"}}, "bad_turn"),
]


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}, {"loss": 0.0}])
def test_an_answer_of_weight_0_is_read_and_not_learned(flag: dict[str, Any]):
    first, second = {**message("assistant", "Ho"), **flag}, message("assistant", "No")
    text, answers = said({"messages": [USER, first, USER, {**second, "weight": 1}]})
    assert "Ho$" in text
    assert answers == "." * (len(text) - 3) + "aaa"


def test_share_gpt_reads_as_messages():
    turns = [("system", "s"), ("human", "Hi"), ("gpt", "Ho")]
    row = {"conversations": [{"from": role, "value": content} for role, content in turns]}
    assert turns_of(row, 1) == [Turn("system", "s"), Turn("user", "Hi"), Turn("assistant", "Ho")]


@pytest.mark.parametrize(("row", "kind"), BAD)
def test_a_bad_conversation_has_its_kind_of_fault(row: dict[str, Any], kind: str):
    actual = turns_of(row, 7)
    assert isinstance(actual, Fault)
    assert (actual.kind, actual.line) == (kind, 7)
    assert kind in FAULTS


def test_every_kind_is_tested():
    here = {kind for _, kind in BAD} | {"too_long"}  # which is in test_instructions.py
    assert here == {*CHAT_FAULTS, "lone_surrogate"}
