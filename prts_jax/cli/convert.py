"""`prts convert`: converts models between Hugging Face, lit-gpt and prts_jax."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from prts_jax.cli import run
from prts_jax.cli.arguments import OneLineParser
from prts_jax.cli.progress import Progress
from prts_jax.errors import UserError
from prts_jax.formats import convert, import_transforms
from prts_jax.formats.convert import ConversionReport
from prts_jax.formats.model_source import ModelSource
from prts_jax.sizes import format_bytes


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    flags = OneLineParser(
        prog="prts convert",
        description=(
            "Convert a Llama between Hugging Face, lit-gpt and prts_jax, two tensors in "
            "memory at a time. An imported checkpoint is what `prts grow --source` and "
            "config.init.start_from take; an exported folder is what "
            "AutoModelForCausalLM.from_pretrained loads."
        ),
    )
    flags.add_argument(
        "--from",
        dest="source_format",
        required=True,
        metavar="FORMAT",
        help="hf: a folder of transformers; litgpt: a folder with lit_model.pth and "
        "lit_config.json, or a bare .pth file with --preset; orbax: a checkpoint of prts_jax",
    )
    flags.add_argument("--to", required=True, metavar="FORMAT", help="orbax or hf")
    flags.add_argument("--source", required=True, metavar="PATH", help="what is converted")
    flags.add_argument("--target", required=True, metavar="DIR", help="must not exist")
    flags.add_argument(
        "--preset", default="", metavar="NAME", help="litgpt: shape of a bare file, as 6L2048H"
    )
    flags.add_argument(
        "--dtype",
        default="",
        metavar="NAME",
        help=f"to hf: {', '.join(convert.TARGET_DTYPES)} (default: what the weights came in until "
        "they are trained or grown, then float32); checkpoints of prts_jax are float32",
    )
    flags.add_argument(
        "--vocab",
        type=int,
        default=0,
        metavar="N",
        help="pad the vocabulary with zeros, or cut it, to N entries (default: as it is)",
    )
    flags.add_argument(
        "--tokenizer",
        default="",
        metavar="PATH",
        help="folder, or tokenizer.model, to carry along (default: what lies beside the weights)",
    )
    flags.add_argument(
        "--shard_gb",
        type=float,
        default=5.0,
        metavar="N",
        help="to hf: GB of weights a file holds at most (default: 5)",
    )
    flags.add_argument(
        "--verify",
        nargs="?",
        const="weights",
        default="",
        metavar="weights|logits",
        help="afterwards compare source and target, weight by weight and bit for bit; or 'logits': "
        "run both on 64 tokens in float32, the hf one by transformers",
    )
    flags.add_argument("--json", action="store_true", help="print one JSON object")
    return flags


def main(argv: Sequence[str]) -> int:
    """Runs `prts convert`; see `prts convert --help`.

    Raises:
      UserError: the source cannot be read, the target cannot be written, a flag does not fit, or
        --verify finds a difference.
    """
    arguments = parser().parse_args(argv)
    _check(arguments)
    opened = convert.open_source(arguments.source_format, arguments.source, arguments.preset)
    source = import_transforms.with_vocab(opened, arguments.vocab)
    report = _convert(arguments, source)
    verified = _verify(arguments, source, report)
    if arguments.json:
        print(json.dumps(report.to_json() | verified))
        return 0
    print(
        f"{arguments.target}: {report.tensors} tensors, {format_bytes(report.bytes_written)} in "
        f"{report.dtype}, {report.seconds:.1f} s, peak memory {format_bytes(report.peak_rss_bytes)}"
    )
    if report.tokenizer:
        print(f"carried along: {', '.join(report.tokenizer)}")
    for name, value in verified.items():
        print(f"{name.replace('_', ' ')}: {value}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if arguments.to not in ("orbax", "hf"):
        raise UserError(f"--to={arguments.to}: is none of orbax, hf; name one of them")
    if arguments.to == "orbax" and arguments.dtype not in ("", "float32"):
        raise UserError(
            f"--dtype={arguments.dtype}: checkpoints of prts_jax hold float32, which training "
            "needs; leave it out"
        )
    if arguments.vocab < 0 or arguments.shard_gb <= 0:
        raise UserError("--vocab, --shard_gb: must be above 0; leave them out for the defaults")
    if arguments.verify not in ("", "weights", "logits"):
        raise UserError(f"--verify={arguments.verify}: is none of weights, logits; name one")


def _convert(arguments: argparse.Namespace, source: ModelSource) -> ConversionReport:
    progress = Progress("convert")
    if arguments.to == "orbax":
        return convert.write_checkpoint(source, arguments.target, arguments.tokenizer, progress)
    return convert.write_huggingface(
        source,
        arguments.target,
        arguments.dtype,
        arguments.tokenizer,
        int(arguments.shard_gb * 1e9),
        progress,
    )


def _verify(
    arguments: argparse.Namespace, source: ModelSource, report: ConversionReport
) -> dict[str, Any]:
    if not arguments.verify:
        return {}
    if arguments.to == "hf":
        source = import_transforms.without_gates(source)
    target = convert.open_source(arguments.to, arguments.target)
    if arguments.verify == "logits":
        from prts_jax.evaluate.logits_check import compare

        logits = compare(source, target)
        return {
            "largest_logit_difference": logits.largest_difference,
            "largest_logit": logits.largest_logit,
            "same_arg_max": logits.same_arg_max,
        }
    difference = convert.first_difference(source, target, report.dtype)
    if difference:
        raise UserError(
            f"{arguments.target}: {difference}: differs from {arguments.source}; the disk may be "
            "damaged: remove it and convert again"
        )
    return {"verified": f"all weights equal, bit for bit, in {report.dtype}"}


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "convert"))
