"""The configuration of a run: ml_collections files resolved once into frozen, typed dataclasses.

The dataclasses below are the only list of keys and defaults. A config file starts from
`default_config()`, changes what it wants and returns it; `resolve` turns the result into a
`RunConfig` and refuses what cannot work, in one line that names the key.
"""

import dataclasses
import difflib
import importlib.metadata
import math
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import ml_collections

from prts_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's frequency scaling; `factor` 1.0 means none."""

    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of a Llama. The paper's 24L2048H is layers=24, embed=2048."""

    vocab: int = 32000
    layers: int = 6
    embed: int = 1024
    heads: int = 16
    kv_heads: int = 16
    head_dim: int = 64
    mlp: int = 2816
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling = RopeScaling()
    tied: bool = False


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How the model is computed; never changes what is computed beyond rounding."""

    dtype: str = "bfloat16"  # of activations and matrix products: bfloat16 or float32
    attention: str = "auto"  # auto, xla, splash (TPU) or cudnn (GPU)
    remat: str = "none"  # none, dots (keep matrix products) or full (keep layer inputs)
    scan: bool = True  # one compiled layer for all layers; False unrolls them


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1, which takes what is left."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which tokens a run reads, in which order."""

    train: str = ""  # directory of the token store to train on
    validation: str = ""  # directory of the token store to evaluate on; none if empty
    length: int = 2048  # tokens of a sequence
    batch: int = 1024  # sequences of a step, over all hosts
    shuffle: bool = True
    overlap: bool = True  # windows share one token; False: the original's disjoint blocks
    mixture: str = ""  # all sets if empty; no_github; "A,B"; or shares of windows, "A=0.7,B=0.3"
    block: int = 0  # tokens shuffled together, a multiple of length; 0: windows one by one
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with decoupled weight decay on all parameters, after a global-norm clip."""

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0  # global norm; 0 turns clipping off


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over the steps since the last growth (`stage_step`)."""

    kind: str = "cosine"  # cosine, wsd or constant, each after a linear warm-up
    peak: float = 3e-4
    final: float = 0.1  # the last rate as a share of the peak
    warmup_steps: int = 3000
    decay_start: int = 0  # wsd: the step at which the decay begins
    decay_end: int = 300_000  # cosine and wsd: the step at which `final` is reached


@dataclasses.dataclass(frozen=True)
class GrowthConfig:
    """How the checkpoint in `init.grow_from` becomes deeper or wider."""

    # A number of 0 is taken from the target's layers.
    operator: str = "stack"  # a name in prts_jax.growth.operators
    factor: int = 0  # stack, interpolate, zero, in width: copies of the source's layers
    layers: str = ""  # layers: "1-234*7-56" (the paper's notation) or "0:24,8:32"
    drop: int = 0  # solar: layers that each of the two copies lacks
    every: int = 0  # block_expansion: a new layer after every so many
    block: int = 0  # middle, last: layers of the block that is copied
    order: str = "interleave"  # zero, random: interleave, or stack (new layers on top)
    widths: str = ""  # in width: new sizes, "embed=2048,heads=32"; default: the target's
    weights: str = "even"  # split: even or uneven (2/3 and 1/3 of two copies)
    pair_noise: float = 0.0  # split: noise that cancels between copies, in fresh deviations
    norm: str = "exact"  # in width: exact, or paper (its formula, not function preserving)
    noise: float = 0.0  # any: share of noise mixed into what is copied, 0.2 in the paper
    seed: int = 0  # of what is drawn
    options: str = ""  # of another package's operator: "name=value,name=value"


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Where a run without checkpoints of its own takes its parameters from."""

    seed: int = 0
    kind: str = "paper"  # paper, or torch_default (the published scratch runs')
    grow_from: str = ""  # checkpoint to grow into this model, on the mesh
    start_from: str = ""  # checkpoint of this model's shape: a grown one, say
    growth: GrowthConfig = GrowthConfig()


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every_steps: int = 1000
    keep: int = 2  # newest checkpoints kept
    keep_every_steps: int = 0  # multiples of this step are kept for ever; 0: none


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """When and on how much of the validation store the loss is measured."""

    every_steps: int = 1000  # 0: only at the start and the end
    tokens: int = 0  # validation tokens read each time; 0: all
    batch: int = 0  # sequences of an evaluation step; 0: as in training


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """Where metrics go beside metrics.jsonl."""

    every_steps: int = 10
    tensorboard: bool = True


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length of the run and how a step is computed."""

    steps: int = 1000  # steps of this run since its start or growth
    accumulation: int = 1  # micro-batches a step's batch is split into


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything `prts train` needs to know."""

    model: ModelConfig = ModelConfig()
    compute: ComputeConfig = ComputeConfig()
    mesh: MeshConfig = MeshConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    init: InitConfig = InitConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()
    train: TrainConfig = TrainConfig()


Section = TypeVar("Section")

CHOICES = {
    "compute.dtype": ("bfloat16", "float32"),
    "compute.attention": ("auto", "xla", "splash", "cudnn"),
    "compute.remat": ("none", "dots", "full"),
    "schedule.kind": ("cosine", "wsd", "constant"),
    "init.kind": ("paper", "torch_default"),
    "init.growth.operator": (
        "stack",
        "layers",
        "interpolate",
        "solar",
        "block_expansion",
        "middle",
        "last",
        "zero",
        "random",
        "split",
        "zero_width",
        "random_width",
    ),
}


OPERATOR_GROUP = "prts_jax.growth_operators"
"""Entry points of packages that bring growth operators of their own."""


def third_party_operators() -> dict[str, importlib.metadata.EntryPoint]:
    """Returns the entry points of installed growth operators by name, without loading them."""
    return {point.name: point for point in importlib.metadata.entry_points(group=OPERATOR_GROUP)}


def default_config() -> ml_collections.ConfigDict:
    """Returns every key with its default, for a config file to change.

    The result is locked: setting a key that does not exist, or a value of another type, is an
    error at the line of the config file that does it.
    """
    return ml_collections.ConfigDict(to_dict(RunConfig())).lock()


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a config dataclass as nested plain dictionaries, as JSON would hold it."""
    return dataclasses.asdict(config)


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the known name most like `name`, or what is known."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"


