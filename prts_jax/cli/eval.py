"""`prts eval`: perplexity of a store or of text, and benchmarks of lm-evaluation-harness."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from prts_jax.cli import eval_text, run
from prts_jax.cli.arguments import ADD_BOS_TOKEN, OneLineParser, add_model_flags, add_value_flags
from prts_jax.errors import UserError, one_line
from prts_jax.evaluate import paper_benchmarks, results, task_files
from prts_jax.evaluate.results import Results
from prts_jax.evaluate.scores import Scores
from prts_jax.paths import as_path, check_output

LONGEST_TASK = 200
"""Most characters of a task's name; the harness's longest has 93."""

TEXTS = {
    "data": ("DIR", "token store (default: the checkpoint's validation store)"),
    "text": ("PATH", "a text file, or a folder of them"),
    "tasks": (
        "NAMES",
        "tasks of lm-evaluation-harness, comma-separated; "
        f"{paper_benchmarks.FLAG}: the paper's eight",
    ),
    "include_path": ("DIR", "folder with your own task files"),
    "layers": (
        "LIST",
        "apply these layers in this order, without growing: '0:24,8:16' applies the middle twice, "
        "'0:8,16:24' leaves it out",
    ),
    "save": (
        "FILE",
        "write the results to a new file, with the score of every request, for --compare",
    ),
    "picture": ("PNG", "draw the differences of a comparison"),
}
"""Flag → metavar and help; the default is ""."""

NUMBERS = {
    "shots": (-1, "examples in a prompt (default: the task's own)"),
    "limit": (0, "most requests of a task (default: all)"),
    "batch": (16, "most rows of a batch (default: 16); fewer where they would not fit in memory"),
    "length": (
        0,
        "most tokens of a row (default: the model's training length; with --perplexity at most "
        "2048 for an imported model)",
    ),
}
"""Flag → default and help."""


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    parser = OneLineParser(
        prog="prts eval",
        description="Evaluate a checkpoint: perplexity (--perplexity), benchmarks (--tasks), both.",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="CKPT",
        action="append",
        default=[],
        help="a checkpoint's directory, or a run's workdir with an optional @step; given several "
        "times, each is compared with the first",
    )
    parser.add_argument(
        "--perplexity",
        action="store_true",
        help="loss, perplexity and bits per byte of --data or --text, overall and by source",
    )
    add_value_flags(parser, TEXTS, NUMBERS)
    add_model_flags(parser)
    parser.add_argument(
        "--documents",
        choices=("yes", "no"),
        help="--perplexity: whether to separate documents that share a row (default: as in "
        "training)",
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="FILE",
        help="files of --save, instead of a checkpoint: scores with 95%% intervals, and "
        "differences to the first, paired if the requests are the same; label=FILE gives a name",
    )
    parser.add_argument("--add_bos_token", action="store_true", help=f"--tasks: {ADD_BOS_TOKEN}")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs `prts eval`; see `prts eval --help`."""
    arguments = parser().parse_args(argv)
    _check(arguments)
    if arguments.compare:
        return _compare(arguments, [results.load(file) for file in arguments.compare])
    if not arguments.checkpoint:
        print(paper_benchmarks.definition())
        return 0
    if arguments.save:
        results.check_new(arguments.save)
    if arguments.picture:
        check_output(arguments.picture, f"--picture={arguments.picture}")
    from prts_jax.evaluate.loaded import resolve

    for checkpoint in arguments.checkpoint:  # a missing one ends the command before any is loaded
        resolve(checkpoint)
    tasks = _tasks(arguments) if arguments.tasks else None
    measured = [_evaluate(arguments, checkpoint, tasks) for checkpoint in arguments.checkpoint]
    if len(measured) > 1:
        return _compare(arguments, measured)
    if arguments.json:
        print(json.dumps(measured[0].figures))
    else:
        print("\n".join(_text(measured[0])))
    if arguments.save:  # after printing, so that a failure to write loses nothing
        results.save(measured[0], arguments.save)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    asked = arguments.perplexity or arguments.tasks.strip(",")
    if arguments.compare and (asked or arguments.checkpoint or arguments.save):
        raise UserError(
            "--compare: reads saved results; leave out --checkpoint, --perplexity, --tasks, --save"
        )
    if arguments.compare and arguments.layers:
        raise UserError("--compare: reads saved results; leave out --layers")
    compared = max(len(arguments.compare), len(arguments.checkpoint))
    if arguments.compare and compared < 2:
        raise UserError("--compare: needs two files or more; differences are to the first")
    if arguments.picture and compared < 2:
        raise UserError("--picture: is of a comparison; give --compare, or several --checkpoint")
    if arguments.picture and not as_path(arguments.picture).parent.is_dir():
        raise UserError(f"--picture={arguments.picture}: no such folder; create it first")
    if arguments.save and compared > 1:
        raise UserError("--save: is for one checkpoint; evaluate each, then use --compare")
    if arguments.compare:
        return
    for checkpoint in arguments.checkpoint:
        if arguments.checkpoint.count(checkpoint) > 1:
            raise UserError(f"--checkpoint={checkpoint}: is given twice; keep one")
    if not arguments.checkpoint and arguments.tasks != paper_benchmarks.FLAG:
        raise UserError(
            "--checkpoint: is missing; name one (without it, --tasks=paper8 lists the benchmarks)"
        )
    if not asked:
        raise UserError("nothing to evaluate: give --perplexity, --tasks=NAMES, or both")
    if arguments.data and arguments.text:
        raise UserError("--data, --text: both are given; keep one")
    if (arguments.data or arguments.text or arguments.documents) and not arguments.perplexity:
        raise UserError("--data, --text, --documents: are for --perplexity; add it")
    for_tasks = (
        arguments.include_path or arguments.limit or arguments.shots >= 0 or arguments.add_bos_token
    )
    if for_tasks and not arguments.tasks:
        raise UserError("--include_path, --shots, --limit, --add_bos_token: need --tasks; add it")
    if arguments.include_path and not as_path(arguments.include_path).is_dir():
        raise UserError(f"--include_path={arguments.include_path}: no such folder; name another")
    # Else the harness reads all its task files, for half a minute, before it knows.
    for name in arguments.tasks.split(","):
        if not name.isprintable() or len(name) > LONGEST_TASK:
            raise UserError(f"--tasks: {name!r} is no name of a task; name one of the harness's")
    if arguments.batch < 1 or arguments.length < 0 or arguments.limit < 0:
        raise UserError("--batch, --length, --limit: must be above 0")


