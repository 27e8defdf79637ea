"""`prts grow`: grow a checkpoint, sharing its files or layer by layer."""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import jax

from prts_jax import processes
from prts_jax.checkpoint import layout
from prts_jax.checkpoint.commit import refuse_existing
from prts_jax.cli import EXIT_FAILED, growth_text, run
from prts_jax.cli.arguments import OneLineParser, add_host_flags
from prts_jax.cli.progress import Progress
from prts_jax.config import GrowthConfig, ModelConfig
from prts_jax.errors import UserError
from prts_jax.growth.learned import with_arrays
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.on_disk import grow, stream
from prts_jax.growth.on_disk.forecast import forecast
from prts_jax.growth.operators import OPERATORS, make_map
from prts_jax.mesh import start_distributed
from prts_jax.model.architecture import declare
from prts_jax.paths import as_path
from prts_jax.sizes import format_bytes

if TYPE_CHECKING:
    from prts_jax.evaluate.agreement import Agreement

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
    "gate_steps": "random, random_width: steps in which the gate of a new layer or unit opens, "
    "shut at growth; 0: open at once, which is not function preserving (default: 1000)",
    "noise": "any: share of noise mixed into what is copied, 0.2 in the paper (default: 0)",
    "seed": "of whatever is drawn (default: 0)",
    "learn_steps": "learned: must be 0 here, for the matrices' initial value, unless --matrices is "
    "given; `prts train` learns them (default: 100)",
    "learn_rate": "learned: of `prts train`'s learning",
    "matrices": "learned: file of matrices that a run has learned, "
    "CKPT/matrices/….npz in its checkpoints",
    "optimizer": "'copy' grows the optimizer's moments too, through the same map; 'reset' leaves "
    "them behind (default: reset)",
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
            "position) and has an optimizer state only with --optimizer=copy: a run starts from it "
            "with config.init.start_from."
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
        if option.name in _OPTION_HELP:
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
        "--verify",
        nargs="?",
        const="",
        default=None,
        metavar="STORE",
        help="compute both models on a batch after the growth (of this token store, else of the "
        "checkpoint's own, else of random tokens), print the largest logit difference and both "
        "losses; exit code 1 if a function-preserving growth changed more than rounding does. "
        "Holds one whole model in memory at a time, of the source two",
    )
    made.add_argument(
        "--json", action="store_true", help="print one JSON object on standard output"
    )
    add_host_flags(made)
    return made


def main(argv: Sequence[str]) -> int:
    """Runs `prts grow`; see `prts grow --help`.

    Raises:
      UserError: a checkpoint, a target or a growth that cannot be.
    """
    arguments = parser().parse_args(argv)
    # The work is the host's: an accelerator may be busy with a run, and is left alone.
    jax.config.update("jax_platforms", "cpu")
    with _standard_output_on_error():
        count, process = start_distributed(
            arguments.multihost, arguments.coordinator, arguments.processes, arguments.process
        )
        with processes.all_processes():
            pass  # the first exchange, before which nothing is connected
    if count > 1 and (arguments.dry_run or arguments.verify is not None):
        raise UserError("--dry_run, --verify: are for one process; leave --multihost out")
    with processes.all_processes():
        source = layout.resolve(arguments.source)
        target = str(as_path(arguments.target))
        refuse_existing(target)
        growth_map = make_map(
            layout.read_lineage(source).model,
            _target_model(arguments.target_config),
            arguments.operator or ("layers" if arguments.layers else "stack"),
            **{name: getattr(arguments, name) for name in _OPTION_HELP},
        )
        growth_map = _with_matrices(growth_map, arguments.matrices, arguments.learn_steps)
    if arguments.dry_run:
        _show_plan(source, target, growth_map, arguments)
    elif arguments.verify is not None:
        return _grow_verified(source, target, growth_map, arguments)
    else:
        report = _grow(source, target, growth_map, arguments)
        if process == 0:
            _print(report, target, growth_map, arguments.json)
    return 0


def _show_plan(
    source: str, target: str, growth_map: GrowthMap, arguments: argparse.Namespace
) -> None:
    work = stream.plan(source, growth_map)
    moments = grow.optimizer_plan(source, growth_map, arguments.optimizer)
    if moments is not None:
        work = dataclasses.replace(
            work,
            bytes_read=work.bytes_read + moments.bytes_read,
            bytes_written=work.bytes_written + moments.bytes_written,
        )
    expected = forecast(work, target, arguments.mode)
    if arguments.json:
        print(json.dumps(growth_text.as_json(growth_map, work, expected)))
    else:
        print(growth_text.dry_run(growth_map, work, target, expected))
        if moments is not None and expected.mode == "reference":
            size = format_bytes(moments.bytes_written)
            print(f"and, beyond that, writes {size} of optimizer state, which cannot be shared")


def _grow_verified(
    source: str, target: str, growth_map: GrowthMap, arguments: argparse.Namespace
) -> int:
    from prts_jax.evaluate import agreement  # Orbax and the model, which nothing else here needs

    # Before anything is grown: a wrong store or a damaged source shall leave nothing behind.
    batch = agreement.choose_batch(layout.read_lineage(source), arguments.verify)
    keeps = growth_map.function_preserving()
    before = agreement.apply(source, batch, reorder=keeps)
    report = _grow(source, target, growth_map, arguments)
    found = agreement.compare(before, agreement.apply(target, batch), batch, growth_map)
    _print(report, target, growth_map, arguments.json, found)
    if found.holds:
        return 0
    print(
        f"prts grow: {target}: differs from its source by {found.relative_difference:.2g} of the "
        "largest logit, and its map says that it keeps the function (at most "
        f"{found.allowed:.2g}); it is left for you to look at, do not train from it",
        file=sys.stderr,
    )
    return EXIT_FAILED


def _grow(
    source: str, target: str, growth_map: GrowthMap, arguments: argparse.Namespace
) -> stream.GrowthReport:
    return grow.grow_checkpoint(
        source,
        target,
        growth_map,
        arguments.mode,
        progress=Progress("grow") if jax.process_index() == 0 else None,
        optimizer=arguments.optimizer,
    )


def _print(
    report: stream.GrowthReport,
    target: str,
    growth_map: GrowthMap,
    as_json: bool,
    found: "Agreement | None" = None,
) -> None:
    if as_json:
        verified = {} if found is None else {"verified": found.to_json()}
        print(json.dumps(report.to_json() | verified, allow_nan=False))
        return
    print(growth_map)
    print(f"{target}: {growth_text.report_text(report)}")
    if found is not None:
        print(growth_text.agreement_text(found))


def _with_matrices(growth_map: GrowthMap, file: str, learn_steps: int) -> GrowthMap:
    """Gives a dense map the matrices of a file; learning them takes data, and a run."""
    if growth_map.matrices is None:
        return growth_map
    if file:
        arrays = layout.read_matrices(file).arrays or {}
        return with_arrays(growth_map, declare(growth_map.target), arrays)
    if learn_steps:
        raise UserError(
            "--operator=learned: nothing to learn from here; grow in a run "
            "(config.init.grow_from with init.growth.operator='learned'), or give --matrices of "
            "one that did, or --learn_steps=0 for the matrices that learning starts from"
        )
    return growth_map


def _target_model(spec: str) -> ModelConfig | None:
    if not spec:
        return None
    from prts_jax.cli import config_flags  # absl's flags, which only this option needs

    return config_flags.load_file(spec).model


@contextlib.contextmanager
def _standard_output_on_error() -> Iterator[None]:
    """Sends what libraries print to standard error: gloo greets, and --json is for one object."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "grow"))
