"""`prts report RUN RUN … --out=DIR`: compare runs over tokens, FLOPs and time."""

import argparse
import dataclasses
import json
import sys
import textwrap
from collections.abc import Sequence

from prts_jax.cli import run
from prts_jax.cli.arguments import OneLineParser
from prts_jax.errors import UserError, escaped
from prts_jax.paths import as_path, check_output
from prts_jax.report import figures, goodput, html, seeds, table
from prts_jax.report.comparison import Comparison, as_json, compare
from prts_jax.report.runs import read_seeds
from prts_jax.report.speedup import DEFINITION, FLOPS_DEFINITION
from prts_jax.text_table import render

TABLES = (
    table.run_table,
    table.source_table,
    table.speedup_table,
    table.goodput_table,
    table.start_table,
    table.hosts_table,
)


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    parser = OneLineParser(
        prog="prts report",
        description=(
            "Compare runs of `prts train`, running or finished: prints tables; --out writes a "
            "page (report.html) and its figures (loss_over_flops.png and others). Speed-ups are "
            "measured at equal validation loss over total FLOPs, the base's included."
        ),
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="workdir of a run (a directory or gs:// URL); label=DIR gives it a name; "
        "label=DIR,DIR,… are runs that differ in their seeds: the k-th of each label are compared "
        "with each other, and mean and range are shown",
    )
    parser.add_argument(
        "--study",
        metavar="DIR",
        help="workdir of a `prts study`, finished or not, in place of runs",
    )
    parser.add_argument(
        "--probe",
        type=int,
        metavar="K",
        help="with --study: how well the losses after K steps predict the final order of arms",
    )
    parser.add_argument(
        "--fit",
        action="store_true",
        help="with --study: fit what the study varies: the saturation law and the best moment to "
        "runs grown after different tokens, the bound on g to different growth factors",
    )
    parser.add_argument("--out", metavar="DIR", help="folder for report.html and the figures")
    parser.add_argument(
        "--baseline",
        metavar="LABEL",
        help="the run to measure speed-ups against (default: the only one that neither grew nor is "
        "a base)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of tables"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs `prts report`; see `prts report --help`."""
    arguments = parser().parse_args(argv)
    if arguments.out:
        check_output(as_path(arguments.out) / html.PAGE, f"--out={arguments.out}")
    if (arguments.study is None) == (not arguments.runs):
        raise UserError("name runs, or a study with --study=DIR; see `prts report --help`")
    if arguments.study is not None:
        return _report_study(arguments)
    if arguments.probe is not None:
        raise UserError("--probe: ranks the arms of a study; give --study=DIR")
    if arguments.fit:
        raise UserError("--fit: fits a law to the runs of a study; give --study=DIR")
    compared = [compare(runs, arguments.baseline) for runs in read_seeds(arguments.runs)]
    written = []
    if arguments.out:
        pngs = figures.draw_all(compared[0])
        written = html.write(html.render(compared, pngs), pngs, "--out", arguments.out)
    if arguments.json:
        values = as_json(compared[0]) | {"seeds": seeds.as_json(compared), "files": written}
        print(json.dumps(values, allow_nan=False))
    else:
        _print("\n\n".join(_paragraphs(compared)), written)
    return 0


def _print(text: str, written: Sequence[str]) -> None:
    print(text)
    if written:
        print(f"\nwrote {escaped(written[0])} and {len(written) - 1} figures beside it")


def _report_study(arguments: argparse.Namespace) -> int:
    from prts_jax.study import compare as studies
    from prts_jax.study import pages  # SciPy takes half a second to load
    from prts_jax.study.best_growth import fit_all
    from prts_jax.study.results import read

    if arguments.baseline is not None:
        raise UserError("--baseline: a study names its scratch arms itself; leave it out")
    results = read(arguments.study)
    by_arm = studies.speedups(results)
    probe = arguments.probe
    more = [] if probe is None else [pages.probe_sentence(results, probe)]
    fits = fit_all(results, by_arm) if arguments.fit else {}
    more += [one.sentence() for one in fits.values()]
    written = []
    if arguments.out:
        page, pngs = pages.render_page(results, by_arm, more)
        written = html.write(page, pngs, "--out", arguments.out)
    if arguments.json:
        values = studies.as_json(results, by_arm, probe) | {"files": written}
        values |= {name: dataclasses.asdict(one) for name, one in fits.items()}
        print(json.dumps(values, allow_nan=False))
    else:
        _print(pages.text(results, by_arm, more), written)
    return 0


def _paragraphs(compared: Sequence[Comparison]) -> list[str]:
    comparison = compared[0]
    tables = [table_of(comparison) for table_of in TABLES]
    rendered = [render(cells) for cells in (seeds.seed_table(compared), *tables) if cells]
    sentences = [*html.results(comparison), *comparison.notes]
    if table.goodput_table(comparison):
        sentences = [goodput.DEFINITION, *sentences]
    if comparison.baseline is not None:
        sentences = [DEFINITION, FLOPS_DEFINITION, *sentences]
    return [*rendered, *(textwrap.fill(sentence, 100) for sentence in sentences)]


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "report"))
