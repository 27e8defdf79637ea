"""`prts report RUN RUN … --out=DIR`: compare runs over tokens, FLOPs and time."""

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence

from prts_jax.cli import run
from prts_jax.cli.arguments import OneLineParser
from prts_jax.errors import UserError
from prts_jax.paths import as_path
from prts_jax.report import figures, html, table
from prts_jax.report.comparison import Comparison, as_json, compare
from prts_jax.report.runs import read_runs
from prts_jax.report.speedup import DEFINITION, FLOPS_DEFINITION
from prts_jax.text_table import render


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
        nargs="+",
        metavar="RUN",
        help="workdir of a run (a directory or gs:// URL); label=DIR gives it a name",
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
    """Runs `prts report`; see `prts report --help`.

    Raises:
      UserError: a missing or damaged run, two of one label, an unknown baseline, or an output
        directory that cannot be written.
    """
    arguments = parser().parse_args(argv)
    comparison = compare(read_runs(arguments.runs), arguments.baseline)
    written = write(comparison, arguments.out) if arguments.out else []
    if arguments.json:
        print(json.dumps(as_json(comparison) | {"files": written}, allow_nan=False))
    else:
        print("\n\n".join(_paragraphs(comparison)))
        if written:
            print(f"\nwrote {written[0]} and {len(written) - 1} figures beside it")
    return 0


def write(comparison: Comparison, directory: str) -> list[str]:
    """Writes the page and its figures, replacing an earlier report, and returns their paths.

    Raises:
      UserError: the directory cannot be created or written to.
    """
    pngs = figures.draw_all(comparison)
    page = html.render(comparison, pngs).encode()
    root = as_path(directory)
    paths = []
    try:
        root.mkdir(parents=True, exist_ok=True)
        for name, content in {"report.html": page, **pngs}.items():
            (root / name).write_bytes(content)
            paths.append(str(root / name))
    except OSError as error:
        raise UserError(
            f"--out={directory}: cannot be written ({error.strerror}); name a directory"
        ) from error
    return paths


def _paragraphs(comparison: Comparison) -> list[str]:
    tables = (table.run_table, table.source_table, table.speedup_table)
    rendered = [render(cells) for table_of in tables if (cells := table_of(comparison)) is not None]
    sentences = [*html.results(comparison), *comparison.notes]
    if comparison.baseline is not None:
        sentences = [DEFINITION, FLOPS_DEFINITION, *sentences]
    return [*rendered, *(textwrap.fill(sentence, 100) for sentence in sentences)]


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "report"))
