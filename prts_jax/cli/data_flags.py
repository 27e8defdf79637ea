"""The flags of `prts data`: a function a subcommand, whose docstring is the subcommand's help."""

import argparse
import inspect
import os
from collections.abc import Callable
from typing import Any

SPLITS = ("train", "validation")
Commands = Any  # argparse's name for what add_subparsers returns is private
Parser = argparse.ArgumentParser


def add(commands: Commands, flags: Callable[[Parser], None]) -> Parser:
    """Adds a subcommand with the name, the help and the flags of one of the functions below."""
    summary, _, description = (inspect.getdoc(flags) or "").partition("\n\n")
    summary = summary[:1].lower() + summary[1:].rstrip(".")
    name = flags.__name__.rstrip("_")
    parser: Parser = commands.add_parser(name, help=summary, description=description)
    flags(parser)
    return parser


def cache(parser: Parser) -> None:
    """Text into token stores, which the trainer reads.

    Runs a seqio task, or reads a folder of text, JSON lines or parquet, into the token stores
    OUTPUT/train and OUTPUT/validation. A second start continues an unfinished store and reuses a
    finished one.
    """
    _add_input(parser)
    _add_layout(parser)
    _add_bad_rows(parser)
    _add_workers(parser, "processes; any number makes the same bytes")


def beam(parser: Parser) -> None:
    """The same on many machines, as an Apache Beam pipeline.

    Makes the same stores as `prts data cache`, byte for byte, on the machines of a Beam runner;
    input and output may lie on gs://. Options after -- are Beam's.
    """
    _add_input(parser)
    _add_layout(parser)
    _add_bad_rows(parser)
    parser.add_argument(
        "pipeline_options",
        nargs="*",
        metavar="-- PIPELINE_OPTION …",
        help="Beam's own options, after two dashes: -- --runner=DataflowRunner --project=… "
        "--region=… (default: this process)",
    )


def instructions(parser: Parser) -> None:
    """Instruction data into packed stores, for fine-tuning.

    Makes the packed stores OUTPUT/train and OUTPUT/validation from JSON lines, each {instruction,
    input, output}, or {messages: [{role, content}, …]} of system, user and assistant. Whole
    examples share rows of --length tokens; the loss is on answers.
    """
    _add_path(
        parser,
        "--input",
        "file of JSON lines (.jsonl, .jsonl.gz, .jsonl.zst) or a folder of them, which may have "
        "the splits train/ and validation/",
    )
    _add_path(
        parser,
        "--tokenizer",
        "the model's: a SentencePiece model, Hugging Face's tokenizer.json, or a folder that has "
        "one of them",
    )
    _add_end_id(parser, "answer")
    _add_path(parser, "--output", "folder for the stores")
    _add_extend(parser, "same tokenizer and packing")
    parser.add_argument(
        "--length", type=int, required=True, help="tokens of a row, config.data.length later"
    )
    parser.add_argument(
        "--held_out",
        type=float,
        default=0.0,
        help="share of the rows for the validation split, where the input has none (default: 0)",
    )
    parser.add_argument(
        "--too_long",
        choices=["truncate", "refuse"],
        default="truncate",
        help="an example longer than a row: cut its end off and count it, or treat it as a bad "
        "row (default: truncate)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the packing (default: 0)")
    _add_bad_rows(parser)


def import_(parser: Parser) -> None:
    """Make a store of lit-gpt's packed .bin files.

    Makes a store of the LITPKDS files that lit-gpt's and TinyLlama's prepare_*.py wrote, without
    the padding of the last one.
    """
    _add_path(parser, "--input", "folder with the .bin files of one split")
    _add_path(parser, "--tokenizer", "SentencePiece model that made them")
    _add_path(parser, "--output", "folder for the store")
    parser.add_argument("--split", choices=SPLITS, default="train", help="default: train")


def verify(parser: Parser) -> None:
    """Check every digest and count of a store.

    Reads a whole store and compares it with its index; exit code 2 and a line for each fault if
    they differ.
    """
    _add_path(parser, "store", "folder of one split, local or gs://")
    _add_workers(parser, "processes")


def stats(parser: Parser) -> None:
    """Tokens, documents, bytes and bytes per token by set.

    Shows what a store holds.
    """
    _add_path(parser, "store", "folder of one split, local or gs://")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    _add_path(parser, "--histogram", "PNG to draw the documents' lengths into", required=False)


