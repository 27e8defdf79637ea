"""`prts train`: trains a model, resuming a run or growing a checkpoint."""

import argparse
import json
import re
import sys
from collections.abc import Sequence

from prts_jax import peers
from prts_jax.cli import config_flags, run
from prts_jax.cli.arguments import OneLineParser, add_host_flags
from prts_jax.cli.guard import guard
from prts_jax.config import to_dict
from prts_jax.errors import UserError


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all flags except the config flags."""
    flags = OneLineParser(
        prog="prts train",
        description="Train a model. The same command resumes a run that was stopped.",
        epilog=config_flags.HELP,
    )
    flags.add_argument("--workdir", help="directory of the run, local or gs://…")
    flags.add_argument(
        "--allow_change",
        action="append",
        default=[],
        metavar="KEY",
        help="config key that may differ from the checkpoint's on resume; may be repeated",
    )
    flags.add_argument(
        "--print_config", action="store_true", help="print the resolved config as JSON and stop"
    )
    flags.add_argument(
        "--draw_schedule",
        action="store_true",
        help="draw the learning rate of every stage that is left, and stop",
    )
    add_host_flags(flags)
    return flags


def main(argv: Sequence[str]) -> int:
    """Runs the command; its flags are in `parser` and `prts_jax.cli.config_flags`."""
    config_arguments, others = config_flags.split(argv)
    options = parser().parse_args(others)
    peers.check_flags(options.coordinator, options.processes, options.process)
    if options.coordinator or options.multihost:
        code = guard()
        if code is not None:
            return code
    config = config_flags.load(config_arguments)
    if options.print_config:
        print(json.dumps(to_dict(config), indent=2))
        return 0
    if not options.workdir:
        raise UserError("--workdir: is missing; give the run's directory, --workdir=DIR")
    if options.draw_schedule:
        from prts_jax.train.curve import drawing

        print(drawing(config, options.workdir))
        return 0
    import jax

    from prts_jax.checkpoint.commit import refuse_inside_checkpoint
    from prts_jax.distributed import start_distributed
    from prts_jax.train.loop import train

    refuse_inside_checkpoint(options.workdir)
    processes, process = start_distributed(
        options.multihost, options.coordinator, options.processes, options.process
    )
    if process == 0 and processes > 1:
        print(f"{processes} processes have joined", file=sys.stderr)
    try:
        train(config, options.workdir, options.allow_change)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if processes > 1 and re.match(r"[A-Z_]+: ", str(error)):
            peers.wait_for_verdict()  # a collective breaks where another process has died
        raise
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "train"))
