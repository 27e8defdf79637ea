"""A study as data: arms (ways to spend the same FLOPs), seeds, and the runs that follow."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from prts_jax import config as config_lib
from prts_jax.config.stages import stage_configs
from prts_jax.errors import UserError
from prts_jax.model.architecture import declare
from prts_jax.model.counts import count_parameters, training_flops_per_token

KINDS = ("base", "scratch", "grown")


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way to train, the same for every seed.

    Attributes:
      kind: "base" (trained for others to grow from, not compared), "scratch" (what the others are
        measured against) or "grown".
      config: of its run. The study sets its seeds, its peak rate and `init.grow_from`.
      base: name of the arm that it grows from, with the same seed; "" for none.
      peaks: learning rates tried with the first seed; the other seeds use the one whose validation
        loss ends lowest. Empty for the config's own.
      published: loss of this arm in the paper, for the comparison of ranks; None for none.
    """

    name: str
    kind: str
    config: ConfigDict
    base: str = ""
    peaks: tuple[float, ...] = ()
    published: float | None = None

    def rates(self) -> tuple[float, ...]:
        """Returns the peak learning rates to try."""
        return self.peaks or (float(self.config.schedule.peak),)

    def parameters(self) -> int:
        """Returns the number of parameters of its (last stage's) model."""
        return count_parameters(declare(config_lib.resolve(self.config).model)).total


