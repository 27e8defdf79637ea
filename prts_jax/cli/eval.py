"""`prts eval`: perplexity of a store or of text, and benchmarks of lm-evaluation-harness."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import Any, cast

import jax

from prts_jax.cli import run
from prts_jax.cli.arguments import OneLineParser
from prts_jax.errors import UserError
from prts_jax.evaluate import paper8


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    made = OneLineParser(
        prog="prts eval",
        description="Evaluate a checkpoint: perplexity (--perplexity), benchmarks (--tasks), both.",
    )
    made.add_argument(
        "--checkpoint",
        metavar="CKPT",
        default="",
        help="a checkpoint's directory, or a run's workdir with an optional @step",
    )
    made.add_argument(
        "--perplexity",
        action="store_true",
        help="loss, perplexity and bits per byte of --data or --text, for each source of it",
    )
    made.add_argument(
        "--data",
        default="",
        metavar="DIR",
        help="token store (default: the checkpoint's validation store)",
    )
    made.add_argument("--text", default="", metavar="PATH", help="a text file, or a folder of them")
    made.add_argument(
        "--tasks",
        default="",
        metavar="NAMES",
        help=f"tasks of lm-evaluation-harness, comma-separated; {paper8.NAME}: the paper's eight",
    )
    made.add_argument(
        "--include_path", default="", metavar="DIR", help="folder of task files of your own"
    )
    made.add_argument(
        "--shots", type=int, default=-1, metavar="N", help="examples (default: the task's own)"
    )
    made.add_argument(
        "--limit", type=int, default=0, metavar="N", help="requests of a task (default: all)"
    )
    made.add_argument("--batch", type=int, default=16, metavar="N", help="rows at a time")
    made.add_argument(
        "--length",
        type=int,
        default=0,
        metavar="N",
        help="tokens of a row at most (default: what the model was trained with)",
    )
    made.add_argument(
        "--dtype", default="bfloat16", metavar="NAME", help="bfloat16 (default) or float32"
    )
    made.add_argument(
        "--tokenizer",
        default="",
        metavar="PATH",
        help="folder, tokenizer.json or tokenizer.model (default: the checkpoint's own)",
    )
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs `prts eval`; see `prts eval --help`.

    Raises:
      UserError: no such checkpoint, data, tokenizer or task, or flags that do not fit together.
    """
    arguments = parser().parse_args(argv)
    _check(arguments)
    if not arguments.checkpoint:
        print(paper8.definition())
        return 0
    found: dict[str, Any] = {}
    if arguments.perplexity:
        found |= _perplexity(arguments)
    if arguments.tasks:
        found["tasks"] = _tasks(arguments)
    if arguments.json:
        print(json.dumps(found))
    else:
        print("\n".join(_text(found)))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if not arguments.checkpoint and arguments.tasks != paper8.NAME:
        raise UserError(
            "--checkpoint: is missing; name one (without it, --tasks=paper8 prints what is run)"
        )
    if not arguments.perplexity and not arguments.tasks:
        raise UserError("nothing to evaluate: give --perplexity, --tasks=NAMES, or both")
    if arguments.data and arguments.text:
        raise UserError("--data, --text: both are given; keep one")
    if (arguments.data or arguments.text) and not arguments.perplexity:
        raise UserError("--data, --text: are for --perplexity; add it")
    if arguments.dtype not in ("bfloat16", "float32"):
        raise UserError(f"--dtype={arguments.dtype}: is none of bfloat16, float32")
    if arguments.batch < 1 or arguments.length < 0 or arguments.limit < 0:
        raise UserError("--batch, --length, --limit: must be above 0")


