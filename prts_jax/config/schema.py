"""The keys of a config and their defaults: the only list of them."""

import dataclasses
import json
from typing import Any


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's frequency scaling; `factor` 1.0 means none."""

    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder. The paper's 24L2048H is layers=24, embed=2048."""

    architecture: str = "llama"  # a name in prts_jax.model.architecture
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
    documents: bool = False  # attention stays within a document; False: the paper's, across them
    instructions: bool = False  # a packed store of `prts data instructions`: loss on answers alone
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
    """Learning rate over steps: since the last growth, or as `after_growth` says."""

    kind: str = "cosine"  # cosine, wsd or constant, each after a linear warm-up
    after_growth: str = "restart"  # or rewarm (warm-up again, onto the old curve), or keep
    peak: float = 3e-4
    final: float = 0.1  # the last rate as a share of the peak
    warmup_steps: int = 3000
    decay_start: int = 0  # wsd: the step at which the decay begins
    decay_end: int = 300_000  # cosine and wsd: the step at which `final` is reached


@dataclasses.dataclass(frozen=True)
class GrowthConfig:
    """How the checkpoint in `init.grow_from` becomes deeper or wider."""

    # A number of 0 is taken from the target's layers.
    operator: str = "stack"  # a registered name, see prts_jax.growth.registry
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
    gate_steps: int = 1000  # random, random_width: steps in which a gate opens; 0: open at once
    noise: float = 0.0  # any: share of noise mixed into what is copied, 0.2 in the paper
    seed: int = 0  # of what is drawn
    learn_steps: int = 100  # learned: steps that its matrices train for; 0: their initial value
    learn_rate: float = 6e-3  # learned: of these steps, constant, over a matrix's columns
    matrices: str = ""  # learned: file of matrices learned before, used as they are
    options: str = ""  # further ones, of an operator's own: "name=value,name=value"
    optimizer: str = "reset"  # its state: reset, or copy (moments through the same map)


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Where a run without checkpoints of its own takes its parameters from."""

    seed: int = 0
    kind: str = "paper"  # paper, or torch_default (the published scratch runs')
    grow_from: str = ""  # checkpoint to grow into this model, on the mesh
    start_from: str = ""  # checkpoint of this model's shape: a grown one, say
    growth: GrowthConfig = GrowthConfig()


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """A frozen teacher whose distribution is a part of the loss."""

    teacher: str = ""  # a checkpoint; "source": the one grown from; none if empty
    weight: float = 0.5  # share of −Σ p_teacher log p_student; the rest is the LM loss


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
    trainable: str = "all"  # all, or new: layers new since the growth, final norm and head


class StageChanges(dict[str, Any]):
    """A stage's changes to the run's config, as nested dictionaries, and its "steps".

    Hashable, so never modified.
    """

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True))


@dataclasses.dataclass(frozen=True)
class StagesConfig:
    """The stages of a run that grows on its way, see `prts_jax.config.stages`."""

    stages: tuple[StageChanges, ...] = ()  # {"steps": 400, "model": {"layers": 2}}, …; one if empty


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
    distillation: DistillationConfig = DistillationConfig()
    growth: StagesConfig = StagesConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()
    train: TrainConfig = TrainConfig()


CHOICES = {
    "compute.dtype": ("bfloat16", "float32"),
    "compute.attention": ("auto", "xla", "splash", "cudnn"),
    "compute.remat": ("none", "dots", "full"),
    "schedule.kind": ("cosine", "wsd", "constant"),
    "schedule.after_growth": ("restart", "rewarm", "keep"),
    "init.kind": ("paper", "torch_default"),
    "train.trainable": ("all", "new"),
    "init.growth.optimizer": ("reset", "copy"),
}
