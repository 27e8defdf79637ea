"""`prts grow`: grow a checkpoint, sharing its files or layer by layer."""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence

import jax

from prts_jax.checkpoint import executors, grow, layout
from prts_jax.checkpoint.commit import refuse_existing
from prts_jax.cli import run
from prts_jax.cli.arguments import OneLineParser
from prts_jax.config import GrowthConfig, ModelConfig
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.operators import OPERATORS, make_map
from prts_jax.paths import as_path

_OPTION_HELP = {
    "factor": "stack, interpolate, zero, in width: copies of the layers (default: from "
    "--target_config)",
    "layers": "layers: source layer of each target layer, as '1-234*7-56' (one-based, * repeats "
    "the group before it, sources of at most 9 layers) or '0:24,8:32' (zero-based, half-open)",
    "drop": "solar: layers that each of the two copies lacks (default: from --target_config)",
    "every": "block_expansion: a new layer after every so many (default: from --target_config)",
    "block": "middle, last: layers of the block that is copied (default: from --target_config)",
    "order": "zero, random: 'interleave' puts new layers after their originals, 'stack' on top "
    "(default: interleave)",
    "widths": "in width: new sizes, as 'embed=2048,mlp=5632,heads=32,kv_heads=32' (default: from "
    "--target_config)",
    "weights": "split: 'even' or 'uneven', 2/3 and 1/3 of two copies (default: even)",
    "pair_noise": "split: noise added to one copy and taken from the other, as a share of a fresh "
    "parameter's standard deviation (default: 0)",
    "norm": "in width: 'exact' or 'paper', the paper's formula, which is not function preserving "
    "(default: exact)",
    "noise": "any: share of noise mixed into what is copied, 0.2 in the paper (default: 0)",
    "seed": "of whatever is drawn (default: 0)",
    "options": "another package's operator: its options, as 'name=value,name=value'",
}
"""What each key of `GrowthConfig` is for."""


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    made = OneLineParser(
        prog="prts grow",
        description=(
            "Grow a checkpoint into a deeper or wider one. Where the files allow it, new layers "
            "point at the bytes of the source's (by hard links, which survive its deletion); "
            "otherwise layers are copied or computed one by one, each checked against its digest. "
            "The grown checkpoint continues the lineage of its source (step, tokens, FLOPs, data "
            "position) and has no optimizer state: a run starts from it with "
            "config.init.start_from."
        ),
    )
    made.add_argument(
        "--source",
        required=True,
        metavar="CKPT",
        help="checkpoint to grow: its directory, or a run's workdir with an optional @step",
    )
    made.add_argument(
        "--target", required=True, metavar="DIR", help="the new checkpoint; must not exist"
    )
    made.add_argument(
        "--operator",
        default=None,
        help=f"growth operator: {', '.join(OPERATORS)}, or one that an installed package brings "
        "(default: stack, or layers with --layers)",
    )
    for option in dataclasses.fields(GrowthConfig):
        if option.name != "operator":
            made.add_argument(
                f"--{option.name}",
                type=type(option.default),
                default=option.default,
                metavar="TEXT" if isinstance(option.default, str) else "N",
                help=_OPTION_HELP[option.name],
            )
    made.add_argument(
        "--target_config",
        default="",
        metavar="FILE.py[:arg]",
        help="config whose model the checkpoint shall become; differences are refused",
    )
    made.add_argument(
        "--mode",
        default="auto",
        metavar="MODE",
        help="reference: share the source's files, copy no values; stream: copy layer by layer; "
        "auto: by reference where that is possible, and says why where not (default)",
    )
    made.add_argument(
        "--dry_run", action="store_true", help="draw the map, count bytes, and write nothing"
    )
    made.add_argument(
        "--json", action="store_true", help="print one JSON object on standard output"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Runs `prts grow`; see `prts grow --help`.

    Raises:
      UserError: a checkpoint, a target or a growth that cannot be.
    """
    arguments = parser().parse_args(argv)
    # The work is the host's: an accelerator may be busy with a run, and is left alone.
    jax.config.update("jax_platforms", "cpu")
    source = layout.resolve(arguments.source)
    target = str(as_path(arguments.target))
    refuse_existing(target)
    growth_map = make_map(
        layout.read_lineage(source).model,
        _target_model(arguments.target_config),
        arguments.operator or ("layers" if arguments.layers else "stack"),
        **{name: getattr(arguments, name) for name in _OPTION_HELP},
    )
    if arguments.dry_run:
        _show_plan(source, target, growth_map, arguments.mode, arguments.json)
        return 0
    report = executors.grow_checkpoint(
        source, target, growth_map, arguments.mode, progress=_Progress()
    )
    if arguments.json:
        print(json.dumps(report.to_json()))
    else:
        print(growth_map)
        print(f"{target}: {_summary(report)}")
    return 0


def _summary(report: grow.GrowthReport) -> str:
    if report.mode == "reference":
        files = "file" if report.files_linked == 1 else "files"
        done = (
            f"{report.files_linked} {files} of {_size(report.bytes_linked)} shared with the source"
        )
    else:
        done = f"{_size(report.bytes_written)} written, {_size(report.bytes_read)} read"
    return f"{done} in {report.seconds:.1f} s, peak memory {_size(report.peak_rss_bytes)}"


def _target_model(spec: str) -> ModelConfig | None:
    if not spec:
        return None
    from prts_jax.cli import config_flags  # absl's flags, which only this option needs

    return config_flags.load_file(spec).model


def _show_plan(
    source: str, target: str, growth_map: GrowthMap, asked_mode: str, as_json: bool
) -> None:
    plan = grow.plan(source, growth_map)
    mode, reason = executors.expected_mode(plan, target, asked_mode)
    free = grow.free_bytes(target)
    if as_json:
        report = grow.GrowthReport(
            "dry_run", 0.0, plan.bytes_read, plan.bytes_written, 0, growth_map.layers, reason=reason
        )
        print(json.dumps(report.to_json() | {"bytes_free": free, "expected_mode": mode}))
        return
    print(growth_map)
    if mode == "reference":
        print(
            f"shares the files of {source} with {target}; --mode=stream would read "
            f"{_size(plan.bytes_read)} and write {_size(plan.bytes_written)}"
        )
        return
    if reason:
        print(f"streams, for it cannot be grown by reference: {reason}")
    space = "unknown (object store)" if free is None else _size(free)
    print(f"reads {_size(plan.bytes_read)} from {source}")
    print(f"writes {_size(plan.bytes_written)} to {target}; free there: {space}")


def _size(count: float) -> str:
    """Writes bytes in the largest decimal unit that leaves a number above one."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f} B"


class _Progress:
    """Prints share, rate and time left to standard error, about once a second."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last < 1 and done < total:
            return
        self._last = now
        rate = done / max(now - self._start, 1e-6)
        left = (total - done) / max(rate, 1.0)
        print(
            f"grow: {_size(done)} of {_size(total)}, {_size(rate)}/s, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "grow"))