@dataclasses.dataclass(frozen=True)
class Study:
    """Arms and seeds.

    Attributes:
      title: the question, for the report.
      arms: bases before the arms that grow from them.
      seeds: of weights, noise and data order; the k-th of every arm reads the same data.
    """

    title: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def finished_only(self) -> bool:
        """Compares the ends of runs only, since a rate that decays makes the middle look bad."""
        return any(
            stage.schedule.kind != "constant"
            for arm in self.arms
            if arm.kind != "base"
            for stage in stage_configs(config_lib.resolve(arm.config))
        )

    def arm(self, name: str) -> Arm:
        """Returns the arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)

    def runs(self, arm: Arm) -> int:
        """Returns the number of runs of an arm: all rates with one seed, one with the others."""
        return len(arm.rates()) + len(self.seeds) - 1

    def flops(self) -> float:
        """Returns the FLOPs of the whole grid."""
        return sum(
            self.runs(arm) * Cell(arm, arm.rates()[0], self.seeds[0]).flops() for arm in self.arms
        )


@dataclasses.dataclass(frozen=True)
class Cell:
    """A run of the grid: an arm, one of its rates and a seed."""

    arm: Arm
    peak: float
    seed: int

    @property
    def name(self) -> str:
        """Folder of the run within the study."""
        return f"{self.arm.name}-peak{self.peak:g}-seed{self.seed}"

    def flops(self) -> float:
        """Returns the FLOPs of its own steps; learning growth matrices is booked by the run."""
        stages = stage_configs(config_lib.resolve(self.arm.config))
        return float(sum(stage.train.steps * flops_of_step(stage) for stage in stages))


@dataclasses.dataclass(frozen=True)
class Folder:
    """A study's workdir, `root`: `study.json`, and a folder each for configs, runs and logs."""

    root: Path

    @property
    def compiled(self) -> Path:
        """Compiled programs, which runs of equal shapes share."""
        return self.root / "compiled"

    def create(self) -> None:
        """Creates the folders."""
        for name in ("configs", "runs", "logs", "compiled"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def config(self, cell: Cell) -> Path:
        """Config of a run, as `prts train --config=FILE` reads it."""
        return self.root / "configs" / f"{cell.name}.json"

    def run(self, cell: Cell) -> Path:
        """Workdir of a run."""
        return self.root / "runs" / cell.name

    def log(self, cell: Cell) -> Path:
        """Output of a run's command."""
        return self.root / "logs" / f"{cell.name}.txt"


def flops_of_step(config: config_lib.RunConfig) -> int:
    """Returns the FLOPs of a training step (`model.counts.training_flops_per_token`)."""
    data, model = config.data, config.model
    per_token = training_flops_per_token(model, declare(model), data.length)
    return data.batch * data.length * per_token


def equal_steps(flops: float, config: ConfigDict, base: ConfigDict | None = None) -> int:
    """Returns the steps of `config` that spend `flops`, those of its base's steps included.

    Raises:
      UserError: the base alone spends them.
    """
    spent = 0.0
    if base is not None:
        resolved = config_lib.resolve(base)
        spent = resolved.train.steps * flops_of_step(resolved)
    steps = round((flops - spent) / flops_of_step(config_lib.resolve(config)))
    if steps < 1:
        raise UserError(f"study: a base of {spent:.2e} FLOPs leaves nothing of {flops:.2e}")
    return steps


def check(study: Study) -> None:
    """Checks a study.

    Raises:
      UserError: two arms of one name, a name that is no folder's, an unknown kind or base, no
        scratch arm, seeds that repeat, or a config that is not valid.
    """
    names = [arm.name for arm in study.arms]
    for at, arm in enumerate(study.arms):
        if not re.fullmatch(r"[A-Za-z0-9_.@-]{1,60}", arm.name) or arm.name.startswith("."):
            raise UserError(f"study: arm {arm.name!r}: use letters, digits and _.@- in a name")
        if names.count(arm.name) > 1:
            raise UserError(f"study: two arms have the name {arm.name}; rename one")
        if arm.kind not in KINDS:
            raise UserError(f"study: arm {arm.name}: kind {arm.kind!r} is none of {KINDS}")
        if arm.base and arm.base not in names[:at]:
            raise UserError(f"study: arm {arm.name}: its base {arm.base!r} is no arm before it")
        try:
            config_lib.resolve(arm.config)
        except UserError as error:
            raise UserError(f"study: arm {arm.name}: {error}") from error
    if not any(arm.kind == "scratch" for arm in study.arms):
        raise UserError("study: has no scratch arm to compare with; add one of kind='scratch'")
    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        raise UserError("study: seeds are missing or repeat; give different ones")


Losses = Mapping[str, float]
"""Name of a finished cell → its last validation loss; infinite if it diverged."""


def chosen_peak(study: Study, arm: Arm, losses: Losses) -> float | None:
    """Returns the arm's best peak by the first seed; None until all of its peaks are tried."""
    tried = {peak: losses.get(Cell(arm, peak, study.seeds[0]).name) for peak in arm.rates()}
    known = {peak: loss for peak, loss in tried.items() if loss is not None}
    return min(known, key=lambda peak: known[peak]) if len(known) == len(tried) else None


def base_of(study: Study, cell: Cell, losses: Losses) -> Cell | None:
    """Returns the finished run that a cell grows from; None if it is not known yet."""
    base = study.arm(cell.arm.base)
    peak = chosen_peak(study, base, losses)
    if peak is None:
        return None
    source = Cell(base, peak, cell.seed)
    return source if source.name in losses else None


def ready(study: Study, losses: Losses) -> list[Cell]:
    """Returns the unfinished cells that can start now, those of the first seed first.

    An arm's other seeds wait for its sweep of peaks, and whatever grows waits for its base.
    """
    cells: list[Cell] = []
    for arm in study.arms:
        cells += [Cell(arm, peak, study.seeds[0]) for peak in arm.rates()]
    for arm in study.arms:
        peak = chosen_peak(study, arm, losses)
        if peak is not None:
            cells += [Cell(arm, peak, seed) for seed in study.seeds[1:]]
    return [
        cell
        for cell in cells
        if cell.name not in losses and (not cell.arm.base or base_of(study, cell, losses))
    ]


def final_cells(study: Study, losses: Losses) -> dict[str, list[Cell]]:
    """Returns, by arm, the finished runs at its chosen peak, one a seed, in the order of seeds."""
    chosen = {}
    for arm in study.arms:
        peak = chosen_peak(study, arm, losses)
        cells: Sequence[Cell] = [Cell(arm, peak, seed) for seed in study.seeds] if peak else []
        chosen[arm.name] = [cell for cell in cells if cell.name in losses]
    return chosen
