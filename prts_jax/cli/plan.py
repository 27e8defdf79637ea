"""`prts plan --params=N --tokens=D`: when to grow, from what, and what it would save."""

import argparse
import inspect
import json
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import jax

from prts_jax.cli import run
from prts_jax.cli.arguments import OneLineParser
from prts_jax.planning.plan import DEFAULT_MFU, make_plan
from prts_jax.report.table import flops, quantity
from prts_jax.text_table import Table, render

FLAGS = {
    "tokens=D": "tokens of the run from scratch, such as 2e12",
    "params=N": "the target's parameters, such as 7e9 (default: the preset's)",
    "preset=NAME": "the target's shape, such as llama2_7b or 24L2048H (default: nearest by "
    "parameters)",
    "length=N": "tokens of a sequence, for attention's FLOPs (default: %(default)s)",
    "hardware=TYPE": "a TPU slice, such as v5p-256; adds days",
    "mfu=SHARE": "with --hardware: assumed share of the chips' peak FLOP/s "
    f"(default: {DEFAULT_MFU}; better: the mfu in a run's metrics.jsonl)",
    "t_mix=TOKENS": "mixing time under WSD, measured in a small run: growth at D − t_mix "
    "(default: growth at 0.8·D, as in the study)",
    "saturation=A,ALPHA1,ALPHA2,ALPHA3,E": "constants of the saturation law for your set-up, from "
    "the table of arXiv 2510.06548",
}
"""Flag and metavar → help; the arguments of `make_plan`, with its defaults."""


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    parser = OneLineParser(
        prog="prts plan",
        description=(
            "Plan a run that grows once, by the guidelines of Stacking Your Transformers: tokens "
            "for the base (equation 4), its shape, FLOPs with and without growth, and the saving "
            "that the paper would predict; then what later work says of it, with its sources. "
            "Warns where the plan leaves the paper's measurements."
        ),
    )
    arguments = inspect.signature(make_plan).parameters
    for flag, text in FLAGS.items():
        name, _, metavar = flag.partition("=")
        default = arguments[name].default
        options: dict[str, Any] = {"type": type(default), "default": default}
        if default in (None, inspect.Parameter.empty):
            options = {"type": float, "required": default is not None}
        parser.add_argument(f"--{name}", metavar=metavar, help=text, **options)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs `prts plan`; see `prts plan --help`."""
    options = vars(parser().parse_args(argv))
    as_json = options.pop("json")
    # Shapes only: a plan must not take the accelerator of a run in progress.
    jax.config.update("jax_platforms", "cpu")
    plan = make_plan(**options)
    print(json.dumps(plan, allow_nan=False) if as_json else as_text(plan))
    return 0


def as_text(plan: dict[str, Any]) -> str:
    """Returns the plan as `prts plan` prints it."""
    saving, target, base, hardware = (plan[k] for k in ("saving", "target", "base", "hardware"))
    chosen = "" if target["preset_given"] else " (the nearest preset in parameters; see --preset)"
    least, most = saving["measured_range"]
    parts = {
        "target": f"{target['preset']}{chosen}: {target['layers']} layers, {target['embed']} wide, "
        f"{target['heads']} heads ({target['kv_heads']} kv) of {target['head_dim']}, mlp "
        f"{target['mlp']}, vocabulary {target['vocab']}{', tied' if target['tied'] else ''}; "
        f"{target['params'] / 1e9:.4g}B parameters",
        "base": f"{base['layers']} layers, all else as the target; "
        f"{base['params'] / 1e9:.4g}B parameters",
        "growth": f"after {plan['growth_tokens'] / 1e9:.2f}B tokens, by stacking "
        f"{plan['growth_factor']} times (equation 4 for N = {plan['params']:.4g}, "
        f"C = 6·N·D = {flops(plan['compute'])})",
        "saving": f"speed-up {saving['speedup']:.1%}, {saving['flops_saved']:.1%} fewer FLOPs at "
        f"equal loss, the base's included: {saving['status']}. Basis: {saving['basis']}; the "
        f"four measured sizes gave {least:.1%} to {most:.1%}",
        "FLOPs": f"matrix products and attention at length {plan['length']}; 6·N·D counts all "
        "parameters of the preset. The grown run's FLOPs follow from the predicted saving; "
        "with the FLOPs from scratch it could train for "
        f"{quantity(plan['tokens_after_growth']['equal_flops'])} tokens after growth, to a "
        "lower loss",
    }
    if hardware:
        tera = hardware["peak_flops_per_chip"] / 1e12
        mfu = f"an assumed MFU of {hardware['mfu']:.0%} (--mfu)"
        parts["days"] = f"{hardware['chips']} chips of {tera:.0f} TFLOP/s at {mfu}"
    lines = [_line(label, text) for label, text in parts.items()]
    lines.insert(list(parts).index("FLOPs"), f"\n{render(_costs(plan))}\n")
    lines += [_line("warning", warning) for warning in plan["warnings"]]
    lines.append("\nLater work (source; range)")
    labels = ("booked", "factor", "WSD", "law", "against")
    for label, said in zip(labels, plan["later_work"].values(), strict=True):
        lines.append(_line(label, f"{said['statement']} ({said['source']}; {said['range']})"))
    return "\n".join(lines)


def _line(label: str, text: str) -> str:
    return textwrap.fill(text, width=100, initial_indent=f"{label:<9}", subsequent_indent=" " * 9)


def _costs(plan: dict[str, Any]) -> Table:
    """Returns the table of tokens, FLOPs and days of each part."""

    def parts(of: dict[str, float], suffix: str = "") -> list[float]:
        base, grown, scratch = (of[f"{name}{suffix}"] for name in ("base", "grown", "scratch"))
        return [base, grown - base, grown, scratch]

    after = plan["tokens_after_growth"]["equal_loss"]
    columns = {
        "": ["base", "target after growth", "grown, both", "from scratch"],
        "tokens": [quantity(plan["growth_tokens"]), quantity(after), "", quantity(plan["tokens"])],
        "FLOPs": [flops(value) for value in parts(plan["flops"])],
        "by 6ND": [flops(value) for value in parts(plan["flops"], "_6nd")],
    }
    if plan["hardware"]:
        days = [f"{value:,.2f}" for value in parts(plan["hardware"]["days"])]
        columns[f"days on {plan['hardware']['name']}"] = days
    return Table("Costs to equal loss", list(columns), list(zip(*columns.values(), strict=True)))


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "plan"))
