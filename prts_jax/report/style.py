"""The look that all pictures share: colours, markers, size, and PNG files."""

import io
import warnings
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette, distinct with any kind of colour vision; markers repeat the distinction.
BASELINE_COLOUR = "#4d4d4d"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "^", "D", "v", "P", "X")

WIDTH_PIXELS, HEIGHT_PIXELS, DPI = 1000, 560, 100
STYLE: dict[Any, Any] = {
    "font.size": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#222222",
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "text.parse_math": False,  # names of runs and sources may hold "$"
}


def new_figure(height_pixels: float) -> Figure:
    """Returns an empty figure of the report's width."""
    return Figure(figsize=(WIDTH_PIXELS / DPI, height_pixels / DPI), dpi=DPI, layout="constrained")


def legend_name(name: str) -> str:
    """Returns a name for a legend; matplotlib leaves out names that begin with "_"."""
    return f" {name}" if name.startswith("_") else name


def png(figure: Figure) -> bytes:
    """Returns a figure as the content of a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # names in any script
        FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
