"""`prts inspect A [B]`: shows a model without reading its weights, or compares two models."""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from prts_jax.checkpoint import arrays, layout
from prts_jax.checkpoint.arrays import StoredLeaf
from prts_jax.checkpoint.digests import check_paths
from prts_jax.checkpoint.lineage import FORMAT, Lineage
from prts_jax.checkpoint.training_spans import training_spans
from prts_jax.cli import family_tree, foreign_text, run
from prts_jax.cli.arguments import OneLineParser
from prts_jax.config import to_dict
from prts_jax.errors import UserError, escaped
from prts_jax.formats import inspection


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    flags = OneLineParser(
        prog="prts inspect",
        description="Show a checkpoint's model, past, parameters and digests; the tensors of a "
        "model in another format; or what two models, of any formats, differ in.",
    )
    flags.add_argument(
        "checkpoint",
        metavar="CKPT",
        help="a checkpoint's directory, a run's workdir with an optional @step, a folder of "
        "transformers or lit-gpt, or a .pth or .safetensors file",
    )
    flags.add_argument(
        "other",
        nargs="?",
        default="",
        metavar="CKPT",
        help="say what differs from this one; values of foreign formats are read for it",
    )
    flags.add_argument(
        "--lineage",
        action="store_true",
        help="draw its family tree instead: the stages it was trained in, and how it grew",
    )
    flags.add_argument("--json", action="store_true", help="print one JSON object")
    return flags


def main(argv: Sequence[str]) -> int:
    """Runs `prts inspect`; see `prts inspect --help`."""
    arguments = parser().parse_args(argv)
    if arguments.lineage and arguments.other:
        raise UserError("--lineage: is of one checkpoint; name one")
    if arguments.other:
        return _compare(arguments.checkpoint, arguments.other, arguments.json)
    if inspection.format_of(arguments.checkpoint) != "orbax":
        if arguments.lineage:
            raise UserError(
                f"{arguments.checkpoint}: has no lineage, for it is in another format; leave "
                "--lineage out"
            )
        shown = foreign_text.describe(arguments.checkpoint)
        print(json.dumps(shown) if arguments.json else foreign_text.table(shown))
        return 0
    path = layout.resolve(arguments.checkpoint)
    lineage = layout.read_lineage(path)
    if arguments.lineage and not arguments.json:
        print(family_tree.draw(path, lineage))
        return 0
    stored = arrays.describe(path)
    check_paths(path, layout.PARAMS, lineage.digests, stored)
    if arguments.json:
        print(json.dumps(as_json(lineage, stored)))
    else:
        print("\n".join(table(path, lineage, stored)))
    return 0


def _compare(one: str, other: str, as_json: bool) -> int:
    differences = inspection.compare(inspection.open_any(one), inspection.open_any(other))
    if as_json:
        print(json.dumps(differences.to_json()))
    else:
        print(foreign_text.differences(escaped(one), escaped(other), differences))
    return 0


def as_json(lineage: Lineage, stored: Mapping[str, StoredLeaf]) -> dict[str, Any]:
    """Returns the JSON object of `prts inspect --json`.

    `lineage` lists the growths, oldest first; `stages` lists the training spans between them;
    `digests` has one digest per path, which combines the digests of its layers in order.
    """
    return {
        "format": FORMAT,
        "step": lineage.step,
        "stage_step": lineage.stage_step,
        "config": lineage.config,
        "params": _params(stored),
        "position": lineage.position,
        "tokens": lineage.tokens,
        "flops": lineage.flops,
        "lineage": [to_dict(record) for record in lineage.growth],
        "stages": [to_dict(span) for span in training_spans(lineage)],
        "digests": {path: combined(layers) for path, layers in lineage.digests.items()},
    }


def _params(stored: Mapping[str, StoredLeaf]) -> dict[str, dict[str, Any]]:
    return {
        path: {"shape": list(leaf.shape), "dtype": leaf.dtype.name, "bytes": leaf.nbytes}
        for path, leaf in stored.items()
    }


def combined(layers: tuple[str, ...]) -> str:
    """Combines the digests of a leaf's layers, in order, to one of 16 hexadecimal digits."""
    if len(layers) == 1:
        return layers[0]
    return hashlib.sha256("".join(layers).encode()).hexdigest()[:16]


def table(path: str, lineage: Lineage, stored: Mapping[str, StoredLeaf]) -> list[str]:
    """Returns the lines of `prts inspect`."""
    model = lineage.model
    total = sum(leaf.nbytes for leaf in stored.values())
    count = sum(leaf.nbytes // leaf.dtype.itemsize for leaf in stored.values())
    lines = [
        path,
        f"step       {lineage.step:,} ({lineage.stage_step:,} since the last growth)",
        f"model      {model.layers} layers, {model.embed} wide, {model.heads} heads "
        f"({model.kv_heads} kv) of {model.head_dim}, mlp {model.mlp}, vocabulary {model.vocab}"
        f"{', tied' if model.tied else ''}",
        f"tokens     {lineage.tokens:,} trained on; the next batch starts at {lineage.position:,}",
        f"FLOPs      {lineage.flops:.3e} ({lineage.flops_6nd:.3e} by 6·N·D), ancestors included",
        f"parameters {count:,} ({total / 1e9:.3f} GB)",
    ]
    if lineage.evaluation:
        values = lineage.evaluation
        lines.append(f"validation loss {values['validation_loss']:.4f} at step {values['step']:,}")
    for change in lineage.changes:
        lines.append(
            f"changed    {change.key} at step {change.step:,}: {change.from_} → {change.to}"
        )
    for growth in lineage.growth:
        first, *others = str(growth.map).split("\n")
        lines.append(f"grown      at step {growth.at_step:,}: {first}")
        lines += [f"{'':<11}{line}" for line in others]
    for name, line in zip(stored, foreign_text.leaf_lines(_params(stored)), strict=True):
        lines.append(f"{line}  {combined(lineage.digests.get(name, ()))}")
    return [escaped(line) for line in lines]


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "inspect"))