def _evaluate(
    arguments: argparse.Namespace, checkpoint: str, tasks: tuple[Any, list[str]] | None
) -> Results:
    figures: dict[str, Any] = {}
    scores: list[Scores] = []
    if arguments.perplexity:
        figures, scores = _perplexity(arguments, checkpoint)
    if tasks is not None:
        figures["tasks"], of_tasks = _run_tasks(arguments, checkpoint, *tasks)
        scores += of_tasks
    label = one_line(PurePath(checkpoint).name)
    if arguments.layers:
        figures["layers"] = arguments.layers
        label = f"{label}, layers {arguments.layers}"
    if arguments.weights != "params":
        figures["weights"] = arguments.weights
        label = f"{label}, {arguments.weights}"
    return Results(label, checkpoint, figures, tuple(scores))


def _perplexity(
    arguments: argparse.Namespace, checkpoint: str
) -> tuple[dict[str, Any], list[Scores]]:
    from prts_jax.evaluate import data_loss
    from prts_jax.evaluate.loaded import load

    loaded = load(checkpoint, arguments.dtype, layers=arguments.layers, weights=arguments.weights)
    if arguments.text:
        data = data_loss.read_text(loaded, arguments.text, arguments.tokenizer)
    else:
        data = data_loss.open_store(loaded, arguments.data)
    documents = None if arguments.documents is None else arguments.documents == "yes"
    return data_loss.measure(loaded, data, arguments.batch, arguments.length, documents)


def _tasks(arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    """Returns the harness's tasks, and the names that were asked for."""
    names: list[str] = []
    for name in filter(None, arguments.tasks.split(",")):
        names += (
            [b.task for b in paper_benchmarks.BENCHMARKS]
            if name == paper_benchmarks.FLAG
            else [name]
        )
    if not arguments.include_path:  # files of the user may include others of any name
        task_files.check_mentioned(names)
    try:
        from prts_jax.evaluate import harness
    except ImportError as error:
        raise UserError(
            f"--tasks: needs lm-evaluation-harness ({error}); pip install 'prts_jax[eval]'"
        ) from error
    manager = harness.Tasks(include_path=arguments.include_path or None)
    manager.check(names)
    return manager, names


def _run_tasks(
    arguments: argparse.Namespace, checkpoint: str, manager: Any, names: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], list[Scores]]:
    from prts_jax.evaluate import harness

    model = harness.HarnessModel(
        checkpoint,
        arguments.tokenizer,
        arguments.dtype,
        arguments.batch,
        arguments.length,
        arguments.add_bos_token,
        arguments.layers,
        arguments.weights,
    )
    shots = None if arguments.shots < 0 else arguments.shots
    figures, scores = harness.run_tasks(model, manager, names, shots, arguments.limit or None)
    if paper_benchmarks.FLAG in arguments.tasks.split(","):
        figures[paper_benchmarks.AVERAGE] = {"acc,none": paper_benchmarks.average(figures)}
    return figures, scores


def _compare(arguments: argparse.Namespace, measured: Sequence[Results]) -> int:
    named = results.with_unique_labels(measured, arguments.compare or arguments.checkpoint)
    rows, labels = results.rows_of(named), [one.label for one in named]
    if not rows:
        raise UserError("--compare: no scores in the files; save them with --tasks or --perplexity")
    if arguments.picture:
        from prts_jax.report import score_figure

        score_figure.write(labels, rows, arguments.picture)
    if arguments.json:
        print(json.dumps({"checkpoints": labels, "rows": [row.to_json() for row in rows]}))
    else:
        print("\n".join(eval_text.table(labels, rows, {})))
    return 0


def _text(measured: Results) -> list[str]:
    figures = measured.figures
    lines = eval_text.losses(figures) if "loss" in figures else []
    tasks = figures.get("tasks", {})
    about = {
        task: ", ".join(f"{key} {values[key]}" for key in ("version", "shots") if key in values)
        for task, values in tasks.items()
    }
    rows = [row for row in results.rows_of([measured]) if row.group in tasks]
    return lines + (eval_text.table([measured.label], rows, about) if rows else [])


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "eval"))
