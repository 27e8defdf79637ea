"""`prts convert`: converts models between Hugging Face, lit-gpt and prts_jax."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from prts_jax.cli import EXIT_FAILED, run
from prts_jax.cli.arguments import OneLineParser, add_value_flags, add_weights_flag
from prts_jax.errors import UserError, escaped, one_line
from prts_jax.formats import convert, export, import_transforms
from prts_jax.formats.model_source import ModelSource
from prts_jax.formats.transfer import ConversionReport
from prts_jax.progress import Progress
from prts_jax.text_table import format_bytes

LARGEST_VOCAB, LARGEST_SHARD = (1 << 31) - 1, 1e6
"""Token ids are int32; a file of more GB fits on no disk."""


TEXTS = {
    "preset": ("NAME", "litgpt: shape of a bare file, as 6L2048H"),
    "dtype": (
        "NAME",
        f"to hf: {', '.join(export.TARGET_DTYPES)} (default: what the weights came in until they "
        "are trained or grown, then float32); checkpoints of prts_jax are float32",
    ),
    "tokenizer": (
        "PATH",
        "folder, or tokenizer.model, to carry along (default: what lies beside the weights)",
    ),
}
"""Flag → metavar and help; the default is ""."""

NUMBERS = {
    "vocab": (0, "pad the vocabulary with zeros, or cut it, to N entries (default: as it is)"),
    "shard_gb": (5.0, "to hf: GB of weights a file holds at most (default: 5)"),
}
"""Flag → default and help."""


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
        "lit_config.json or model_config.yaml, or a .pth file with --preset; orbax: a checkpoint "
        "of prts_jax",
    )
    flags.add_argument("--to", required=True, metavar="FORMAT", help="orbax or hf")
    flags.add_argument("--source", required=True, metavar="PATH", help="what is converted")
    flags.add_argument("--target", required=True, metavar="DIR", help="must not exist")
    add_value_flags(flags, TEXTS, NUMBERS)
    add_weights_flag(flags)
    flags.add_argument(
        "--verify",
        nargs="?",
        const="weights",
        default="",
        metavar="weights|logits",
        help="afterwards compare source and target, weight by weight and bit for bit, and, where "
        "transformers is installed, by 'logits': run both on 64 tokens in float32, the hf one by "
        "transformers, which needs memory for a whole model; exit code 1 if they differ",
    )
    flags.add_argument("--json", action="store_true", help="print one JSON object")
    return flags


def main(argv: Sequence[str]) -> int:
    """Runs `prts convert`; see `prts convert --help`."""
    arguments = parser().parse_args(argv)
    _check(arguments)
    opened = convert.open_source(
        arguments.source_format, arguments.source, arguments.preset, arguments.weights
    )
    source = import_transforms.with_vocab(opened, arguments.vocab)
    report = _convert(arguments, source)
    verified, difference = _verify(arguments, source)
    if arguments.json:
        print(json.dumps(report.to_json() | verified))
        return _verdict(arguments.target, difference)
    print(
        f"{escaped(arguments.target)}: {report.tensors} tensors, "
        f"{format_bytes(report.bytes_written)} in {_dtypes(report)}, {report.seconds:.1f} s, "
        f"peak memory {format_bytes(report.peak_rss_bytes)}"
    )
    if rounding := _rounding(source, report):
        print(rounding)
    if report.tokenizer:
        print(f"carried along: {', '.join(report.tokenizer)}")
    for name, value in verified.items():
        print(f"{name.replace('_', ' ')}: {value}")
    return _verdict(arguments.target, difference)


def _verdict(target: str, difference: str) -> int:
    """Reports a difference that --verify shows; returns the exit code."""
    if not difference:
        return 0
    message = f"{target}: {difference}; remove it and convert again"
    print(f"prts convert: {one_line(message)}", file=sys.stderr)
    return EXIT_FAILED


def _dtypes(report: ConversionReport) -> str:
    """Returns the dtypes written, the most frequent first: "bfloat16 (14), float32 (5)"."""
    if len(report.dtypes) == 1:
        return report.dtype
    counts = sorted(report.dtypes.items(), key=lambda entry: -entry[1])
    return ", ".join(f"{dtype} ({count})" for dtype, count in counts)


def _rounding(source: ModelSource, report: ConversionReport) -> str:
    """Returns a line on dtypes that an export does not keep; "" if it keeps all."""
    came_in = {source.dtype, *(one for layers in source.dtypes.values() for one in layers)}
    if report.target_format == "hf" and source.lineage and source.lineage.imported:
        came_in |= {source.lineage.imported["dtype"]}
        came_in |= {d for own in source.lineage.imported.get("dtypes", {}).values() for d in own}
    wrote = set(report.dtypes)
    if came_in <= wrote or report.target_format != "hf":
        return ""
    return (
        f"dtypes: the weights came in {', '.join(sorted(came_in))} and are written in "
        f"{', '.join(sorted(wrote))}"
    )


def _check(arguments: argparse.Namespace) -> None:
    if arguments.to not in ("orbax", "hf"):
        raise UserError(f"--to={arguments.to}: is none of orbax, hf; name one of them")
    if arguments.to == "orbax" and arguments.dtype not in ("", "float32"):
        raise UserError(
            f"--dtype={arguments.dtype}: checkpoints of prts_jax hold float32, which training "
            "needs; leave it out"
        )
    if arguments.vocab < 0 or not arguments.shard_gb > 0:
        raise UserError("--vocab, --shard_gb: must be above 0; leave them out for the defaults")
    if arguments.vocab > LARGEST_VOCAB or arguments.shard_gb > LARGEST_SHARD:
        raise UserError(
            f"--vocab, --shard_gb: at most {LARGEST_VOCAB:,} entries and {LARGEST_SHARD:,.0f} GB"
        )
    if arguments.verify not in ("", "weights", "logits"):
        raise UserError(f"--verify={arguments.verify}: is none of weights, logits; name one")
    source, target = (os.path.realpath(path) for path in (arguments.source, arguments.target))
    if target.startswith(f"{source}{os.sep}"):
        raise UserError(
            f"--target={arguments.target}: lies inside the source; name a directory outside it"
        )


def _convert(arguments: argparse.Namespace, source: ModelSource) -> ConversionReport:
    progress = Progress("convert")
    if arguments.to == "orbax":
        return convert.write_checkpoint(source, arguments.target, arguments.tokenizer, progress)
    return export.write_huggingface(
        source,
        arguments.target,
        arguments.dtype,
        arguments.tokenizer,
        int(arguments.shard_gb * 1e9),
        progress,
    )


def _verify(arguments: argparse.Namespace, source: ModelSource) -> tuple[dict[str, Any], str]:
    """Compares source and target; returns what was compared, and the difference or "".

    Weights as we read them say nothing of what transformers makes of a folder, so transformers
    computes logits too, where it is installed.
    """
    if not arguments.verify:
        return {}, ""
    dtype = "float32" if arguments.to == "orbax" else arguments.dtype
    if arguments.to == "hf":
        source = import_transforms.without_gates(source)
    target = convert.open_source(arguments.to, arguments.target)
    verified: dict[str, Any] = {}
    if arguments.verify == "weights":
        if difference := convert.first_difference(source, target, dtype):
            return {}, f"{difference}: differs from {arguments.source}; the disk may be damaged"
        each = ", ".join(sorted(export.dtypes_written(source, dtype)))
        verified = {"verified": f"all weights equal, bit for bit, in {each}"}
        if "hf" not in (source.format, target.format) or not find_spec("transformers"):
            return verified, ""
    from prts_jax.evaluate.logits_check import compare

    logits = compare(import_transforms.rounded(source, dtype), target)
    verified |= {
        "largest_logit_difference": logits.largest_difference,
        "largest_logit": logits.largest_logit,
        "same_arg_max": logits.same_arg_max,
    }
    if logits.agree:
        return verified, ""
    return verified, (
        f"logits differ by up to {logits.largest_difference:.3g} from those of {arguments.source} "
        f"(largest {logits.largest_logit:.3g})"
    )


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "convert"))
