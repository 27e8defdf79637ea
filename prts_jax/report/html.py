"""The report as one self-contained HTML page, figures included."""

import base64
from collections.abc import Mapping, Sequence
from html import escape

from prts_jax.errors import storage_errors
from prts_jax.paths import as_path, make_folders
from prts_jax.report import goodput, table
from prts_jax.report.comparison import Comparison
from prts_jax.report.runs import Run
from prts_jax.report.seeds import seed_table
from prts_jax.report.speedup import DEFINITION, FLOPS_DEFINITION
from prts_jax.text_table import Table

PAGE = "report.html"

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 1060px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; margin-bottom: 0.2em; }
h2 { font-size: 1.15em; margin-top: 2em; }
.result { font-size: 1.15em; }
.definition, .notes, figcaption { color: #555; font-size: 0.9em; max-width: 50em; }
.wide { overflow-x: auto; }
figure { margin: 1.5em 0; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: 0.85em; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3em 0.7em; text-align: right; border-bottom: 1px solid #ddd;
         white-space: nowrap; }
th { border-bottom: 2px solid #888; }
.words { text-align: left; }
"""

CAPTIONS = {
    "loss_over_flops.png": (
        "Validation loss over total FLOPs. A grown run starts where its base ended (star), so its "
        "FLOPs include the base's; the arrow is the speed-up at equal loss."
    ),
    "loss_over_tokens.png": "Validation loss over tokens, the base's included.",
    "loss_over_time.png": (
        "Validation loss over the wall time of training, the base's included (if given)."
    ),
    "loss_by_source.png": "Validation loss of each source over total FLOPs.",
}


def render(seeds: Sequence[Comparison], figures: Mapping[str, bytes]) -> str:
    """Returns the page for the runs of each seed and the figures of the first, by name."""
    comparison = seeds[0]
    wall_time = [table.goodput_table(comparison), table.start_table(comparison)]
    pictures = [figure(png, CAPTIONS[name]) for name, png in figures.items()]
    parts = [
        "<h1>Run report</h1>",
        *(f'<p class="result">{escape(line)}</p>' for line in results(comparison)),
        table_of(seed_table(seeds)),
        *pictures[:1],
        "<h2>Runs</h2>",
        table_of(table.run_table(comparison)),
        _notes(comparison),
        "<h2>Wall time</h2>" if wall_time[0] else "",
        *map(table_of, wall_time),
        table_of(table.hosts_table(comparison)),
        f'<p class="definition">{escape(goodput.DEFINITION)}</p>' if wall_time[0] else "",
        "<h2>Speed-up at equal loss</h2>",
        table_of(table.speedup_table(comparison)),
        f'<p class="definition">{escape(DEFINITION)}</p>',
        f'<p class="definition">{escape(FLOPS_DEFINITION)}</p>',
        "<h2>By tokens, time and source</h2>" if pictures[1:] else "",
        *pictures[1:],
        table_of(table.source_table(comparison)),
        "<h2>Configs</h2>",
        table_of(table.config_table(comparison)) or "<p>The runs' configs do not differ.</p>",
    ]
    return page("Run report", parts)


def page(title: str, parts: Sequence[str]) -> str:
    """Returns a self-contained page of parts that are HTML already; empty ones are left out."""
    body = "\n".join(filter(None, parts))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n"
        "</body>\n</html>\n"
    )


def write(page: str, pngs: Mapping[str, bytes], flag: str, directory: str) -> list[str]:
    """Writes the page and its figures, replacing an earlier report, and returns their paths.

    The directory, local or `gs://`, is created if missing; messages name it with the flag.

    Raises:
      UserError: the directory cannot be created or written to.
      StorageError: the disk failed.
    """
    root = as_path(directory)
    paths = []
    with storage_errors(f"{flag}={directory}: cannot be written"):
        make_folders(root)
        for name, content in {PAGE: page.encode(), **pngs}.items():
            (root / name).write_bytes(content)
            paths.append(str(root / name))
    return paths


def results(comparison: Comparison) -> list[str]:
    """Returns a sentence per run that is compared with the baseline."""
    return [line for run in comparison.runs if (line := _result(comparison, run))]


def _result(comparison: Comparison, run: Run) -> str:
    baseline, primary = comparison.baseline, comparison.primary(run)
    if baseline is None or primary is None:
        return ""
    target = f"{baseline.label}'s lowest validation loss, {table.loss(primary.loss)}"
    if primary.speedup is not None and primary.flops_run and primary.flops_baseline:
        return (
            f"{run.label} reached {target}, with {table.flops(primary.flops_run)} FLOPs instead of "
            f"{table.flops(primary.flops_baseline)}: a speed-up of "
            f"{table.percent(primary.speedup)}."
        )
    if primary.flops_run is None:
        return f"{run.label} has not reached {target}."
    return f"{run.label} has no speed-up at {target}: {baseline.label} started there."


def figure(png: bytes, caption: str) -> str:
    """Returns a PNG file and its caption as HTML."""
    data = base64.b64encode(png).decode("ascii")
    text = escape(caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{text}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def table_of(cells: Table | None) -> str:
    """Returns a table as HTML; "" for None."""
    if cells is None:
        return ""

    def row(tag: str, values: Sequence[str]) -> str:
        words = cells.text_columns
        return "".join(
            f"<{tag}{' class=words' if i < words else ''}>{escape(value)}</{tag}>"
            for i, value in enumerate(values)
        )

    body = "\n".join(f"<tr>{row('td', values)}</tr>" for values in cells.rows)
    return (
        f'<p class="definition">{escape(cells.title)}</p>\n<div class="wide"><table>\n'
        f"<thead><tr>{row('th', cells.header)}</tr></thead>\n<tbody>{body}</tbody>\n</table></div>"
    )


def _notes(comparison: Comparison) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in comparison.notes)
    return f'<ul class="notes">{items}</ul>' if items else ""
