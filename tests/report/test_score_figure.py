"""The figure of score differences."""

import pytest
from matplotlib.container import ErrorbarContainer

from prts_jax.errors import UserError
from prts_jax.evaluate.results import Row
from prts_jax.evaluate.scores import Estimate
from prts_jax.report import score_figure


def row(title, percent, scores, differences):
    return Row(title, title, "acc,none", percent, scores, differences, (False, True))


SHARE = row("PIQA", True, (Estimate(0.7, 0.01),) * 2, (None, Estimate(0.02, 0.005)))
LOSS = row("loss all", False, (Estimate(4.0, 0.1),) * 2, (None, Estimate(-0.2, 0.05)))
MISSING = row("SciQ", True, (Estimate(0.9, 0.01), None), (None, None))


def drawn(axes):
    """(difference, half of its interval) of each measure."""
    [bars] = [one for one in axes.containers if isinstance(one, ErrorbarContainer)]
    points, _, (lines,) = bars.lines
    halves = [(segment[1][0] - segment[0][0]) / 2 for segment in lines.get_segments()]
    return list(zip(points.get_xdata(), halves, strict=True))


def test_shares_are_in_percentage_points_and_losses_relative():
    figure = score_figure.draw(["base", "grown"], [SHARE, LOSS, MISSING])
    shares, losses = figure.axes
    assert drawn(shares) == [pytest.approx((2.0, 0.98), rel=1e-3)]
    assert drawn(losses) == [pytest.approx((-5.0, 2.45), rel=1e-3)]
    assert [label.get_text() for label in shares.get_yticklabels()] == ["PIQA"]
    assert shares.get_ylim() == (0.5, -0.5)  # the first on top, none at the edge
    assert shares.get_xlabel() == "difference to base (percentage points, 95% interval)"


def test_a_figure_without_differences_is_refused():
    with pytest.raises(UserError, match="no two checkpoints have a measure"):
        score_figure.draw(["base", "grown"], [MISSING])
