"""`prts study --config=FILE.py[:arg] --workdir=DIR`: a grid of runs that answers one question."""

import argparse
import runpy
import sys
from collections.abc import Sequence

from prts_jax.cli import run
from prts_jax.cli.arguments import OneLineParser
from prts_jax.errors import UserError, escaped, first_line
from prts_jax.paths import is_remote
from prts_jax.report import html
from prts_jax.report.table import flops
from prts_jax.study import pages, results
from prts_jax.study.compare import speedups
from prts_jax.study.design import Cell, Study, check
from prts_jax.study.execute import execute
from prts_jax.text_table import MISSING, Table, render


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    parser = OneLineParser(
        prog="prts study",
        description=(
            "Train a grid of runs (methods × learning rates × seeds) of equal FLOPs, and report "
            "speed-ups with intervals. Bases are shared. Finished runs are reused, and the same "
            "command goes on after a stop."
        ),
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE.py[:ARG]",
        help="file with a function get_study, for example one of configs/study",
    )
    parser.add_argument("--workdir", metavar="DIR", help="folder of the study, on a local disk")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="runs at a time (default: 1; more only on CPUs)",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="print the grid and its FLOPs, and stop"
    )
    return parser


def load(spec: str) -> Study:
    """Returns the study of a file, "FILE.py[:argument]".

    Raises:
      UserError: there is no file, it fails, it has no `get_study`, or its study is not valid.
    """
    path, _, argument = spec.partition(":")
    try:
        get_study = runpy.run_path(path).get("get_study")
        if get_study is None:
            raise UserError("has no function get_study; see configs/study")
        study = get_study(argument) if argument else get_study()
        if not isinstance(study, Study):
            raise UserError("get_study returns no prts_jax.study.design.Study")
        check(study)
        return study
    except (Exception, SystemExit) as error:  # a config file may raise anything
        raise UserError(f"--config={spec}: {first_line(error)}") from error


def main(argv: Sequence[str]) -> int:
    """Runs `prts study`; see `prts study --help`."""
    arguments = parser().parse_args(argv)
    study = load(arguments.config)
    if arguments.jobs < 1:
        raise UserError(f"--jobs={arguments.jobs}: give at least 1")
    if arguments.dry_run:
        print(render(_grid(study)))
        return 0
    if not arguments.workdir:
        raise UserError("--workdir: is missing; give the study's folder, --workdir=DIR")
    if is_remote(arguments.workdir):
        raise UserError(f"--workdir={arguments.workdir}: give a local folder")
    execute(study, arguments.workdir, arguments.jobs, lambda line: print(line, flush=True))
    read = results.read(arguments.workdir)
    by_arm = speedups(read)
    page, pngs = pages.render_page(read, by_arm)
    written = html.write(page, pngs, "--workdir", arguments.workdir)
    print("\n" + pages.text(read, by_arm))
    print(f"\nwrote {escaped(written[0])}")
    return 0


def _grid(study: Study) -> Table:
    rows = []
    for arm in study.arms:
        of_run = Cell(arm, arm.rates()[0], study.seeds[0]).flops()
        runs = study.runs(arm)
        peaks = ", ".join(f"{peak:g}" for peak in arm.rates())
        words = (arm.name, arm.kind, arm.base or MISSING, peaks)
        rows.append((*words, str(runs), flops(of_run), flops(runs * of_run)))
    header = ("arm", "kind", "base", "peak rates", "runs", "FLOPs a run", "in all")
    seeds = ", ".join(map(str, study.seeds))
    runs = sum(map(study.runs, study.arms))
    title = f"{study.title}\n{runs} runs, {flops(study.flops())} FLOPs, seeds {seeds}"
    return Table(title, header, rows, text_columns=4)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "study"))
