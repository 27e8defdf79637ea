"""The only list of config keys and their defaults."""

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
    """Options of computation; results differ by rounding only."""

    dtype: str = "bfloat16"  # dtype of activations and matrix products: bfloat16 or float32
    attention: str = "auto"  # auto, xla, splash (TPU) or cudnn (GPU)
    # Tiles of the splash kernels, such as "q=1024,kv=1024,kv_compute=512"; those not given and with
    # "" all are chosen by length and head_dim. See prts_jax.config.blocks.
    splash_blocks: str = ""
    # Kept for the backward pass: none (everything), dots (matrix products), minimal (q, k, v,
    # attention, gate and up), save_qkv (q, k, v, attention), offload (as minimal, in the host's
    # memory) or full (layer inputs only).
    remat: str = "none"
    loss_chunks: int = 1  # parts of a sequence whose logits are computed one after another
    # Options of XLA on TPUs, as NAME=VALUE,…; this one turns windowed einsum off.
    tpu_flags: str = "xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000"
    # Directory of compiled programs, which a restart reads: workdir, off, or a path.
    compilation_cache: str = "workdir"
    scan: bool = True  # one compiled layer for all layers; False unrolls them


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each mesh axis, one of them -1 for the remaining ones, and rules."""

    data: int = 1  # copies of the parameters, each for a part of the batch
    fsdp: int = -1  # splits parameters and batch
    sequence: int = 1  # splits the positions of a sequence; keys and values are gathered
    tensor: int = 1  # splits heads, MLP and vocabulary, and positions between layers
    # Changes of prts_jax.config.rules, such as "vocab=fsdp+tensor,embed=none".
    rules: str = ""
    # When the gradients of micro-batches are exchanged: once a step, which needs whole weights and
    # gradients on each device, or each micro_batch; auto: once a step where both take at most a
    # third of the device's memory. Along `data`, which splits no parameter, always once a step.
    reduce_gradients: str = "auto"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Token stores of a run and the order in which they are read."""

    train: str = ""  # directory of the token store, or of several with shares "DIR,0.7;DIR,0.3"
    validation: str = ""  # directory of the validation token store; empty: no validation
    length: int = 2048  # sequence length in tokens
    batch: int = 1024  # sequences per step over all hosts
    # Tokens per step; `batch` is then the sequences of a micro-batch, and train.accumulation is
    # derived. 0: batch × length.
    tokens_per_step: int = 0
    shuffle: bool = True
    overlap: bool = True  # windows share one token; False: disjoint blocks as in the original
    # Empty: all sets; no_github; sets "A,B"; or shares of windows "A=0.7,B=0.3". For several
    # stores, one for each: "no_github;A=0.7,B=0.3".
    mixture: str = ""
    block: int = 0  # tokens shuffled as one block, a multiple of length; 0: single windows
    pieces: int = 32  # of a block, interleaved with other blocks'; 1: windows one after another
    strata: int = 32  # parts of the store that take turns in opening blocks; 1: in any order
    documents: bool = False  # attention only within a document; False: across, as in the paper
    instructions: bool = False  # loss on answers only; needs a store of `prts data instructions`
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon, with global-norm clipping and decoupled weight decay."""

    kind: str = "adamw"  # adamw, or muon for the linear maps of the layers (AdamW for the rest)
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.95  # of Muon
    weight_decay: float = 0.1
    decay: str = "all"  # decayed parameters: all, or matrices (no norms and no embedding)
    clip: float = 1.0  # global norm; 0 turns clipping off
    ema: float = 0.0  # decay of a moving average of the weights, such as 0.999; 0: none


@dataclasses.dataclass(frozen=True)
class ScalingConfig:
    """Transfer of a learning rate tuned on a proxy, see `prts_jax.train.scaling`."""

    kind: str = "none"  # none, mup (across widths) or completep (across widths and depths)
    embed: int = 0  # the proxy's width
    layers: int = 0  # completep: the proxy's depth
    heads: int = 0  # the proxy's; 0: in proportion to the width
    mlp: int = 0  # the proxy's; 0: in proportion to the width


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate as a function of the step; `after_growth` selects where steps start."""

    kind: str = "cosine"  # cosine, wsd or constant, each after a linear warm-up
    after_growth: str = "restart"  # restart, rewarm (new warm-up, then the old schedule) or keep
    peak: float = 3e-4
    final: float = 0.1  # final rate as a fraction of the peak
    warmup_steps: int = 3000
    decay_start: int = 0  # wsd: step at which the decay starts
    decay_end: int = 300_000  # cosine and wsd: step at which the rate reaches `final`
    # As "2000 steps", "1.5B tokens" or "2%" of the run, instead of the steps above.
    warmup: str = ""  # length of the warm-up
    decay: str = ""  # wsd: length of the decay, which ends with the run; cosine: its last step


