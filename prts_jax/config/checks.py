"""Checks of a config; each raises a one-line `UserError` that names the key."""

from prts_jax.config.blocks import parse_splash_blocks
from prts_jax.config.lengths import parse_length
from prts_jax.config.reading import get
from prts_jax.config.rules import MESH_AXES, parse_rules
from prts_jax.config.schema import DataConfig, ModelConfig, RunConfig, ScheduleConfig
from prts_jax.errors import UserError

MAX_LAYERS, MAX_SIZE = 10_000, 1_000_000
"""Limits above all known models, so a typo fails before it allocates huge lists."""


def check_model(model: ModelConfig, where: str = "config.model") -> None:
    """Checks the sizes and constants of a model.

    Raises:
      UserError: a size is below 1 (layers may be 0) or above `MAX_LAYERS` or `MAX_SIZE`, heads is
        not a multiple of kv_heads, head_dim is odd (rotary embeddings need pairs), or a constant is
        out of range.
    """
    for name in ("vocab", "embed", "heads", "kv_heads", "head_dim", "mlp"):
        if getattr(model, name) < 1:
            raise UserError(f"{where}.{name}: is {getattr(model, name)}; it must be at least 1")
        if getattr(model, name) > MAX_SIZE:
            raise UserError(
                f"{where}.{name}: is {getattr(model, name)}; it must be at most {MAX_SIZE}"
            )
    if not 0 <= model.layers <= MAX_LAYERS:
        raise UserError(f"{where}.layers: is {model.layers}; it must be 0 to {MAX_LAYERS}")
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
    "data.pieces",
    "data.strata",
    "train.steps",
    "train.accumulation",
    "compute.loss_chunks",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "logging.every_steps",
    "logging.profile_steps",
)
_AT_LEAST_ZERO = (
    "evaluation.every_steps",
    "evaluation.tokens",
    "evaluation.batch",
    "evaluation.blocks",
    "checkpoint.every_minutes",
    "checkpoint.retry_minutes",
    "checkpoint.keep_every_steps",
    "checkpoint.keep_every_tokens",
    "checkpoint.keep_every_hours",
    "train.max_skipped",
    "train.skip_spikes",
    "data.tokens_per_step",
    "scaling.embed",
    "scaling.layers",
    "scaling.heads",
    "scaling.mlp",
    "logging.spike_deviations",
    "logging.profile_from",
    "optimizer.clip",
    "optimizer.weight_decay",
    "schedule.warmup_steps",
    "schedule.peak",
    "train.z_loss",
    "schedule.final",
    "schedule.decay_start",
    "init.growth.factor",
    "init.growth.drop",
    "init.growth.every",
    "init.growth.block",
    "init.growth.pair_noise",
    "init.growth.gate_steps",
    "init.growth.noise",
    "init.growth.learn_steps",
    "init.growth.learn_rate",
    "init.growth.new_rate",
    "init.growth.new_rate_steps",
)


def check_numbers(config: RunConfig) -> None:
    """Checks the ranges of numbers.

    Raises:
      UserError: a number is out of range; names the key and the range.
    """
    for keys, least in ((_AT_LEAST_ONE, 1), (_AT_LEAST_ZERO, 0)):
        for key in keys:
            if get(config, key) < least:
                raise UserError(f"config.{key}: is {get(config, key)}; it must be ≥ {least}")
            most = 2**63 - 1 if key.endswith("tokens") else 2**31 - 1
            if isinstance(get(config, key), int) and get(config, key) > most:
                raise UserError(f"config.{key}: is {get(config, key)}; it must be ≤ {most}")
    for key in ("init.seed", "init.growth.seed", "data.seed"):
        if not 0 <= get(config, key) < 2**63:
            raise UserError(f"config.{key}: is {get(config, key)}; it must be 0 to 2^63 - 1")
    for key in ("optimizer.b1", "optimizer.b2", "optimizer.momentum", "optimizer.ema"):
        if not 0 <= get(config, key) < 1:
            raise UserError(f"config.{key}: is {get(config, key)}; it must be in [0, 1)")
    if not 0 <= config.distillation.weight <= 1:
        raise UserError(
            f"config.distillation.weight: is {config.distillation.weight}; a share of 0 to 1"
        )
    if config.optimizer.eps <= 0:
        raise UserError(f"config.optimizer.eps: is {config.optimizer.eps}; it must be above 0")
    sizes = {axis: getattr(config.mesh, axis) for axis in MESH_AXES}
    if sum(size == -1 for size in sizes.values()) > 1:
        raise UserError("config.mesh: more than one axis is -1; only one can take what is left")
    for axis, size in sizes.items():
        if size < 1 and size != -1:
            raise UserError(f"config.mesh.{axis}: is {size}; it must be ≥ 1, or -1 for the rest")
    parse_rules(config.mesh.rules)
    parse_splash_blocks(config.compute.splash_blocks)


