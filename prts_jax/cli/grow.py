"""`prts grow`: grow a checkpoint, sharing its files or layer by layer."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax

from prts_jax.checkpoint import layout
from prts_jax.checkpoint.commit import refuse_existing
from prts_jax.checkpoint.matrices_files import read_matrices
from prts_jax.cli import EXIT_FAILED, growth_text, run
from prts_jax.cli.arguments import OneLineParser
from prts_jax.config import GrowthConfig, ModelConfig
from prts_jax.errors import UserError, escaped
from prts_jax.formats.config_json import refusal as refusal_of_transformers
from prts_jax.growth.learned import with_arrays
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.on_disk import grow
from prts_jax.growth.on_disk.plan import GrowthPlan, plan
from prts_jax.growth.operators import OPERATORS, make_map, option_help
from prts_jax.model.architecture import declare
from prts_jax.paths import as_path
from prts_jax.progress import Progress

if TYPE_CHECKING:
    from prts_jax.evaluate.agreement import Agreement

_SHARED = {
    "noise": "any: share of noise mixed into what is copied, 0.2 in the paper (default: 0)",
    "optimizer": "'copy' and 'keep' grow the optimizer's moments through the same map, and with "
    "'keep' a run's schedule goes on; 'asymmetric' starts those of new entries from zero; 'reset' "
    "leaves them behind (default: reset)",
    "options": "an operator's own options, as 'name=value,name=value'",
}
"""Help of the keys of `GrowthConfig` that are no operator's."""

_OF_RUNS = ("operator", "new_rate", "new_rate_steps")
"""Keys of `GrowthConfig` that are no options here; the first has a flag of its own."""

_OPTIONS = tuple(key.name for key in dataclasses.fields(GrowthConfig) if key.name not in _OF_RUNS)


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    command = OneLineParser(
        prog="prts grow",
        description=(
            "Grow a checkpoint into a deeper or wider one. Where the files allow it, new layers "
            "point at the bytes of the source's (by hard links, which survive its deletion); "
            "otherwise layers are copied or computed one by one, each checked against its digest. "
            "The grown checkpoint continues the lineage of its source (step, tokens, FLOPs, data "
            "position) and has an optimizer state unless --optimizer is reset: a run starts from "
            "it with config.init.start_from."
        ),
    )
    command.add_argument(
        "--source",
        required=True,
        metavar="CKPT",
        help="checkpoint to grow: its directory, or a run's workdir with an optional @step",
    )
    command.add_argument(
        "--target", required=True, metavar="DIR", help="the new checkpoint; must not exist"
    )
    command.add_argument(
        "--operator",
        default=None,
        help=f"growth operator: {', '.join(OPERATORS)}, or one that an installed package brings "
        "(default: stack, or layers with --layers)",
    )
    _add_options(command)
    command.add_argument(
        "--target_config",
        default="",
        metavar="FILE.py[:arg]",
        help="config whose model the checkpoint shall become; differences are refused",
    )
    command.add_argument(
        "--mode",
        default="auto",
        metavar="MODE",
        help="reference: share the source's files, copy no values; stream: copy layer by layer; "
        "auto: by reference where that is possible, and says why where not (default)",
    )
    command.add_argument(
        "--dry_run", action="store_true", help="draw the map, count bytes, and write nothing"
    )
    command.add_argument(
        "--verify",
        nargs="?",
        const="",
        default=None,
        metavar="STORE",
        help="compute both models on a batch after the growth (of this token store, else of the "
        "checkpoint's own, else of random tokens), print the largest logit difference and both "
        "losses; exit code 1 if a function-preserving growth changed more than rounding does. "
        "Holds one whole model in memory at a time",
    )
    command.add_argument(
        "--json", action="store_true", help="print one JSON object on standard output"
    )
    return command


def _add_options(command: argparse.ArgumentParser) -> None:
    """Adds the keys of `GrowthConfig` as flags."""
    for option in dataclasses.fields(GrowthConfig):
        if option.name in _OPTIONS:
            command.add_argument(
                f"--{option.name}",
                type=type(option.default),
                default=option.default,
                metavar="TEXT" if isinstance(option.default, str) else "N",
                help=_help(option.name, option.default),
            )


def _help(option: str, default: Any) -> str:
    """Returns an option's help; an operator's own text may say its default."""
    if option in _SHARED:
        return _SHARED[option]
    text = option_help(option)
    return text if "(default" in text or default == "" else f"{text} (default: {default})"


def main(argv: Sequence[str]) -> int:
    """Runs `prts grow`; see `prts grow --help`."""
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
        **{name: getattr(arguments, name) for name in _OPTIONS},
    )
    growth_map = _with_matrices(growth_map, arguments.matrices, arguments.learn_steps)
    work = plan(source, target, growth_map, arguments.optimizer)
    execution = grow.choose(work, arguments.mode)
    if refusal := refusal_of_transformers(growth_map.target):
        print(f"prts grow: {refusal}: the grown model cannot be exported", file=sys.stderr)
    if arguments.dry_run:
        text = growth_text.as_json(execution) if arguments.json else growth_text.dry_run(execution)
        print(json.dumps(text) if arguments.json else text)
        return 0
    if arguments.verify is not None:
        return _grow_verified(execution, arguments)
    _print(grow.execute(execution, Progress("grow")), work, arguments.json)
    return 0


def _grow_verified(execution: grow.Execution, arguments: argparse.Namespace) -> int:
    from prts_jax.evaluate import agreement  # Orbax and the model, which nothing else here needs

    work = execution.work
    # Before anything is grown: a wrong store or a damaged source shall leave nothing behind.
    batch = agreement.choose_batch(work.lineage, arguments.verify)
    keeps = work.growth_map.function_preserving()
    before = agreement.apply(work.source, batch)
    report = grow.execute(execution, Progress("grow"))
    after = agreement.apply(work.target, batch, rounding=keeps)
    verified = agreement.compare(before, after, batch, work.growth_map)
    _print(report, work, arguments.json, verified)
    if verified.holds:
        return 0
    print(
        f"prts grow: {escaped(work.target)}: differs from its source by "
        f"{verified.relative_difference:.2g} of the largest logit, and its map says that it keeps "
        f"the function (at most {verified.allowed:.2g}); it is left for you to look at, do not "
        "train from it",
        file=sys.stderr,
    )
    return EXIT_FAILED


def _print(
    report: grow.GrowthReport,
    work: GrowthPlan,
    as_json: bool,
    verified: "Agreement | None" = None,
) -> None:
    if as_json:
        more = {} if verified is None else {"verified": verified.to_json()}
        print(json.dumps(report.to_json() | more, allow_nan=False))
        return
    print(work.growth_map)
    print("\n".join(growth_text.leaves(work)))
    print(f"{escaped(work.target)}: {growth_text.report_text(report, work)}")
    if verified is not None:
        print(growth_text.agreement_text(verified))


def _with_matrices(growth_map: GrowthMap, file: str, learn_steps: int) -> GrowthMap:
    """Gives a dense map the matrices of a file; learning them takes data, and a run."""
    if growth_map.matrices is None:
        return growth_map
    if file:
        read, declarations = read_matrices(file), declare(growth_map.target)
        return with_arrays(growth_map, declarations, read.arrays or {}, read.learning)
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


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "grow"))