def show(parser: Parser) -> None:
    """A document, or the batch of a run's step, with input files and rows.

    Shows a document of a store, or the documents in the batch that a run took at a step, each with
    its input file and its row there: the data behind a spike of the loss.
    """
    _add_path(
        parser,
        "store",
        "folder of one split, local or gs://; with --run only if the run's store has moved",
        required=False,
    )
    # One of a document of the store, and the batch of a run's step.
    shown = parser.add_mutually_exclusive_group(required=True)
    shown.add_argument("--document", type=int, metavar="N", help="document of the store, from 1")
    shown.add_argument(
        "--run",
        dest="workdir",
        metavar="RUN",
        type=os.path.expanduser,
        help="workdir of a `prts train`",
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="with --run: the step, as in metrics.jsonl"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def tokenizer(parser: Parser) -> None:
    """Train a SentencePiece BPE with Llama's settings.

    Trains a SentencePiece BPE on the training split of a corpus: byte fallback, digits split,
    Llama's special ids. The same text gives the same bytes.
    """
    _add_path(parser, "--input", "folder that holds the corpus's train/")
    _add_path(parser, "--output", "file for the model")
    parser.add_argument(
        "--vocab_size", type=int, default=1024, help="number of pieces (default: 1024)"
    )


def _add_path(parser: Parser, name: str, meaning: str, required: bool = True) -> None:
    """Adds a path, in which `~` is the home folder."""
    positional: dict[str, Any] = {} if required else {"nargs": "?", "default": ""}
    options = {"required": required} if name.startswith("--") else positional
    parser.add_argument(name, type=os.path.expanduser, help=meaning, **options)


def _add_input(parser: Parser) -> None:
    """Adds the flags of `prts data cache` and `beam` that say what is read and written."""
    _add_source(parser)
    _add_fields(parser)
    _add_path(parser, "--output", "folder for the stores, one per split")
    _add_extend(parser, "same task, tokenizer and layout")


def _add_source(parser: Parser) -> None:
    """Adds the flags of the task or format, its folder, tokenizer and expected files."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--task",
        help="shakespeare, debian, slimpajama, one set (slimpajama_arxiv) or a mixture "
        "(slimpajama_no_github)",
    )
    source.add_argument(
        "--format",
        choices=["text", "jsonl", "parquet"],
        help="instead of a task: the format of the files of --input; a text file is one document",
    )
    parser.add_argument(
        "--split",
        choices=[*SPLITS, "all"],
        default="all",
        help="split to make; with --format and a folder that has no train/ and validation/, the "
        "name of all of it (default: all)",
    )
    _add_path(
        parser,
        "--input",
        "folder that holds train/ and validation/ (default: the embedded Shakespeare, or "
        "./slimpajama)",
        required=False,
    )
    _add_path(
        parser,
        "--tokenizer",
        "SentencePiece model, Hugging Face's tokenizer.json, or a folder that has one of them "
        "(default: tokenizer.model in the input's folder)",
        required=False,
    )
    _add_end_id(parser, "document")
    parser.add_argument(
        "--expect",
        default="",
        metavar="N|FILE",
        help="end unless the splits have N files, or exactly those of a list as sha256sum writes "
        "it, paths below --input, with these digests",
    )
    parser.add_argument(
        "--module",
        action="append",
        default=[],
        help="Python module that registers seqio tasks of your own; may be given several times",
    )


def _add_fields(parser: Parser) -> None:
    """Adds the flags of `--format` that choose files and fields."""
    for name, meaning in (
        (
            "--text_field",
            "with --format=jsonl or parquet: field with the text; a.b for field b of field a "
            "(default: text)",
        ),
        (
            "--set_field",
            "with --format=jsonl or parquet: field with the name of a row's set (default: the "
            "sub-folder that a file lies in)",
        ),
        ("--sets", "with --set_field: every name that it may hold, as NAME,NAME,…"),
    ):
        parser.add_argument(name, help=meaning)
    for name, meaning in (
        (
            "--include",
            "with --format: read only files that match this glob, on a file's name or its "
            "path below --input; may be given several times",
        ),
        (
            "--exclude",
            "with --format: leave out files that match this glob; may be given several times",
        ),
    ):
        parser.add_argument(name, action="append", default=[], metavar="GLOB", help=meaning)


def _add_extend(parser: Parser, same: str) -> None:
    _add_path(
        parser,
        "--extend",
        "finished store, or the folder of its splits, whose shards begin the new one; the input "
        f"then holds new files alone ({same})",
        required=False,
    )


def _add_end_id(parser: Parser, what: str) -> None:
    parser.add_argument(
        "--end_id",
        default="",
        metavar="ID|TOKEN",
        help=f"id or text of the token that ends each {what} (default: the one that the "
        "tokenizer's files name)",
    )


def _add_workers(parser: Parser, meaning: str) -> None:
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help=f"{meaning} (default: one for each core)",
    )


def _add_layout(parser: Parser) -> None:
    parser.add_argument(
        "--layout",
        choices=["mixed", "by_set"],
        help="documents in file order, or each shard's sets one after the other, from which the "
        "trainer can choose and weigh sets (default: mixed; by_set for a mixture of tasks)",
    )


def _add_bad_rows(parser: Parser) -> None:
    parser.add_argument(
        "--on_error",
        choices=["fail", "skip"],
        default="fail",
        help="a bad row or file: end with its line, or leave it out and list it in the index "
        "(default: fail)",
    )
    parser.add_argument(
        "--max_bad_fraction",
        type=float,
        default=0.001,
        help="with --on_error=skip, the share of rows that may be left out, of files that may be "
        "damaged, and of their bytes that damage may lose (default: 0.001)",
    )