def check_combinations(config: RunConfig) -> None:
    """Checks combinations of keys.

    Raises:
      UserError: values are each valid but not together; names one of the keys and how to fix it.
    """
    schedule, init, compute = config.schedule, config.init, config.compute
    if compute.attention in ("splash", "cudnn") and compute.dtype != "bfloat16":
        raise UserError(
            f"config.compute.attention: {compute.attention} computes in bfloat16, and "
            f"config.compute.dtype is {compute.dtype}; choose 'auto' or 'xla'"
        )
    if config.data.length % config.compute.loss_chunks:
        raise UserError(
            f"config.compute.loss_chunks: {config.compute.loss_chunks} does not divide "
            f"data.length={config.data.length}; choose a divisor"
        )
    if config.data.batch % config.train.accumulation:
        raise UserError(
            f"config.train.accumulation: {config.train.accumulation} does not divide "
            f"config.data.batch={config.data.batch}"
        )
    if config.scaling.kind != "none":
        _check_scaling(config)
    if config.data.instructions:
        _check_packed_rows(config.data)
    for key in ("schedule.warmup", "schedule.decay"):
        if get(config, key):
            parse_length(get(config, key), key)
    if not schedule.warmup and not schedule.decay:
        check_schedule(schedule)
    if config.checkpoint.keep_every_steps and config.checkpoint.keep_every_tokens:
        raise UserError(
            "config.checkpoint.keep_every_tokens: keep_every_steps is set too; keep one"
        )
    if init.branch_from and not schedule.decay:
        raise UserError(
            "config.schedule.decay: is empty; give the length of the branch's decay, such as "
            "'1B tokens' or '10%'"
        )
    if sum(map(bool, (init.grow_from, init.start_from, init.branch_from))) > 1:
        given = ("grow_from", "start_from", "branch_from")
        names = " and ".join(name for name in given if getattr(init, name))
        raise UserError(f"config.init: both {names} are set; keep one")
    if init.growth.operator == "layers" and init.grow_from and not init.growth.layers:
        raise UserError(
            "config.init.growth.layers: is empty; the operator 'layers' needs a list such as "
            "'1-234*7-56' or '0:24,8:32'"
        )


def check_schedule(schedule: ScheduleConfig) -> None:
    """Checks the order of warm-up and decay.

    Raises:
      UserError: the decay would begin before the warm-up ends, or end before it begins.
    """
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


def _check_scaling(config: RunConfig) -> None:
    """Checks that the proxy's shape is known, and the optimizer one whose rates are scaled."""
    scaling, model = config.scaling, config.model
    if config.optimizer.kind != "adamw":
        raise UserError(
            f"config.scaling.kind: {scaling.kind} scales the rates of adamw, and "
            f"config.optimizer.kind is {config.optimizer.kind}; set it to 'none'"
        )
    needed = ("embed", "layers") if scaling.kind == "completep" else ("embed",)
    for name in needed:
        if not getattr(scaling, name):
            raise UserError(
                f"config.scaling.{name}: is 0; give that of the model whose learning rate is used"
            )
    for name in ("heads", "mlp"):
        if not getattr(scaling, name) and getattr(model, name) * scaling.embed % model.embed:
            raise UserError(
                f"config.scaling.{name}: is 0, and {getattr(model, name)} × {scaling.embed} / "
                f"{model.embed} is no whole number; give that of the proxy"
            )


def _check_packed_rows(data: DataConfig) -> None:
    """Checks that the read order matches the rows that were packed when the store was made."""
    needed = {"documents": True, "overlap": False, "block": 0, "mixture": ""}
    for key, value in needed.items():
        if getattr(data, key) != value:
            raise UserError(
                f"config.data.{key}: is {getattr(data, key)!r}, and config.data.instructions reads "
                f"rows of whole examples; set it to {value!r}"
            )
