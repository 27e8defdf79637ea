"""Training on one GPU: attention checked, tokens per second, MFU, memory, and time by kernel.

    python benchmarks/gpu.py [--rows=8] [--steps=20] [--remat=minimal] [--loss_chunks=8] [--small]

Needs the plain install with a JAX for GPUs; neither TensorFlow nor seqio. First compares cuDNN's
attention with XLA's, forward and backward, with rows of one document and of several. Then trains
24 layers × 2048 at length 2048 in bfloat16 on random tokens, with 32 heads of 64 and 16 of 128.
Where torch finds the GPU, a plain `torch.compile` loop of the same shapes runs as well, in a
process of its own. --small tries the script on a CPU. MFU is that of docs/definitions.md.
"""

import argparse
import collections
import gzip
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax.config import ComputeConfig, DataConfig, ModelConfig, RunConfig
from prts_jax.mesh import param_shardings, use_mesh
from prts_jax.model.architecture import declare
from prts_jax.model.attention import causal_attention
from prts_jax.model.counts import training_flops_per_token
from prts_jax.model.initialise import init_params
from prts_jax.train.metrics import peak_flops
from prts_jax.train.optim import make_optimizer
from prts_jax.train.state import fresh_state
from prts_jax.train.step import make_train_step

HEADS = {"32 heads of 64": (32, 64), "16 heads of 128": (16, 128)}
WARM_UP = 3


def model_of(heads: int, head_dim: int, small: bool) -> ModelConfig:
    """Returns 24 layers × 2048 with these heads; a few small layers to try the script."""
    if small:
        return ModelConfig(vocab=512, layers=2, embed=64, heads=2, kv_heads=2, mlp=128)
    return ModelConfig(
        vocab=32000, layers=24, embed=2048, heads=heads, kv_heads=heads, head_dim=head_dim, mlp=5632
    )


def check_attention(small: bool) -> None:
    """Prints the relative differences of "auto", cuDNN's on GPUs, from XLA's in float32."""
    batch, heads, kv_heads, length = (2, 4, 2, 128) if small else (4, 16, 4, 2048)
    for head_dim in (64, 128):
        keys = jax.random.split(jax.random.key(0), 3)
        qkv = [
            jax.random.normal(key, (batch, n, length, head_dim), jnp.bfloat16)
            for key, n in zip(keys, (heads, kv_heads, kv_heads), strict=True)
        ]
        qkv[0] = qkv[0] * jnp.bfloat16(head_dim**-0.5)
        ends = np.random.default_rng(0).integers(0, length, (batch, 1, 12))
        segment_ids = jnp.asarray((np.arange(length)[:, None] >= ends).sum(-1), jnp.int32)
        for rows, ids in (("one document", None), ("documents", segment_ids)):
            ours, expected = (_attention(name, qkv, ids) for name in ("auto", "xla"))
            errors = [
                float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
                for a, b in zip(ours, expected, strict=True)
            ]
            names = ("out", "dq", "dk", "dv")
            actual = ", ".join(f"{n} {e:.1e}" for n, e in zip(names, errors, strict=True))
            verdict = "ok" if max(errors) < 0.02 else "WRONG"
            print(f"attention, head_dim {head_dim}, {rows}: {actual}: {verdict}", flush=True)


