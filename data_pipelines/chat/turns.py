"""Rows of instruction data as turns, and turns as tokens with marked answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.chat.template import PLAIN, Template
from data_pipelines.text.rows import Fault

ROLES = ("system", "user", "assistant")

Encode = Callable[[str], Sequence[int]]
"""Text → token ids, without special tokens."""


SHARE_GPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
FLAGS = ("weight", "train", "loss")
"""Fields of a message or a row, 0 or 1, that say whether its answers are learned."""
UNSUPPORTED = ("tools", "functions", "tool_calls", "function_call", "train_detail")


class Turn(NamedTuple):
    """A turn: role, one of `ROLES`, content, and whether the loss counts an answer."""

    role: str
    content: str
    learned: bool = True


def turns_of(row: Mapping[str, Any], number: int) -> list[Turn] | Fault:
    """Returns the turns of one row up to its last answer.

    A row is `{"messages": [{"role": …, "content": …}, …]}`, an optional system followed by user and
    assistant in turn; or Stanford Alpaca's `{"instruction": …, "input": …, "output": …}`, whose
    optional input follows the instruction after an empty line. ShareGPT's `{"conversations":
    [{"from": "human" | "gpt" | "system", "value": …}, …]}` is read too. `weight`, `train` or `loss`
    of 0 in an assistant's message, or in a row, takes the answer from the loss.
    """
    for key in UNSUPPORTED:
        if row.get(key):
            return Fault("unsupported_field", number, key)
    learned = _learned(row, number)
    if isinstance(learned, Fault):
        return learned
    if not learned:
        return Fault("no_answer", number, "the row's weight is 0")
    field = next((name for name in ("messages", "conversations") if name in row), None)
    turns = _messages(row[field], number) if field else _instruction(row, number)
    return turns if isinstance(turns, Fault) else _checked(turns, number)


def tokens_of(
    turns: Sequence[Turn], encode: Encode, eos_id: int, template: Template = PLAIN
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of turns, int32 [n], and 1 for those of answers, else 0, uint8 [n].

    The turns between two answers are encoded as one text, and each answer as another, so that a
    prompt has the same tokens in training and in generation. An answer includes its end-of-text
    token.
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
        answers += [0] * len(question) + [int(turn.learned)] * len(answer)
        prompt = ""
    return np.array(tokens, np.int32), np.array(answers, np.uint8)


def _messages(messages: Any, number: int) -> list[Turn] | Fault:
    if not isinstance(messages, list):
        return Fault("bad_turn", number, "messages is not a list")
    turns = []
    for message in messages:
        turn = _message(message, number)
        if isinstance(turn, Fault):
            return turn
        turns.append(turn)
    return turns


def _message(message: Any, number: int) -> Turn | Fault:
    if not isinstance(message, dict):
        return Fault("bad_turn", number)
    if unsupported := [key for key in UNSUPPORTED if message.get(key)]:
        return Fault("unsupported_field", number, unsupported[0])
    if {"from", "value"} <= message.keys() and "role" not in message:
        role, content = message["from"], message["value"]
        role = SHARE_GPT.get(role, role) if isinstance(role, str) else role
    elif {"role", "content"} <= message.keys():
        role, content = message["role"], message["content"]
    else:
        return Fault("bad_turn", number)
    if role not in ROLES:
        return Fault("unknown_role", number, repr(role)[:80])
    learned = _learned(message, number)
    if isinstance(learned, Fault):
        return learned
    asked = [key for key in FLAGS if message.get(key)]
    if role != "assistant" and asked:
        return Fault("bad_weight", number, f"{asked[0]} of a {role}; the loss is on answers alone")
    return Turn(role, content, learned)


def _learned(row: Mapping[str, Any], number: int) -> bool | Fault:
    """Returns whether all flags of a message or a row are 1 or missing."""
    flags = {key: row[key] for key in FLAGS if row.get(key) is not None}
    for key, value in flags.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            return Fault("bad_weight", number, f"{key} is {value!r}"[:80])
    return all(flags.values())


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
    if not any(turn.learned for turn in kept if turn.role == "assistant"):
        return Fault("no_answer", number, "the weights of all answers are 0")
    return kept
