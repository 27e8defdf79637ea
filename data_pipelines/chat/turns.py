"""From a row of instruction data to turns, and from turns to tokens that know what is an answer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.chat.template import PLAIN, Template
from data_pipelines.text.rows import Fault

ROLES = ("system", "user", "assistant")

Encode = Callable[[str], Sequence[int]]
"""Text → token ids, without special tokens."""


class Turn(NamedTuple):
    """What one speaker says; the role is one of `ROLES`."""

    role: str
    content: str


def turns_of(row: Mapping[str, Any], number: int) -> list[Turn] | Fault:
    """Returns the turns of one row, of one of the two kinds.

    `{"messages": [{"role": …, "content": …}, …]}`: the system first, if at all, then user and
    assistant by turns; or `{"instruction": …, "input": …, "output": …}` (Stanford Alpaca's), whose
    input may be missing or empty and follows the instruction after an empty line. What comes after
    the last answer is left out.

    Args:
      row: a JSON object.
      number: its line.
    """
    turns = _messages(row, number) if "messages" in row else _instruction(row, number)
    return turns if isinstance(turns, Fault) else _checked(turns, number)


def tokens_of(
    turns: Sequence[Turn], encode: Encode, eos_id: int, template: Template = PLAIN
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of turns, and which of them are answers.

    All that stands between two answers is encoded as one text, and so is each answer: a prompt
    has the same tokens when the model is asked as when it was trained. An answer's end-of-text
    token belongs to it.

    Args:
      turns: of `turns_of`.
      encode: the tokenizer.
      eos_id: ends each answer.
      template: see there.

    Returns:
      (token ids int32 [n], 1 for a token of an answer and else 0 uint8 [n]).
    """
    tokens: list[int] = []
    answers: list[int] = []
    prompt = ""
    for turn in turns:
        if turn.role != "assistant":
            prompt += template.said(turn.role, turn.content)
            continue
        asked, answered = encode(prompt + template.answer), [*encode(turn.content), eos_id]
        tokens += [*asked, *answered]
        answers += [0] * len(asked) + [1] * len(answered)
        prompt = ""
    return np.array(tokens, np.int32), np.array(answers, np.uint8)


def _messages(row: Mapping[str, Any], number: int) -> list[Turn] | Fault:
    if not isinstance(row["messages"], list):
        return Fault("bad_turn", number, "messages is no list")
    turns = []
    for message in row["messages"]:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            return Fault("bad_turn", number)
        if message["role"] not in ROLES:
            return Fault("unknown_role", number, repr(message["role"])[:80])
        turns.append(Turn(message["role"], message["content"]))
    return turns


def _instruction(row: Mapping[str, Any], number: int) -> list[Turn] | Fault:
    if not {"instruction", "output"} <= row.keys():
        return Fault("missing_turns", number)
    asked, given = row["instruction"], row.get("input", "")
    if not isinstance(asked, str) or not isinstance(given, str):
        return Fault("bad_turn", number)
    return [
        Turn("user", f"{asked}\n\n{given}" if given else asked),
        Turn("assistant", row["output"]),
    ]


def _checked(turns: list[Turn], number: int) -> list[Turn] | Fault:
    """Returns the turns up to the last answer, or what is wrong with them."""
    if not all(isinstance(turn.content, str) for turn in turns):
        return Fault("bad_turn", number)
    try:
        "".join(turn.content for turn in turns).encode()
    except UnicodeEncodeError:
        return Fault("lone_surrogate", number)
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    for place, turn in enumerate(spoken):
        if turn.role != ROLES[1 + place % 2]:
            return Fault("turns_out_of_order", number, f"a turn of the {turn.role}")
    kept = turns[: len(turns) - len(spoken) % 2]
    answers = [turn.content for turn in kept if turn.role == "assistant"]
    if not answers or not all(answer.strip() for answer in answers):
        return Fault("no_answer", number)
    return kept
