"""`prts data`: text to token stores, and tokenizers."""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from prts_jax.cli import data_flags, data_show, run
from prts_jax.cli.arguments import OneLineParser
from prts_jax.cli.data_flags import SPLITS
from prts_jax.errors import UserError, storage_errors
from prts_jax.paths import as_path, check_output, make_folders
from prts_jax.progress import report_to_stderr

CHAT_TEMPLATE = "chat_template.jinja"  # since transformers 5; before, in tokenizer_config.json


def main(argv: Sequence[str]) -> int:
    """Runs one of the subcommands."""
    arguments = _parser().parse_args(argv)
    arguments.run(arguments)
    return 0


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="prts data", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for flags, run_command in (
        (data_flags.cache, _cache),
        (data_flags.beam, _beam),
        (data_flags.instructions, _instructions),
        (data_flags.import_, _import),
        (data_flags.verify, _verify),
        (data_flags.stats, _stats),
        (data_flags.show, data_show.show),
        (data_flags.tokenizer, _tokenizer),
    ):
        data_flags.add(commands, flags).set_defaults(run=run_command)
    return parser


def _cache(arguments: argparse.Namespace) -> None:
    cache = _data_module("build.cache").cache
    _build(arguments, partial(cache, workers=arguments.workers))


def _beam(arguments: argparse.Namespace) -> None:
    cache = _data_module("build.beam", extra="beam").cache
    _build(arguments, partial(cache, options=arguments.pipeline_options))


def _build(arguments: argparse.Namespace, cache: Callable[..., Any]) -> None:
    """Builds the store of each split."""
    tasks = list(_tasks(arguments))
    _name_left_out(arguments.input, (task for _, task in tasks))
    digests = _expected(arguments, tasks)
    for split, task in tasks:
        rules = _task_rules(arguments, split, task, digests)
        _say(cache(task, os.path.join(arguments.output, split), rules=rules))


def _task_rules(arguments: argparse.Namespace, split: str, task: Any, digests: Any) -> Any:
    """Returns the rules of a split's store."""
    extends = _extended(arguments, split)
    layout = _layout(arguments, task)
    if extends and not arguments.layout:
        layout = _data_module("store.index").read_index(extends).get("layout", "mixed")
    return _rules(arguments, layout=layout, digests=digests, extends=extends)


def _extended(arguments: argparse.Namespace, split: str) -> str:
    """Returns the folder of the store that a split's new one extends, or ""."""
    if not arguments.extend:
        return ""
    of_split = os.path.join(arguments.extend, split)
    is_store = (as_path(arguments.extend) / "index.json").exists()
    return str(arguments.extend) if is_store else of_split


def _layout(arguments: argparse.Namespace, task: Any) -> str:
    """Returns the layout; by default a mixture's is by_set, which its shares need."""
    mixture = getattr(task, "mixture", "")
    if mixture:
        print(f"{task.name}: train on its shares with --config.data.mixture={mixture}")
    return arguments.layout or ("by_set" if mixture else "mixed")


def _expected(arguments: argparse.Namespace, tasks: Sequence[tuple[str, Any]]) -> Any:
    """Checks the files of all splits against --expect; returns the digests that it lists."""
    if not arguments.expect:
        return {}
    files = [file for _, task in tasks for file in task.files]
    folder = arguments.input or _data_module("text.inputs").common_folder(files)
    return _data_module("text.manifest").expected_digests(arguments.expect, files, folder)


