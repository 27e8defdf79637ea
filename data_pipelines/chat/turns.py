"""Rows of instruction data as turns, and turns as tokens with marked answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.chat.template import PLAIN, Template
from data_pipelines.text.rows import Fault

ROLES = ("system", "user", "assistant")

Encode = Callable[[str], Sequence[int]]
"""Text → token ids, without special tokens."""


class Turn(NamedTuple):
    """The content of one turn; the role is one of `ROLES`."""

    role: str
    content: str


def turns_of(row: Mapping[str, Any], number: int) -> list[Turn] | Fault:
    """Returns the turns of one row up to its last answer.

    A row is `{"messages": [{"role": …, "content": …}, …]}`, an optional system followed by user and
    assistant in turn; or Stanford Alpaca's `{"instruction": …, "input": …, "output": …}`, whose
    optional input follows the instruction after an empty line.

    Args:
      row: a JSON object.
      number: the row's line.
    """
    turns = _messages(row, number) if "messages" in row else _instruction(row, number)
    return turns if isinstance(turns, Fault) else _checked(turns, number)


def tokens_of(
    turns: Sequence[Turn], encode: Encode, eos_id: int, template: Template = PLAIN
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of turns, with the answers marked.

    The turns between two answers are encoded as one text, and each answer as another, so that a
    prompt has the same tokens in training and in generation. An answer includes its end-of-text
    token.

    Args:
      turns: turns of `turns_of`.
      encode: encoder of the tokenizer.
      eos_id: id that ends each answer.
      template: template of the text.

    Returns:
      (token ids int32 [n], 1 for a token of an answer and else 0 uint8 [n]).
    """
    tokens: list[int] = []
    answers: list[int] = []
    prompt = ""
    for turn in turns:
        if turn.role != "assistant":
            prompt += template.text(turn.role, turn.content)
            continue
        question, answer = encode(prompt + template.answer), [*encode(turn.content), eos_id]
        tokens += [*question, *answer]
        answers += [0] * len(question) + [1] * len(answer)
        prompt = ""
    return np.array(tokens, np.int32), np.array(answers, np.uint8)


def _messages(row: Mapping[str, Any], number: int) -> list[Turn] | Fault:
    if not isinstance(row["messages"], list):
        return Fault("bad_turn", number, "messages is not a list")
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
    instruction, context = row["instruction"], row.get("input", "")
    if not isinstance(instruction, str) or not isinstance(context, str):
        return Fault("bad_turn", number)
    return [
        Turn("user", f"{instruction}\n\n{context}" if context else instruction),
        Turn("assistant", row["output"]),
    ]


def _checked(turns: list[Turn], number: int) -> list[Turn] | Fault:
    """Returns the turns up to the last answer, or their fault."""
    if not all(isinstance(turn.content, str) for turn in turns):
        return Fault("bad_turn", number)
    try:
        "".join(turn.content for turn in turns).encode()
    except UnicodeEncodeError:
        return Fault("lone_surrogate", number)
    dialogue = turns[1:] if turns and turns[0].role == "system" else turns
    for index, turn in enumerate(dialogue):
        if turn.role != ROLES[1 + index % 2]:
            return Fault("turns_out_of_order", number, f"a turn of the {turn.role}")
    kept = turns[: len(turns) - len(dialogue) % 2]
    answers = [turn.content for turn in kept if turn.role == "assistant"]
    if not answers or not all(answer.strip() for answer in answers):
        return Fault("no_answer", number)
    return kept