def _attention(implementation: str, qkv: list[jax.Array], ids: jax.Array | None) -> list[jax.Array]:
    dtype = jnp.float32 if implementation == "xla" else jnp.bfloat16

    def loss(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = causal_attention(*qkv, implementation, jax.lax.Precision.HIGHEST, ids)
        return jnp.square(out.astype(jnp.float32)).sum(), out

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    grads, out = gradient(*(x.astype(dtype) for x in qkv))
    return [x.astype(jnp.float32) for x in (out, *grads)]


def train(model: ModelConfig, options: argparse.Namespace) -> None:
    """Trains on random tokens and prints speed, memory and the dearest kernels."""
    length = 128 if options.small else 2048
    config = RunConfig(
        model=model,
        compute=ComputeConfig(remat=options.remat, loss_chunks=options.loss_chunks),
        data=DataConfig(length=length, batch=options.rows),
    )
    declarations = declare(model)
    with use_mesh(config.mesh, jax.devices()[:1]) as mesh:
        optimizer = make_optimizer(config)
        shardings = param_shardings(mesh, declarations)
        params = init_params(declarations, model.layers, "paper", 0, shardings)
        state = fresh_state(params, optimizer, mesh)
        del params
        random, shape = np.random.default_rng(0), (options.rows, length)
        tokens = random.integers(0, model.vocab, (2, *shape), dtype=np.int32)
        batch = jax.device_put(
            {
                "tokens": tokens[0],
                "targets": tokens[1],
                "loss_weights": np.ones(shape, np.float32),
                "source_ids": np.zeros(shape, np.int32),
            }
        )
        step = make_train_step(config, optimizer, sources=1)
        began = time.perf_counter()
        compiled = step.lower(state, batch, None).compile()
        print(f"compiled in {time.perf_counter() - began:.0f} s", flush=True)
        for _ in range(WARM_UP):
            state, metrics = compiled(state, batch, None)
        metrics.loss.block_until_ready()
        began = time.perf_counter()
        for _ in range(options.steps):
            state, metrics = compiled(state, batch, None)
        metrics.loss.block_until_ready()
        seconds = (time.perf_counter() - began) / options.steps
        per_token = training_flops_per_token(model, declarations, length)
        report("ours", options.rows * length / seconds, per_token)
        stats = jax.devices()[0].memory_stats() or {}
        print(f"memory at most {stats.get('peak_bytes_in_use', 0) / 2**30:.1f} GiB", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder, create_perfetto_trace=True):
                for _ in range(2):
                    state, metrics = compiled(state, batch, None)
                metrics.loss.block_until_ready()
            print_kernels(Path(folder))


def report(name: str, tokens_per_second: float, flops_per_token: int) -> None:
    """Prints tokens per second and the MFU."""
    peak = peak_flops(jax.devices()[0].device_kind)
    mfu = f"{tokens_per_second * flops_per_token / peak:.1%}" if peak else "unknown"
    print(f"{name}: {tokens_per_second:,.0f} tokens/s, MFU {mfu}", flush=True)


def print_kernels(folder: Path) -> None:
    """Prints the kernels of a trace that take most of the device's time."""
    (path,) = folder.rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    named = [e for e in events if e.get("name") == "process_name"]
    devices = {e["pid"] for e in named if "/device:GPU" in e["args"]["name"]}
    times: collections.Counter[str] = collections.Counter()
    for event in events:
        if event.get("ph") == "X" and event["pid"] in devices:
            times[event["name"]] += event.get("dur", 0)
    total = sum(times.values()) or 1
    for name, microseconds in times.most_common(15):
        print(f"  {microseconds / total:6.1%}  {name[:90]}")


def train_with_torch(model: ModelConfig, options: argparse.Namespace) -> dict[str, Any] | str:
    """Returns what plain PyTorch does with the same shapes, or why it does not."""
    if importlib.util.find_spec("torch") is None:
        return "is not installed: no comparison"
    length = 128 if options.small else 2048
    shape = [model.vocab, model.layers, model.embed, model.heads, model.head_dim, model.mlp]
    program = str(Path(__file__).with_name("plain_torch.py"))
    command = [sys.executable, program, *map(str, [*shape, options.rows, length, options.steps])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["failed without a message"])[-1]
    actual: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return actual


def report_torch(model: ModelConfig, result: dict[str, Any] | str, small: bool) -> None:
    """Prints the result of `train_with_torch`."""
    if isinstance(result, str):
        print(f"torch: {result}")
        return
    per_token = training_flops_per_token(model, declare(model), 128 if small else 2048)
    report(f"torch {result['version']}", result["tokens_per_second"], per_token)
    print(f"memory at most {result['bytes'] / 2**30:.1f} GiB", flush=True)


def main() -> None:
    """Prints versions, checks attention, and trains both shapes."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--rows", type=int, default=8)
    flags.add_argument("--steps", type=int, default=20)
    flags.add_argument("--remat", default="minimal")
    flags.add_argument("--loss_chunks", type=int, default=8)
    flags.add_argument("--small", action="store_true")
    options = flags.parse_args()
    models = {name: model_of(*heads, options.small) for name, heads in HEADS.items()}
    # Before JAX takes the memory of the GPU.
    by_torch = {name: train_with_torch(model, options) for name, model in models.items()}
    device = jax.devices()[0]
    print(f"{device.device_kind}, Python {platform.python_version()}, jax {jax.__version__}")
    check_attention(options.small)
    for name, model in models.items():
        print(f"\n{model.layers} layers × {model.embed}, {name}", flush=True)
        train(model, options)
        report_torch(model, by_torch[name], options.small)


if __name__ == "__main__":
    main()