def _tasks(arguments: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Yields each split to make, and its task."""
    if arguments.format:
        yield from _folder_tasks(arguments)
        return
    for flag in ("text_field", "set_field", "sets", "include", "exclude"):
        if getattr(arguments, flag):
            raise UserError(f"--{flag} goes with --format; a task knows its fields")
    paths = (arguments.input, arguments.tokenizer)
    plain = _data_module("text.plain")
    for split in SPLITS if arguments.split == "all" else (arguments.split,):
        # seqio and TensorFlow take seconds and a gigabyte to load; most tasks do without.
        if not arguments.module and plain.has_plain_task(arguments.task):
            yield split, plain.open_plain_task(arguments.task, split, *paths, arguments.end_id)
            continue
        if arguments.end_id:
            raise UserError(f"--end_id: task {arguments.task} ends its documents itself")
        tasks = _data_module("text.tasks")
        yield split, tasks.open_task(arguments.task, split, *paths, arguments.module)


def _folder_tasks(arguments: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    if arguments.input is None or arguments.module:
        raise UserError("--format goes with --input=FOLDER and without --module")
    folders = _data_module("text.folders")
    if arguments.format == "parquet":
        _data_module("text.parquet")
    form = folders.Format(
        arguments.format,
        arguments.text_field or "text",
        arguments.set_field,
        tuple(arguments.sets.split(",")) if arguments.sets else (),
        tuple(arguments.include),
        tuple(arguments.exclude),
    )
    splits = tuple(split for split in folders.splits_of(arguments.input, form) if split in SPLITS)
    if arguments.split != "all":
        splits = (arguments.split,)
    if not splits:
        raise UserError(
            f"{arguments.input} has no train/ and no validation/ with files of this format: name "
            "the split that the folder is with --split"
        )
    tokenizer = arguments.tokenizer or os.path.join(arguments.input, "tokenizer.model")
    tasks = [
        (split, folders.open_folder(arguments.input, split, form, tokenizer, arguments.end_id))
        for split in splits
    ]
    yield from tasks


def _name_left_out(folder: str | None, tasks: Iterable[Any]) -> None:
    """Prints a line about the files of the input's folder that no task reads."""
    if not folder:
        return  # a corpus at home
    try:
        taken = [file for task in tasks for file in task.files]
        note = _data_module("text.folders").left_out(folder, taken)
    except UserError as error:
        note = f"files that are not read cannot be named: {error}"
    if note:
        report_to_stderr(note)


def _instructions(arguments: argparse.Namespace) -> None:
    instructions = _data_module("chat.instructions")
    packing = _data_module("chat.packing").Packing(
        arguments.length, arguments.too_long, arguments.held_out, arguments.seed
    )
    tokenizer = _data_module("text.tokenizer").load_tokenizer(arguments.tokenizer, arguments.end_id)
    encoder = _data_module("text.native").encoder_of(tokenizer)
    tasks = instructions.open_instructions(arguments.input, tokenizer, encoder.ids, packing)
    if as_path(arguments.input).is_dir():
        _name_left_out(arguments.input, tasks.values())
    for split, task in tasks.items():
        rules = _rules(arguments, packing=packing, extends=_extended(arguments, split))
        store = _data_module("build.cache").cache(
            task, os.path.join(arguments.output, split), rules=rules
        )
        counts = _data_module("store.statistics").statistics(store.directory)
        print(f"{store.directory}: {counts.packed}")
    template = packing.template
    print(
        f"examples read {template.system!r} (if there is a system), {template.user!r}, "
        f"{template.answer!r}, the answer, the end-of-text token {tokenizer.eos_id}"
    )
    if CHAT_TEMPLATE in tokenizer.beside or "chat_template" in tokenizer.config:
        print(f"the chat_template of {arguments.tokenizer} is not used")


def _rules(arguments: argparse.Namespace, **options: Any) -> Any:
    return _data_module("build.rules").Rules(
        skip_bad=arguments.on_error == "skip",
        max_bad_fraction=arguments.max_bad_fraction,
        **options,
    )


def _say(store: Any) -> None:
    print(f"{store.directory}: {store.tokens:,} tokens of {store.documents:,} documents")


def _import(arguments: argparse.Namespace) -> None:
    cache = _data_module("build.cache")
    task = _data_module("text.litgpt_bin").open_litgpt(
        arguments.input, arguments.split, arguments.tokenizer
    )
    _name_left_out(arguments.input, [task])
    _say(cache.cache(task, Path(arguments.output)))


def _verify(arguments: argparse.Namespace) -> None:
    def report(problem: str) -> None:
        print(problem, file=sys.stderr)

    index = _data_module("store.verify").verify(arguments.store, arguments.workers, report)
    print(
        f"{arguments.store}: {len(index['shards']):,} shards, {index['tokens']:,} tokens, "
        f"{index['documents']:,} documents as in the index; fingerprint {index['fingerprint']}"
    )


def _stats(arguments: argparse.Namespace) -> None:
    module = _data_module("store.statistics")
    if arguments.histogram:
        check_output(arguments.histogram, f"--histogram={arguments.histogram}")
    counts = module.statistics(arguments.store)
    print(json.dumps(counts.as_json()) if arguments.json else counts.table())
    if arguments.histogram:
        picture = module.draw(counts, f"Documents of {arguments.store}")
        _write(arguments.histogram, "--histogram", picture)


def _tokenizer(arguments: argparse.Namespace) -> None:
    check_output(arguments.output, f"--output={arguments.output}")
    model = _data_module("text.tokenizer").train_from_directory(
        arguments.input, arguments.vocab_size
    )
    _write(arguments.output, "--output", model)
    print(f"{arguments.output}: {arguments.vocab_size:,} pieces")


def _write(path: str, flag: str, content: bytes) -> None:
    with storage_errors(f"{flag}={path}: cannot be written"):
        make_folders(as_path(path).parent)
        as_path(path).write_bytes(content)


def _data_module(name: str, extra: str = "data") -> ModuleType:
    """Imports a module of `data_pipelines`; a UserError names the extra that it lacks."""
    try:
        return importlib.import_module(f"data_pipelines.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(("data_pipelines", "prts_jax")):
            raise
        raise UserError(
            f"preparing text needs {error.name}: install it with `pip install prts_jax[{extra}]`"
        ) from error


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "data"))
