"""`prts plan --params=N --tokens=D`: when to grow, from what, and what it would save."""

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence

import jax

from prts_jax.cli import run
from prts_jax.cli.arguments import OneLineParser
from prts_jax.config import ModelConfig
from prts_jax.errors import UserError
from prts_jax.model.architecture import declare
from prts_jax.planning.guidelines import GROWTH_FACTOR
from prts_jax.planning.plan import DEFAULT_MFU, Plan, Shape, make_plan
from prts_jax.report.table import Table, flops, quantity, render


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    made = OneLineParser(
        prog="prts plan",
        description=(
            "Plan a run that grows once, by the guidelines of Stacking Your Transformers: tokens "
            "for the base (equation 4), its shape, FLOPs with and without growth, and the saving "
            "that the paper would predict. Says where it leaves what the paper measured."
        ),
    )
    made.add_argument(
        "--params",
        type=float,
        metavar="N",
        help="the target's parameters, such as 7e9 (default: the preset's)",
    )
    made.add_argument(
        "--tokens",
        type=float,
        metavar="D",
        required=True,
        help="tokens that the target would be trained on from scratch, such as 2e12",
    )
    made.add_argument(
        "--preset",
        default="",
        metavar="NAME",
        help="the target's shape, such as llama2_7b or 24L2048H (default: nearest by parameters)",
    )
    made.add_argument(
        "--length",
        type=int,
        default=2048,
        help="tokens of a sequence, for attention's FLOPs (default: %(default)s)",
    )
    made.add_argument(
        "--hardware", default="", metavar="TYPE", help="a TPU slice, such as v5p-256: prints days"
    )
    made.add_argument(
        "--mfu",
        type=float,
        help="with --hardware: share of the chips' peak FLOP/s to assume "
        f"(default: {DEFAULT_MFU}; better: mfu of a run's metrics.jsonl)",
    )
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs `prts plan`; see `prts plan --help`.

    Raises:
      UserError: sizes at which the guidelines have no meaning, or an unknown name.
    """
    arguments = parser().parse_args(argv)
    if arguments.mfu is not None and not arguments.hardware:
        raise UserError("--mfu: says nothing without --hardware; name a slice such as v5p-256")
    # Shapes only: a plan must not take the accelerator of a run that is going on.
    jax.config.update("jax_platforms", "cpu")
    plan = make_plan(
        declare,
        tokens=arguments.tokens,
        params=arguments.params,
        preset_name=arguments.preset,
        length=arguments.length,
        hardware=arguments.hardware,
        mfu=DEFAULT_MFU if arguments.mfu is None else arguments.mfu,
    )
    print(json.dumps(plan.to_json(), allow_nan=False) if arguments.json else as_text(plan))
    return 0


def as_text(plan: Plan) -> str:
    """Returns what `prts plan` prints."""
    saving, target, base, hardware = plan.saving, plan.target, plan.base, plan.hardware
    chosen = "" if plan.preset_given else " (the preset nearest in parameters; --preset chooses)"
    least, most = saving.measured_range
    lines = [
        _line("target", f"{plan.preset}{chosen}: {_model(target.model)}; {_billions(target)}"),
        _line("base", f"{base.model.layers} layers, all else as the target; {_billions(base)}"),
        _line(
            "growth",
            f"after {plan.growth_tokens / 1e9:.2f}B tokens, by stacking {GROWTH_FACTOR} times "
            f"(equation 4 for N = {plan.params:.4g}, C = 6·N·D = {flops(plan.compute)})",
        ),
        _line(
            "saving",
            f"speed-up {saving.speedup:.1%}, {saving.flops_saved:.1%} fewer FLOPs at equal loss, "
            f"the base's included: {saving.status}. Rests on this: {saving.basis}; its four sizes "
            f"gave {least:.1%} to {most:.1%}",
        ),
        "",
        render(_costs(plan)),
        "",
        _line(
            "FLOPs",
            f"the project's count at length {plan.length}; 6·N·D counts all parameters of the "
            "preset. The grown run's rest on the predicted saving; for scratch's FLOPs it could "
            f"go on to {quantity(plan.after_growth.equal_flops)} tokens after growth, and a lower "
            "loss",
        ),
    ]
    if hardware:
        lines.append(
            _line(
                "days",
                f"{hardware.chips} chips of {hardware.peak_flops_per_chip / 1e12:.0f} TFLOP/s at "
                f"an assumed MFU of {hardware.mfu:.0%} (--mfu)",
            )
        )
    lines += [_line("warning", warning) for warning in plan.warnings]
    return "\n".join(lines)


def _line(label: str, text: str) -> str:
    return textwrap.fill(text, width=100, initial_indent=f"{label:<9}", subsequent_indent=" " * 9)


def _billions(shape: Shape) -> str:
    return f"{shape.params / 1e9:.4g}B parameters"


def _model(model: ModelConfig) -> str:
    return (
        f"{model.layers} layers, {model.embed} wide, {model.heads} heads ({model.kv_heads} kv) of "
        f"{model.head_dim}, mlp {model.mlp}, vocabulary {model.vocab}"
        f"{', tied' if model.tied else ''}"
    )


def _costs(plan: Plan) -> Table:
    cost = plan.flops
    header = ["", "tokens", "FLOPs", "by 6ND"]
    after = plan.after_growth.equal_loss
    rows = [
        ["base", quantity(plan.growth_tokens), flops(cost.base), flops(cost.base_6nd)],
        [
            "target after growth",
            quantity(after),
            flops(cost.grown - cost.base),
            flops(cost.grown_6nd - cost.base_6nd),
        ],
        ["grown, both", "", flops(cost.grown), flops(cost.grown_6nd)],
        ["from scratch", quantity(plan.tokens), flops(cost.scratch), flops(cost.scratch_6nd)],
    ]
    if plan.hardware:
        days = plan.hardware.days
        header.append(f"days on {plan.hardware.name}")
        parts = (days["base"], days["grown"] - days["base"], days["grown"], days["scratch"])
        for row, value in zip(rows, parts, strict=True):
            row.append(f"{value:,.2f}")
    return Table("Costs to equal loss", header, rows)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "plan"))
