"""Draws what each growth operator does, from the maps that it makes: docs/images/operators/*.png.

    python docs/draw_operators.py

Run it again after a change of an operator; a test compares the maps with those that were drawn.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from prts_jax.config import ModelConfig
from prts_jax.growth.leaf import grow_layers
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.operators import make_map
from prts_jax.growth.recipe import recipes
from prts_jax.growth.widening import NEW
from prts_jax.model.architecture import declare
from prts_jax.report.style import COLOURS, DPI, STYLE

IMAGES = Path(__file__).parent / "images" / "operators"
MAP_DIGEST = "growth map"
"""Text in each picture that says which map it shows."""

COPIED, _, _, _, FRESH, HALF = COLOURS
SIX = ModelConfig(vocab=3, layers=6, embed=4, heads=4, kv_heads=2, head_dim=2, mlp=6)
EIGHT = ModelConfig(vocab=3, layers=8, embed=4, heads=4, kv_heads=2, head_dim=2, mlp=6)
WIDER = "embed=8,mlp=12,heads=8,kv_heads=4"

EXAMPLES: dict[str, tuple[ModelConfig, dict[str, Any]]] = {
    "stack": (SIX, {"factor": 4}),
    "layers": (SIX, {"layers": "1-234*7-56"}),
    "interpolate": (SIX, {"factor": 4}),
    "solar": (EIGHT, {"drop": 2}),
    "block_expansion": (EIGHT, {"every": 4}),
    "middle": (SIX, {"block": 2}),
    "last": (SIX, {"block": 3}),
    "zero": (SIX, {"factor": 2}),
    "random": (SIX, {"factor": 2}),
    "split": (SIX, {"widths": WIDER}),
    "zero_width": (SIX, {"widths": WIDER}),
    "random_width": (SIX, {"widths": WIDER}),
    "learned": (SIX, {"factor": 4}),
}
"""Operator → the source and the options that its picture shows."""

WIDENED = {
    "embedding  E′": "token_embedding",
    "up  W′": "layers/mlp/up",
    "down  W′": "layers/mlp/down",
    "norm  μ′": "final_norm",
}
"""Title of a panel → the leaf in it."""


def example(operator: str) -> GrowthMap:
    """Returns the map that an operator's picture shows."""
    source, options = EXAMPLES[operator]
    return make_map(source, None, operator, **options)


def draw(growth_map: GrowthMap) -> bytes:
    """Returns a PNG of a map: its layers, or where it widens its matrices."""
    with rc_context({**STYLE, "axes.grid": False, "font.size": 10}):
        figure = _width(growth_map) if growth_map.widths else _depth(growth_map)
        file = io.BytesIO()
        metadata: Mapping[str, str] = {MAP_DIGEST: growth_map.digest(), "Software": ""}
        FigureCanvasAgg(figure).print_png(file, metadata=dict(metadata))
        return file.getvalue()