@dataclasses.dataclass(frozen=True)
class GrowthConfig:
    """Growth of a checkpoint in depth or width; each key names the operators that use it."""

    # factor, drop, every and block: 0 derives the value from the target's layers.
    operator: str = "stack"  # name of an operator, see prts_jax.growth.operators
    factor: int = 0  # stack, interpolate, zero, random, width operators: copies of the source
    layers: str = ""  # layers: "1-234*7-56" (notation of the paper) or "0:24,8:32"
    drop: int = 0  # solar: layers dropped from each of the two copies
    every: int = 0  # block_expansion: source layers per new layer
    block: int = 0  # middle, last: number of layers in the copied block
    order: str = "interleave"  # zero, random: interleave, or stack (new layers on top)
    widths: str = ""  # width operators: new sizes "embed=2048,heads=32"; empty: those of the target
    weights: str = "even"  # split: even or uneven (2/3 and 1/3 of two copies)
    pair_noise: float = 0.0  # split: noise that cancels in two copies, relative to a fresh std
    # width operators: exact, paper (its formula, not function preserving) or rms (keeps the mean
    # square of activations instead of the function: split, random_width).
    norm: str = "exact"
    gate_steps: int = 1000  # random, random_width: steps to open a gate; 0: open from the start
    noise: float = 0.0  # all: share of noise mixed into copied weights; paper: 0.2
    seed: int = 0  # seed of fresh weights and noise
    learn_steps: int = 100  # learned: training steps of the matrices; 0: initial matrices
    learn_rate: float = 6e-3  # learned: constant rate, divided by the columns of a matrix
    matrices: str = ""  # learned: file of matrices from an earlier run, used without training
    options: str = ""  # options of a third-party operator: "name=value,name=value"
    # Optimizer state: reset; copy (moments grow by the same map); keep (as copy, and the schedule
    # continues); asymmetric (as keep, but new entries have zero moments and a rate of their own).
    optimizer: str = "reset"
    new_rate: float = 1.3  # asymmetric: rate of new entries as a multiple of the others'
    new_rate_steps: int = 250  # asymmetric: steps in which it rises from 0, before the common rate


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Initial parameters of a run that has no checkpoints yet."""

    seed: int = 0
    kind: str = "paper"  # paper, or torch_default (as in the published scratch runs)
    zero_outputs: bool = False  # attention outputs and down projections start from zero
    grow_from: str = ""  # checkpoint to grow into this model
    start_from: str = ""  # checkpoint of this model, for example one written by `prts grow`
    branch_from: str = ""  # checkpoint of a run to decay over `schedule.decay`: WORKDIR@STEP
    growth: GrowthConfig = GrowthConfig()


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """Distillation from a frozen teacher."""

    teacher: str = ""  # checkpoint; "source": the one that was grown; empty: none
    weight: float = 0.5  # weight of −Σ p_teacher log p_student; LM loss: 1 − weight


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every_steps: int = 1000
    every_minutes: float = 0.0  # also at the next logged step after N minutes; 0: only by steps
    retry_minutes: float = 60.0  # training goes on while saves fail, for N minutes at most; 0: not
    keep: int = 2  # newest checkpoints kept
    keep_every_steps: int = 0  # checkpoints at multiples of this step are never deleted; 0: none
    # The same in tokens, rounded up to steps; such checkpoints are also saved, as places to branch.
    keep_every_tokens: int = 0
    # The first checkpoint and those at least N hours after the last one kept so; 0: none.
    keep_every_hours: float = 0.0


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Interval and size of the validation."""

    every_steps: int = 1000  # 0: only at start and end
    tokens: int = 0  # tokens per validation; 0: the whole store
    batch: int = 0  # sequences per validation step; 0: as in training
    blocks: int = 0  # equal parts of the validation text whose losses are logged too, for intervals


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """Metrics and where they go, warnings of loss spikes, and profiles."""

    every_steps: int = 10
    tensorboard: bool = True
    wandb: str = ""  # project on Weights & Biases; empty: none
    spike_deviations: float = 0.0  # warn of losses this far above the running loss; 0: never
    profile_from: int = 0  # first step of a profile, as in metrics.jsonl; 0: only by SIGUSR1
    profile_steps: int = 5  # steps of a profile


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length of a run, and micro-batches and trained parameters of a step."""

    steps: int = 1000  # steps of this run since its start or growth; see growth.stages
    accumulation: int = 1  # micro-batches per step
    z_loss: float = 0.0  # weight of log² Z in the gradient of the loss; PaLM: 1e-4
    # Steps of a stage that may be skipped: those without a finite loss or gradient, and spikes.
    max_skipped: int = 10
    # Skip steps whose loss is so many standard deviations above the running loss; 0: none.
    skip_spikes: float = 0.0
    trainable: str = "all"  # all, or new: layers added by the growth, final norm and head


class StageChanges(dict[str, Any]):
    """The "steps" of a stage and its changes to the run's config, as nested dictionaries.

    Hashable, so it must not be modified.
    """

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True))


@dataclasses.dataclass(frozen=True)
class StagesConfig:
    """Stages of a run that grows during training, see `prts_jax.config.stages`."""

    # {"steps": 400, "model": {"layers": 2}}, {"steps": "1.5B tokens"}, …
    stages: tuple[StageChanges, ...] = ()


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The complete config of `prts train`."""

    model: ModelConfig = ModelConfig()
    compute: ComputeConfig = ComputeConfig()
    mesh: MeshConfig = MeshConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    scaling: ScalingConfig = ScalingConfig()
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
    "compute.remat": ("none", "dots", "minimal", "save_qkv", "offload", "full"),
    "optimizer.kind": ("adamw", "muon"),
    "optimizer.decay": ("all", "matrices"),
    "scaling.kind": ("none", "mup", "completep"),
    "schedule.kind": ("cosine", "wsd", "constant"),
    "schedule.after_growth": ("restart", "rewarm", "keep"),
    "init.kind": ("paper", "torch_default"),
    "mesh.reduce_gradients": ("auto", "step", "micro_batch"),
    "train.trainable": ("all", "new"),
    "init.growth.optimizer": ("reset", "copy", "keep", "asymmetric"),
}
