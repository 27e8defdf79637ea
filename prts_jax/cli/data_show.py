"""`prts data show`: a document of a store, or the batch of a run's step."""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from data_pipelines.store.documents import Documents, Part
from data_pipelines.store.store import TokenStore
from prts_jax.errors import UserError, escaped

EXCERPT = 60

Decode = Callable[[Sequence[int]], str]


def show(arguments: argparse.Namespace) -> None:
    """Prints what the flags name."""
    if arguments.workdir is not None:
        if arguments.step is None:
            raise UserError("--run: name one of its steps with --step")
        _show_batch(arguments)
        return
    if arguments.step is not None:
        raise UserError("--step goes with --run")
    if not arguments.store:
        raise UserError("--document: name the store of the document")
    _show_document(arguments)


def _show_document(arguments: argparse.Namespace) -> None:
    store = TokenStore.open(arguments.store)
    part = Documents(store).document(arguments.document)
    text = _decoder(store)(part.tokens.tolist())
    if arguments.json:
        print(json.dumps({"store": store.directory, **part.as_json(), "text": text}))
        return
    print(f"{escaped(store.directory)}: {escaped(str(part))}")
    print(f"ids: {' '.join(map(str, part.tokens.tolist()))}")
    print("text:")
    print("\n".join(map(escaped, text.split("\n"))))


def _show_batch(arguments: argparse.Namespace) -> None:
    from prts_jax.train.trace import batch_of_step

    traced = batch_of_step(arguments.workdir, arguments.step, arguments.store)
    batches, order = traced.batches, traced.batches.order
    starts = batches.starts(order.consumed(traced.position, 0, order.batch))
    # Two choices of sets may come from one folder.
    documents = {id(store): Documents(store) for store, _ in starts}
    if not arguments.json:
        print(
            f"{escaped(arguments.workdir)}, step {arguments.step}: position {traced.position:,}, "
            f"{order.batch} windows of {order.length} + 1 tokens"
        )
    decode, windows = _decoder(starts[0][0]), []
    for number, (store, start) in enumerate(starts, 1):
        parts = documents[id(store)].window(start, order.length + 1)
        position = traced.position + (number - 1) * order.length
        if arguments.json:
            entries = [{**p.as_json(), "text": decode(p.tokens.tolist())} for p in parts]
            window = {"window": number, "position": position, "store": store.directory}
            windows.append({**window, "documents": entries})
            continue
        print(f"window {number}, position {position:,}, {escaped(store.directory)}:")
        for part in parts:
            print(f"  {len(part.tokens)} tokens of {_line(part, decode)}")
    if arguments.json:
        values: dict[str, Any] = {
            "run": arguments.workdir,
            "step": traced.step,
            "stage": traced.stage,
            "position": traced.position,
            "length": order.length,
            "windows": windows,
        }
        print(json.dumps(values))


def _line(part: Part, decode: Decode) -> str:
    text = decode(part.tokens[: 4 * EXCERPT].tolist())
    short = text if len(text) <= EXCERPT else f"{text[:EXCERPT]} …"
    return escaped(f"{part}: {short}")


def _decoder(store: TokenStore) -> Decode:
    """Returns a function from ids to text, by the store's own tokenizer."""
    from prts_jax.evaluate.tokenizer import open_tokenizer, tokenizer_file

    file = tokenizer_file(store.directory)
    if not file:
        raise UserError(f"{store.directory}: has no tokenizer; copy its tokenizer's file again")
    return open_tokenizer(file).decode