def from_dict(section: type[Section], values: Mapping[str, Any], where: str = "") -> Section:
    """Builds a config dataclass from nested mappings; keys left out keep their defaults.

    Args:
      section: one of the dataclasses of this module.
      values: nested mappings (a ConfigDict, or what `to_dict` returned).
      where: path of `section` in the whole config ("model"), for messages.

    Raises:
      UserError: an unknown key (names the nearest) or a value of the wrong type.
    """
    if not isinstance(values, Mapping | ml_collections.ConfigDict):
        raise UserError(f"{_dotted('config', where)}: is {values!r}; expected a section with keys")
    hints = typing.get_type_hints(section)
    unknown = [key for key in values if key not in hints]
    if unknown:
        key = _dotted("config", where, unknown[0])
        raise UserError(f"{key}: no such key; {nearest(unknown[0], hints)}")
    return section(**{key: _typed(values[key], hints[key], _dotted(where, key)) for key in values})


def _dotted(*names: str) -> str:
    return ".".join(filter(None, names))


def _typed(value: Any, kind: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast(type, kind), value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config.{where}: is {value}; it must be a finite number")
    if type(value) is not kind:
        raise UserError(
            f"config.{where}: {value!r} is of type {type(value).__name__}; expected {kind.__name__}"
        )
    return value


def get(config: RunConfig, key: str) -> Any:
    """Returns the value under a dotted key ("init.growth.operator")."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def resolve(values: Mapping[str, Any]) -> RunConfig:
    """Turns a config file's ConfigDict into a checked `RunConfig`.

    Raises:
      UserError: an unknown key, a wrong type, a value outside its choices, or a combination that
        cannot work.
    """
    config = from_dict(RunConfig, values)
    for key, choices in CHOICES.items():
        if key == "init.growth.operator" and get(config, key) not in choices:
            choices = (*choices, *third_party_operators())
        if get(config, key) not in choices:
            name = get(config, key)
            raise UserError(f"config.{key}: {name!r} is unknown; {nearest(name, choices)}")
    check_model(config.model)
    _check_numbers(config)
    _check_combinations(config)
    return config


def check_model(model: ModelConfig, where: str = "config.model") -> None:
    """Refuses shapes that no Llama can have.

    Raises:
      UserError: a size below one (no layers are allowed), query heads not divisible among the
        key heads, an odd head_dim, which rotary embeddings cannot split into pairs, or constants
        that divide by zero.
    """
    for name in ("vocab", "embed", "heads", "kv_heads", "head_dim", "mlp"):
        if getattr(model, name) < 1:
            raise UserError(f"{where}.{name}: is {getattr(model, name)}; it must be at least 1")
    if model.layers < 0:
        raise UserError(f"{where}.layers: is {model.layers}; it must be at least 0")
    if model.heads % model.kv_heads:
        raise UserError(
            f"{where}.heads: {model.heads} heads do not divide among kv_heads={model.kv_heads}; "
            "make heads a multiple of kv_heads"
        )
    if model.head_dim % 2:
        raise UserError(f"{where}.head_dim: is {model.head_dim}; rotary embeddings need it even")
    for name in ("norm_eps", "rope_theta"):
        if getattr(model, name) <= 0:
            raise UserError(f"{where}.{name}: is {getattr(model, name)}; it must be above 0")
    scaling = model.rope_scaling
    if scaling.factor < 1:
        raise UserError(
            f"{where}.rope_scaling.factor: is {scaling.factor}; it stretches by at least 1.0 (none)"
        )
    if not 0 < scaling.low_freq_factor < scaling.high_freq_factor:
        raise UserError(
            f"{where}.rope_scaling.high_freq_factor: is {scaling.high_freq_factor}; it must exceed "
            f"low_freq_factor={scaling.low_freq_factor}, and both must be above 0"
        )
    if scaling.original_length < 1:
        raise UserError(
            f"{where}.rope_scaling.original_length: is {scaling.original_length}; it must be ≥ 1"
        )


_AT_LEAST_ONE = (
    "data.length",
    "data.batch",
    "train.steps",
    "train.accumulation",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "logging.every_steps",
)
_AT_LEAST_ZERO = (
    "evaluation.every_steps",
    "evaluation.tokens",
    "evaluation.batch",
    "checkpoint.keep_every_steps",
    "optimizer.clip",
    "optimizer.weight_decay",
    "schedule.warmup_steps",
    "schedule.peak",
    "schedule.final",
    "schedule.decay_start",
    "init.growth.factor",
    "init.growth.drop",
    "init.growth.every",
    "init.growth.block",
    "init.growth.pair_noise",
    "init.growth.noise",
    "init.growth.seed",
)


def _check_numbers(config: RunConfig) -> None:
    for keys, least in ((_AT_LEAST_ONE, 1), (_AT_LEAST_ZERO, 0)):
        for key in keys:
            if get(config, key) < least:
                raise UserError(f"config.{key}: is {get(config, key)}; it must be ≥ {least}")
    for key in ("optimizer.b1", "optimizer.b2"):
        if not 0 <= get(config, key) < 1:
            raise UserError(f"config.{key}: is {get(config, key)}; it must be in [0, 1)")
    if config.optimizer.eps <= 0:
        raise UserError(f"config.optimizer.eps: is {config.optimizer.eps}; it must be above 0")
    sizes = dataclasses.asdict(config.mesh)
    if sum(size == -1 for size in sizes.values()) > 1:
        raise UserError("config.mesh: more than one axis is -1; only one can take what is left")
    for axis, size in sizes.items():
        if size < 1 and size != -1:
            raise UserError(f"config.mesh.{axis}: is {size}; it must be ≥ 1, or -1 for the rest")


def _check_combinations(config: RunConfig) -> None:
    schedule, init, compute = config.schedule, config.init, config.compute
    if compute.attention in ("splash", "cudnn") and compute.dtype != "bfloat16":
        raise UserError(
            f"config.compute.attention: {compute.attention} computes in bfloat16, and "
            f"config.compute.dtype is {compute.dtype}; choose 'auto' or 'xla'"
        )
    if config.data.batch % config.train.accumulation:
        raise UserError(
            f"config.train.accumulation: {config.train.accumulation} does not divide "
            f"config.data.batch={config.data.batch}"
        )
    if schedule.kind != "constant" and schedule.decay_end <= schedule.warmup_steps:
        raise UserError(
            f"config.schedule.decay_end: is {schedule.decay_end}; it must come after "
            f"warmup_steps={schedule.warmup_steps}"
        )
    if schedule.kind == "wsd" and not (
        schedule.warmup_steps <= schedule.decay_start < schedule.decay_end
    ):
        raise UserError(
            f"config.schedule.decay_start: is {schedule.decay_start}; wsd needs warmup_steps ≤ "
            f"decay_start < decay_end={schedule.decay_end}"
        )
    if init.grow_from and init.start_from:
        raise UserError("config.init: both grow_from and start_from are set; keep one")
    if init.growth.operator == "layers" and init.grow_from and not init.growth.layers:
        raise UserError(
            "config.init.growth.layers: is empty; the operator 'layers' needs a list such as "
            "'1-234*7-56' or '0:24,8:32'"
        )
