"""Coordinate check: how far activations move in the first steps, by width and depth.

    python benchmarks/coordinate_check.py --picture=docs/images/coordinate_check.png

A parameterisation transfers a learning rate where a few steps change the stream and the logits by
an amount that depends neither on width nor on depth (Yang et al., arXiv 2203.03466, D.1). Each
model takes the same steps of AdamW on one batch of random tokens, in float32.
"""

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax.config import RunConfig, ScalingConfig, resolve, to_dict
from prts_jax.declaration import LAYERS
from prts_jax.mesh import make_mesh
from prts_jax.model.architecture import declare, logits
from prts_jax.model.initialise import init_params
from prts_jax.model.inputs import Gates
from prts_jax.model.layers import Block, rope_tables
from prts_jax.train import scaling
from prts_jax.train.optim import make_optimizer
from prts_jax.train.state import fresh_state
from prts_jax.train.step import make_train_step

PROXY = {"embed": 64, "layers": 2}
HEAD, VOCAB, ROWS, LENGTH = 16, 256, 8, 32
WIDTHS, DEPTHS = (64, 128, 256), (2, 4, 8)
KINDS = ("none", "mup", "completep")
STYLES = {"none": "-", "mup": "--", "completep": ":"}
"""Lines that are seen where they lie upon each other."""


def config_of(kind: str, width: int, depth: int, rate: float) -> RunConfig:
    """Returns the config of a model whose rate was chosen for the proxy."""
    heads = width // HEAD
    values = to_dict(RunConfig())
    values["model"] |= {
        "vocab": VOCAB,
        "layers": depth,
        "embed": width,
        "heads": heads,
        "kv_heads": heads,
        "head_dim": HEAD,
        "mlp": 3 * width,
    }
    values["compute"]["dtype"] = "float32"
    values["data"] |= {"batch": ROWS, "length": LENGTH}
    values["optimizer"] |= {"weight_decay": 0.0, "clip": 0.0}
    values["schedule"] |= {"kind": "constant", "peak": rate, "warmup_steps": 0}
    run = resolve(values)
    return dataclasses.replace(run, scaling=ScalingConfig(kind, **PROXY))


def activations(run: RunConfig, params: Any, tokens: jax.Array) -> dict[str, jax.Array]:
    """Returns the stream behind the last layer, [rows, length, width], and the logits."""
    model, compute = run.model, run.compute
    rope = rope_tables(jnp.arange(tokens.shape[1], dtype=jnp.float32), model)
    block = Block(model, compute, False)

    def through(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        return block.apply({"params": layer}, x, rope, None, Gates(), None, None, None)[0], None

    stream, _ = jax.lax.scan(through, params["token_embedding"][tokens], params[LAYERS])
    return {"stream": stream, "logits": logits(params, tokens, model, compute)}


def movement(kind: str, width: int, depth: int, rate: float, steps: int) -> dict[str, float]:
    """Returns the root mean square of the change of stream and logits over some steps."""
    run = config_of(kind, width, depth, rate)
    params = init_params(declare(run.model), depth, run.init.kind, seed=0)
    if kind != "none":
        params = scaling.scaled_params(params, scaling.multipliers(run))
    draw = np.random.default_rng(0)
    drawn = jnp.asarray(draw.integers(0, VOCAB, (ROWS, LENGTH + 1)), jnp.int32)
    batch = {
        "tokens": drawn[:, :-1],
        "targets": drawn[:, 1:],
        "loss_weights": jnp.ones((ROWS, LENGTH)),
        "source_ids": jnp.zeros((ROWS, LENGTH), jnp.int32),
    }
    measure = jax.jit(lambda params: activations(run, params, batch["tokens"]))
    before = measure(params)
    optimizer = make_optimizer(run)
    state = fresh_state(params, optimizer, make_mesh(run.mesh))
    step = make_train_step(run, optimizer)
    for _ in range(steps):
        state, _ = step(state, batch)
    after = measure(state.params)
    return {
        name: float(jnp.sqrt(jnp.mean(jnp.square(after[name] - before[name])))) for name in before
    }


def draw(results: dict[str, dict[tuple[int, int], dict[str, float]]], picture: str) -> None:
    """Draws the changes against width at the proxy's depth, and against depth at its width."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, 2, figsize=(8, 6), sharey="row", layout="constrained")
    for row, name in enumerate(("stream", "logits")):
        for column, (axis, sizes) in enumerate((("width", WIDTHS), ("layers", DEPTHS))):
            panel = grid[row, column]
            for kind, of_shapes in results.items():
                shapes = [
                    (size, PROXY["layers"]) if axis == "width" else (PROXY["embed"], size)
                    for size in sizes
                ]
                values = [of_shapes[shape][name] for shape in shapes]
                panel.plot(sizes, values, STYLES[kind], marker="o", label=kind)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter("{x:g}")
            panel.set_xticks(sizes, [str(size) for size in sizes])
            panel.set_xlabel(axis)
            if column == 0:
                panel.set_ylabel(f"RMS change of the {name}")
    grid[0, 0].legend(title="scaling.kind")
    figure.savefig(picture, dpi=120)


def main() -> None:
    """Measures all shapes, prints a table and draws it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", default="", help="PNG to draw")
    parser.add_argument("--rate", type=float, default=1e-2, help="of the proxy")
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    shapes = {(width, PROXY["layers"]) for width in WIDTHS}
    shapes |= {(PROXY["embed"], depth) for depth in DEPTHS}
    results: dict[str, dict[tuple[int, int], dict[str, float]]] = {kind: {} for kind in KINDS}
    print("kind       width  layers  stream  logits")
    for kind in KINDS:
        for width, depth in sorted(shapes):
            moved = movement(kind, width, depth, arguments.rate, arguments.steps)
            results[kind][width, depth] = moved
            print(
                f"{kind:9}  {width:5}  {depth:6}  {moved['stream']:6.3f}  {moved['logits']:6.3f}",
                flush=True,
            )
    if arguments.picture:
        draw(results, arguments.picture)


if __name__ == "__main__":
    main()