def _depth(growth_map: GrowthMap) -> Figure:
    """A row a source layer, a column a target layer."""
    layers, rows = growth_map.layers, growth_map.source.layers
    has_new = NEW in layers
    height, cell = rows + has_new, 0.27
    figure = Figure((0.9 + cell * 26, 0.75 + cell * height), DPI, layout="constrained")
    axes = figure.subplots()
    for at, layer in enumerate(layers):
        row = rows if layer == NEW else layer
        axes.axvspan(at - 0.5, at + 0.5, color="#f4f4f4" if at % 2 else "white", zorder=0)
        colour = FRESH if layer == NEW else COPIED
        is_zeroed = at in growth_map.zeroed
        _cell(axes, at, row, "white" if is_zeroed else colour, edge=colour)
        if is_zeroed:
            axes.text(at, row, "0", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xlim(-0.6, max(len(layers), 24) - 0.4)
    axes.set_ylim(-0.6, height - 0.4)
    axes.set_aspect("equal")
    axes.set_xticks(range(len(layers)), [str(at) for at in range(len(layers))], fontsize=8)
    names = [str(layer) for layer in range(rows)] + ["new"] * has_new
    axes.set_yticks(range(height), names, fontsize=8)
    axes.set_xlabel("layer of the grown model", loc="left")
    axes.set_ylabel("of the source")
    _without_frame(axes)
    return figure


def _width(growth_map: GrowthMap) -> Figure:
    """Matrices as the paper writes them, (out, in), with the share of the source's entries."""
    panels = {title: _entries(growth_map, path) for title, path in WIDENED.items()}
    # The paper's matrices are (out, in), ours [in, out].
    panels = {
        title: (share.T, drawn.T) if title[0] in "ud" else (share, drawn)
        for title, (share, drawn) in panels.items()
    }
    widths = [share.shape[1] for share, _ in panels.values()]
    figure = Figure((8.6, 3.3), DPI, layout="constrained")
    grid = figure.subplots(1, len(panels), width_ratios=widths)
    for axes, (title, (share, drawn)) in zip(grid, panels.items(), strict=True):
        for (row, column), value in np.ndenumerate(share):
            y = share.shape[0] - 1 - row
            _cell(axes, column, y, _colour(value, bool(drawn[row, column])), edge="#bbbbbb")
            if 0 < value < 1:
                axes.text(column, y, _fraction(value), ha="center", va="center", fontsize=7)
        axes.set_xlim(-0.6, share.shape[1] - 0.4)
        axes.set_ylim(-0.6, share.shape[0] - 0.4)
        axes.set_aspect("equal", anchor="N")
        _seams(axes, growth_map, WIDENED[title], share.shape)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
        _without_frame(axes)
    heads = growth_map.widths["heads"].index
    listed = ", ".join("new" if head == NEW else str(head) for head in heads)
    figure.supxlabel(
        f"embed 4 → 8, mlp 6 → 12; query heads of the grown model copy heads {listed}", fontsize=9
    )
    return figure


def _seams(axes: Axes, growth_map: GrowthMap, path: str, shape: tuple[int, ...]) -> None:
    """Draws where the source's size ends, and each copy of it."""
    sizes = declare(growth_map.source)[path].shape[-2:]
    rows, columns = (1, *sizes)[-2:] if shape[0] == 1 else sizes
    if path.startswith("layers/"):
        rows, columns = columns, rows
    for at in range(columns, shape[1], columns):
        axes.axvline(at - 0.5, color="#222222", linewidth=1)
    for at in range(rows, shape[0], rows):
        axes.axhline(shape[0] - at - 0.5, color="#222222", linewidth=1)


def _entries(growth_map: GrowthMap, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns by what each entry of the source is multiplied, and which entries are drawn.

    The arithmetic of growth itself tells: it is affine in the source's values.
    """
    before = declare(growth_map.source)[path]
    shape = before.shape[1:] if before.stacked else before.shape
    layer = jnp.zeros(1, jnp.int32)
    recipe = recipes(growth_map, declare(growth_map.target))[path]

    def grown(value: float) -> np.ndarray:
        values = jnp.full((1, *shape), value, jnp.float32)
        return np.asarray(grow_layers(recipe, growth_map, values, layer))[0]

    drawn = grown(0.0)
    share = grown(1.0) - drawn
    return np.atleast_2d(share), np.atleast_2d(drawn != 0)


def _colour(share: float, drawn: bool) -> str:
    if drawn:
        return FRESH
    return "white" if share == 0 else COPIED if share == 1 else HALF


def _fraction(value: float) -> str:
    for text, number in (("½", 1 / 2), ("⅓", 1 / 3), ("⅔", 2 / 3)):
        if abs(value - number) < 1e-3:
            return text
    return f"{value:.2f}".removeprefix("0")


def _cell(axes: Axes, x: float, y: float, colour: str, edge: str) -> None:
    axes.add_patch(Rectangle((x - 0.42, y - 0.42), 0.84, 0.84, facecolor=colour, edgecolor=edge))


def _without_frame(axes: Axes) -> None:
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


if __name__ == "__main__":
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name in EXAMPLES:
        (IMAGES / f"{name}.png").write_bytes(draw(example(name)))