def _perplexity(arguments: argparse.Namespace) -> dict[str, Any]:
    from data_pipelines.packed import eval_batches
    from data_pipelines.statistics import statistics
    from data_pipelines.store import TokenStore
    from prts_jax.evaluate.loaded import load
    from prts_jax.evaluate.perplexity import make_evaluator
    from prts_jax.evaluate.text import tokenizer_of
    from prts_jax.evaluate.text_store import open_text
    from prts_jax.mesh import axis_size

    loaded = load(arguments.checkpoint, arguments.dtype)
    data = loaded.lineage.config["data"]
    trained = int(loaded.lineage.imported.get("length") or data["length"])
    sizes: Sequence[int] | None
    if arguments.text:
        tokenizer = tokenizer_of(loaded.path, loaded.lineage, arguments.tokenizer)
        text = open_text(arguments.text, tokenizer.encode, tokenizer.eos)
        store, sizes = cast(TokenStore, text), text.text_bytes
    else:
        directory = arguments.data or data["validation"]
        if not directory:
            raise UserError(
                "--perplexity: the checkpoint names no validation store; give --data=DIR or --text"
            )
        store = TokenStore.open(directory)
        counted = statistics(directory).text_bytes
        sizes = None if counted is None else counted.tolist()
        if store.vocab_size > loaded.model.vocab:
            raise UserError(
                f"{directory}: its tokenizer has {store.vocab_size} entries and the model "
                f"{loaded.model.vocab}; give a store made with the model's tokenizer"
            )
    parts = axis_size(loaded.mesh, "batch")
    rows = -(-arguments.batch // parts) * parts
    length = min(arguments.length or store.packed or trained, max(store.tokens - 1, 1))
    batches = eval_batches(store, length, rows)
    with jax.set_mesh(loaded.mesh):
        evaluate = make_evaluator(loaded.model, loaded.compute, batches, loaded.mesh)
        result = evaluate(loaded.params)
    by_name = dict(zip(store.sources, sizes or [0] * len(store.sources), strict=True))
    return {
        **_measures(result.loss, result.tokens, sum(by_name.values())),
        "per_source": {
            name: _measures(loss, tokens, by_name[name])
            for name, (loss, tokens) in result.by_source.items()
        },
    }


def _measures(loss: float, tokens: int, text_bytes: int) -> dict[str, Any]:
    """Loss in nats a token; bits per byte where the bytes are known (end tokens cost bits too)."""
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "tokens": tokens,
        "bits_per_byte": loss * tokens / math.log(2) / text_bytes if text_bytes else None,
    }


def _tasks(arguments: argparse.Namespace) -> dict[str, Any]:
    try:
        from prts_jax.evaluate import harness
    except ImportError as error:
        raise UserError(
            f"--tasks: needs lm-evaluation-harness ({error}); pip install 'prts_jax[eval]'"
        ) from error
    names: list[str] = []
    for name in filter(None, arguments.tasks.split(",")):
        names += [b.task for b in paper8.BENCHMARKS] if name == paper8.NAME else [name]
    model = harness.HarnessModel(
        arguments.checkpoint,
        arguments.tokenizer,
        arguments.dtype,
        arguments.batch,
        arguments.length,
    )
    shots = None if arguments.shots < 0 else arguments.shots
    found = harness.run_tasks(model, names, arguments.include_path, shots, arguments.limit or None)
    results = {
        task: {
            "version": found["versions"].get(task),
            "shots": found["n-shot"].get(task),
            **{key: value for key, value in values.items() if key != "alias"},
        }
        for task, values in found["results"].items()
    }
    if paper8.NAME in arguments.tasks.split(","):
        results["average of seven"] = {"acc,none": paper8.average(results)}
    return results


def _text(found: dict[str, Any]) -> list[str]:
    lines = []
    if "loss" in found:
        lines.append(
            f"{'source':24} {'tokens':>12} {'loss':>8} {'perplexity':>12} {'bits/byte':>10}"
        )
        for name, row in {**found["per_source"], "all": found}.items():
            bits = "–" if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.4f}"
            lines.append(
                f"{name:24} {row['tokens']:>12,} {row['loss']:>8.4f} {row['perplexity']:>12.4f} "
                f"{bits:>10}"
            )
    for task, values in found.get("tasks", {}).items():
        about = ", ".join(f"{k} {values[k]}" for k in ("version", "shots") if k in values)
        lines.append(f"{task}{f' ({about})' if about else ''}")
        for key, value in values.items():
            if isinstance(value, float):
                lines.append(f"  {key.removesuffix(',none'):32} {value:.4f}")
    return lines


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "eval"))
