"""A study whose runs are written by a fake trainer, in milliseconds."""

import json
import sys
from pathlib import Path

from prts_jax import config
from prts_jax.study import arms
from prts_jax.study.design import Study

TRAINER = """
import json, os, pathlib, sys, time
flags = dict(flag.lstrip("-").split("=", 1) for flag in sys.argv[1:])
run, cell = pathlib.Path(flags["workdir"]), json.loads(pathlib.Path(flags["config"]).read_text())
if os.environ.get("FAIL") and os.environ["FAIL"] in run.name and not (run / "tried").exists():
    run.mkdir(parents=True, exist_ok=True)
    (run / "tried").touch()
    print(os.environ["LAST_LINE"], file=sys.stderr)
    sys.exit(int(os.environ["CODE"]))
if os.environ.get("SLOW"):
    time.sleep(60)
grown = cell["init"]["grow_from"]
if grown:
    assert (pathlib.Path(grown) / "DONE").exists()
run.mkdir(parents=True, exist_ok=True)
(run / "config.json").write_text(json.dumps(cell))
steps, rate = cell["train"]["steps"], cell["schedule"]["peak"]
lines = []
for step in range(0, steps + 1):
    flops = 1e9 * (step + 1) + (1e9 if grown else 0)
    # A larger rate is better here, a grown run needs half the FLOPs, and seeds differ a little.
    spent = flops * rate * (2 if grown else 1)
    loss = 2 + (spent / 1e6) ** -0.3 + 0.001 * cell["data"]["seed"]
    line = {"step": step, "stage_step": step, "tokens": 1000 * step, "flops": flops, "loss": loss}
    line |= {"gradient_norm": 1.0, "step_norm": 0.1, "validation_loss": loss, "seconds": step}
    line |= {f"validation_block/{k:03d}": loss + 0.01 * k - 0.015 for k in range(4)}
    lines.append(line)
(run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
(run / "DONE").write_text("{}")
"""


def study(seeds: tuple[int, ...] = (0, 1, 2), steps: int = 40) -> Study:
    """Returns a base, scratch with two rates, and two grown arms."""
    c = config.default_config()
    c.model = config.to_dict(
        config.ModelConfig(vocab=64, layers=4, embed=16, heads=2, kv_heads=2, head_dim=8, mlp=32)
    )
    c.schedule.kind, c.schedule.peak, c.schedule.warmup_steps = "constant", 1e-3, 1
    c.data.train = c.data.validation = "store"
    c.data.batch, c.data.length = 2, 8
    c.train.steps = steps
    shallow = arms.base(c, "shallow", {"model.layers": 1}, 0.1)
    return Study(
        "Does it pay?",
        (
            shallow,
            arms.scratch(c, 1.0, (5e-4, 1e-3), published=2.2),
            arms.grown(c, "stack", shallow, {"init.growth.operator": "stack"}, published=2.1),
            arms.grown(c, "zero", shallow, {"init.growth.operator": "zero"}, published=2.15),
        ),
        seeds,
    )


def fake_trainer(folder: Path) -> list[str]:
    """Writes the trainer and returns the beginning of its command."""
    path = folder / "trainer.py"
    path.write_text(TRAINER)
    return [sys.executable, "-S", str(path)]


def damage(path: Path) -> None:
    """Changes a cell's config as an edited study would."""
    values = json.loads(path.read_text())
    values["train"]["steps"] += 1
    path.write_text(json.dumps(values, indent=2))
