"""A run begins by resume, growth, another checkpoint or fresh parameters, or is refused.

`begin` is called here as the loop calls it.
"""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from data_pipelines.batches.loader import TrainBatches
from data_pipelines.batches.order import ReadOrder
from data_pipelines.store.store import TokenStore
from prts_jax import tree
from prts_jax.checkpoint.layout import resolve
from prts_jax.checkpoint.records import ChangeRecord
from prts_jax.checkpoint.store import Checkpoints
from prts_jax.config import to_dict
from prts_jax.errors import UserError
from prts_jax.growth.operators import make_map
from prts_jax.mesh import make_mesh
from prts_jax.model.architecture import declare
from prts_jax.model.counts import training_flops_per_token
from prts_jax.special_ids import SpecialIds
from prts_jax.train.changes import config_changes
from prts_jax.train.data_position import data_position
from prts_jax.train.optim import make_optimizer
from prts_jax.train.origin import Origin, Start, find_origin
from prts_jax.train.stages import remaining_stages
from prts_jax.train.start import begin
from tests.growth.on_disk.growing import grow_checkpoint
from tests.train import tiny
from tests.train.tiny import assert_same, changed, stored_params

STEPS = 6  # of the base
SIX_LAYERS = tiny.deeper(6)
WINDOWS = (4000 - 1) // 16  # of one epoch of the shared store


@pytest.fixture(scope="module")
def other_store(tmp_path_factory) -> str:
    return str(tiny.write_store(tmp_path_factory.mktemp("stores") / "other", 900, 7).directory)


def start(config, workdir, allow_change=()) -> Start:
    origin = find_origin(config, str(workdir))
    stage, *_ = remaining_stages(config, origin)
    mesh, data, optimizer = make_mesh(config.mesh), config.data, make_optimizer(config)
    store = TokenStore.open(data.train)
    batches = TrainBatches(store, ReadOrder.of(dataclasses.asdict(data)))
    opened = Checkpoints(f"{workdir}/checkpoints", keep=2, keep_every_steps=0)
    with contextlib.closing(opened) as checkpoints, jax.set_mesh(mesh):
        return begin(stage, origin, mesh, optimizer, batches, checkpoints, allow_change)


# Fresh


def test_a_fresh_model_may_begin_with_silent_layers(configure, tmp_path):
    params = start(configure(init__zero_outputs=True), tmp_path / "run").state.params["layers"]
    assert not params["attention"]["o"].any()
    assert not params["mlp"]["down"].any()
    assert params["mlp"]["up"].any()


def test_a_run_without_anything_begins_fresh(configure, tmp_path):
    begun = start(configure(), tmp_path)
    assert begun.how == "fresh parameters"
    assert (begun.lineage.step, begun.lineage.stage_step, begun.lineage.position) == (0, 0, 0)
    assert (begun.lineage.tokens, begun.lineage.flops, begun.lineage.growth) == (0, 0, ())
    assert begun.lineage.special_ids == SpecialIds(ends=(2,))
    assert {path: leaf.shape for path, leaf in tree.flatten(begun.state.params).items()} == {
        path: declaration.shape for path, declaration in declare(tiny.MODEL).items()
    }


# Resume


def test_a_run_resumes_its_newest_checkpoint_to_the_bit(base):
    begun = start(base.config, base.workdir)
    assert begun.how.startswith("resumed from")
    assert begun.lineage.step == begun.lineage.stage_step == int(begun.state.stage_step) == STEPS
    assert begun.lineage.position == begun.lineage.tokens == STEPS * 8 * 16
    assert_same(begun.state.params, stored_params(base.workdir))
    moments = jax.tree.leaves(begun.state.optimizer[1].mu)
    assert all(float(abs(leaf).max()) > 0 for leaf in moments)
    assert int(begun.state.optimizer[1].count) == STEPS


def test_resuming_comes_before_growing_and_starting(base, tmp_path):
    grow = changed(base.config, init__grow_from=str(tmp_path / "gone"))
    assert start(grow, base.workdir).how.startswith("resumed from")
    other = changed(base.config, init__start_from=str(tmp_path / "gone"))
    assert start(other, base.workdir).how.startswith("resumed from")


@pytest.mark.parametrize(
    "free",
    [
        {"mesh__fsdp": 1},
        {"logging__every_steps": 7},
        {"logging__tensorboard": True},
        {"evaluation__every_steps": 7, "evaluation__tokens": 100},
        {"checkpoint__keep": 5},
        {"train__steps": 100},
        {"compute__remat": "full"},
        {"compute__scan": False},
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_what_may_change_on_resume(base, free):
    begun = start(changed(base.config, **free), base.workdir)
    assert begun.lineage.changes == ()
    assert begun.lineage.config == to_dict(changed(base.config, **free))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.weight_decay", 0.2),
        ("schedule.peak", 1e-3),
        ("schedule.kind", "cosine"),
        ("data.seed", 5),
        ("data.batch", 4),
        ("data.length", 8),
        ("data.documents", True),
        ("init.seed", 5),
        ("train.accumulation", 2),
        ("compute.dtype", "bfloat16"),
        ("model.norm_eps", 1e-6),
    ],
)
def test_keys_that_change_only_with_allow_change(base, key, value):
    config = changed(base.config, **{key.replace(".", "__"): value})
    with pytest.raises(UserError) as refused:
        start(config, base.workdir)
    assert str(refused.value).startswith(f"config.{key}: was ")
    assert str(refused.value).endswith(f"or pass --allow_change={key}")

    begun = start(config, base.workdir, allow_change=(key,))
    old = to_dict(base.config)
    for name in key.split("."):
        old = old[name]
    assert begun.lineage.changes == (ChangeRecord(STEPS, key, old, value),)
    assert begun.lineage.config == to_dict(config)


def test_allowing_one_key_allows_no_other(base):
    config = changed(base.config, schedule__peak=1e-3, optimizer__b1=0.8)
    with pytest.raises(UserError, match=r"config\.optimizer\.b1: was 0\.9 .* and is now 0\.8"):
        start(config, base.workdir, allow_change=("schedule.peak",))


def test_allow_change_of_an_unknown_key_is_refused(base):
    with pytest.raises(UserError, match=r"--allow_change=schedule\.peek: .*'schedule\.peak'"):
        start(base.config, base.workdir, allow_change=("schedule.peek",))


def test_an_allowed_change_of_the_model_is_trained(base):
    config = changed(base.config, model__norm_eps=1e-3)
    begun = start(config, base.workdir, allow_change=("model.norm_eps",))
    assert begun.lineage.model.norm_eps == 1e-3


def test_a_model_of_another_shape_is_refused_even_with_allow_change(base):
    config = changed(base.config, model__mlp=64)
    with pytest.raises(UserError, match=r"layers/mlp/down: has shape \(2, 48, 32\) on disk and"):
        start(config, base.workdir, allow_change=("model.mlp",))


def test_an_allowed_change_of_the_data_order_begins_an_epoch(base):
    begun = start(changed(base.config, data__seed=5), base.workdir, allow_change=("data.seed",))
    assert begun.lineage.position == WINDOWS * 16
    assert begun.lineage.tokens == STEPS * 8 * 16


def test_another_store_is_refused_on_resume(base, other_store):
    config = changed(base.config, data__train=other_store)
    with pytest.raises(UserError, match=r"config.data.train: .*--allow_change=data\.store"):
        start(config, base.workdir)
    begun = start(config, base.workdir, allow_change=("data.store",))
    assert begun.lineage.position == 0
    assert begun.lineage.store == TokenStore.open(other_store).fingerprint
    assert [change.key for change in begun.lineage.changes] == ["data.store"]


def test_the_same_store_elsewhere_is_the_same_store(base, tmp_path):
    copy = tiny.write_store(tmp_path / "copy", 4000, 0)
    begun = start(changed(base.config, data__train=str(copy.directory)), base.workdir)
    assert (begun.lineage.position, begun.lineage.changes) == (STEPS * 8 * 16, ())


# Growth


def test_growth_stacks_the_layers_and_forgets_the_optimizer(base, tmp_path):
    config = changed(base.config, model=SIX_LAYERS, init__grow_from=str(base.workdir))
    begun = start(config, tmp_path)
    expected = {
        path: np.concatenate([leaf] * 3) if path.startswith("layers/") else leaf
        for path, leaf in stored_params(base.workdir).items()
    }
    assert_same(begun.state.params, expected)
    assert begun.lineage.model == tiny.deeper(6)
    assert {float(abs(leaf).max()) for leaf in jax.tree.leaves(begun.state.optimizer)} == {0.0}
    assert int(begun.state.stage_step) == 0
    assert begun.lineage.special_ids == SpecialIds(ends=(2,))


def test_growth_may_copy_the_optimizers_moments_and_its_count(base, tmp_path):
    config = changed(
        base.config,
        model=SIX_LAYERS,
        init__grow_from=str(base.workdir),
        init__growth__optimizer="copy",
    )
    begun = start(config, tmp_path)
    before = start(base.config, base.workdir).state.optimizer[1]
    after = begun.state.optimizer[1]
    for old, new in ((before.mu, after.mu), (before.nu, after.nu)):
        for path, leaf in tree.flatten(old).items():
            expected = np.concatenate([leaf] * 3) if path.startswith("layers/") else leaf
            np.testing.assert_array_equal(tree.flatten(new)[path], expected, err_msg=path)
    assert int(after.count) == STEPS
    assert int(begun.state.stage_step) == 0


def test_an_optimizer_that_is_not_there_cannot_be_copied(base, tmp_path):
    grown = tmp_path / "grown"
    path = resolve(str(base.workdir))
    grow_checkpoint(path, str(grown), make_map(tiny.MODEL, None, "stack", 3))
    for name, layers in (("init__grow_from", 12), ("init__start_from", 6)):
        config = changed(
            base.config,
            model=tiny.deeper(layers),
            init__growth__optimizer="copy",
            **{name: str(grown)},
        )
        with pytest.raises(UserError, match=r"grown: holds no optimizer state .*optimizer=reset"):
            start(config, tmp_path / "run")


def test_growth_goes_on_counting(base, tmp_path):
    config = changed(base.config, model=SIX_LAYERS, init__grow_from=str(base.workdir))
    lineage = start(config, tmp_path).lineage
    spent = training_flops_per_token(tiny.MODEL, declare(tiny.MODEL), 16) * STEPS * 8 * 16
    assert (lineage.step, lineage.stage_step) == (STEPS, 0)
    assert (lineage.tokens, lineage.flops) == (STEPS * 8 * 16, spent)
    assert [record.at_step for record in lineage.growth] == [STEPS]
    assert lineage.growth[0].map.layers == (0, 1, 0, 1, 0, 1)
    assert lineage.config == to_dict(config)


def test_growth_reads_any_list_of_layers(base, tmp_path):
    config = changed(
        base.config,
        model=tiny.deeper(5),
        init__grow_from=str(base.workdir),
        init__growth__operator="layers",
        init__growth__layers="1-12*2",
    )
    params = stored_params(base.workdir)
    order = [0, 0, 1, 0, 1]
    expected = {
        path: leaf[order] if path.startswith("layers/") else leaf for path, leaf in params.items()
    }
    assert_same(start(config, tmp_path).state.params, expected)


def test_a_run_grown_wider_by_zero_resumes_with_the_config_that_grew_it(base, tmp_path):
    wide = dataclasses.replace(tiny.MODEL, embed=2 * tiny.MODEL.embed)
    config = changed(
        base.config,
        model=wide,
        init__grow_from=str(base.workdir),
        init__growth__operator="zero_width",
    )
    begun = start(config, tmp_path)
    model = dataclasses.replace(wide, norm_eps=tiny.MODEL.norm_eps / 2)
    assert begun.lineage.model == model
    origin = Origin("", begun.lineage, own=True)
    assert remaining_stages(config, origin)[0].config.model == model
    other = changed(config, model=dataclasses.replace(wide, norm_eps=1e-3))
    assert remaining_stages(other, origin)[0].config == other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": tiny.deeper(3)}, "no multiple of the source's 2"),
        ({"model": tiny.deeper(1)}, "no multiple of the source's 2"),
        (
            {"model": dataclasses.replace(SIX_LAYERS, mlp=64)},
            r"config\.model\.mlp: 48 in the source, 64 in",
        ),
        ({"model": SIX_LAYERS, "init__growth__factor": 2}, "the list has 4 layers"),
        (
            {
                "model": tiny.deeper(1),
                "init__growth__operator": "layers",
                "init__growth__layers": "1",
            },
            "growth never shrinks",
        ),
    ],
    ids=["no multiple", "fewer layers", "another width", "another factor", "a shorter list"],
)
def test_growth_that_cannot_be_is_refused(base, tmp_path, changes, message):
    config = changed(base.config, init__grow_from=str(base.workdir), **changes)
    with pytest.raises(UserError, match=message):
        start(config, tmp_path)


def test_growth_from_nothing_is_refused(base, tmp_path):
    config = changed(base.config, model=SIX_LAYERS, init__grow_from=str(tmp_path / "gone"))
    with pytest.raises(UserError, match="gone: does not exist"):
        start(config, tmp_path / "run")


# Another checkpoint


def test_a_run_may_start_from_a_checkpoint(base, tmp_path):
    config = changed(base.config, init__start_from=f"{base.workdir}@{STEPS}", schedule__peak=1e-3)
    begun = start(config, tmp_path)
    assert_same(begun.state.params, stored_params(base.workdir))
    assert (begun.lineage.step, begun.lineage.stage_step) == (STEPS, 0)
    assert begun.lineage.position == STEPS * 8 * 16
    assert {float(abs(leaf).max()) for leaf in jax.tree.leaves(begun.state.optimizer)} == {0.0}


def test_a_run_may_take_the_optimizer_of_the_checkpoint_too(base, tmp_path):
    config = changed(
        base.config, init__start_from=str(base.workdir), init__growth__optimizer="copy"
    )
    begun = start(config, tmp_path)
    assert "with its optimizer state" in begun.how
    assert (int(begun.state.optimizer[1].count), begun.lineage.stage_step) == (STEPS, 0)


def test_grown_on_disk_or_on_the_mesh_the_optimizer_is_the_same(base, tmp_path):
    grown = str(tmp_path / "grown")
    growth_map = make_map(tiny.MODEL, None, "stack", 3)
    grow_checkpoint(resolve(str(base.workdir)), grown, growth_map, optimizer="copy")
    from_disk = start(
        changed(base.config, model=SIX_LAYERS, init__start_from=grown), tmp_path / "one"
    )
    assert "with its optimizer state" in from_disk.how
    copy = {"init__grow_from": str(base.workdir), "init__growth__optimizer": "copy"}
    on_mesh = start(changed(base.config, model=SIX_LAYERS, **copy), tmp_path / "other")
    for ours, theirs in zip(
        jax.tree.leaves(from_disk.state), jax.tree.leaves(on_mesh.state), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_what_was_grown_wider_on_disk_is_started_from_and_grown_with_the_old_epsilon(
    base, tmp_path
):
    """The config that `prts grow --target_config` took says nothing of the new one."""
    wide = dataclasses.replace(tiny.MODEL, embed=2 * tiny.MODEL.embed)
    grown = str(tmp_path / "grown")
    growth_map = make_map(tiny.MODEL, wide, "zero_width")
    grow_checkpoint(resolve(str(base.workdir)), grown, growth_map)
    halved = growth_map.target.norm_eps
    assert halved == wide.norm_eps / 2
    config = changed(base.config, model=wide, init__start_from=grown)
    assert start(config, tmp_path / "started").lineage.model.norm_eps == halved
    deeper = changed(base.config, model=dataclasses.replace(wide, layers=4), init__grow_from=grown)
    assert start(deeper, tmp_path / "deeper").lineage.model.norm_eps == halved


def test_starting_from_another_shape_is_refused(base, tmp_path):
    config = changed(base.config, model=SIX_LAYERS, init__start_from=str(base.workdir))
    with pytest.raises(UserError, match=r"config\.model\.layers: is 6, but .* has 2; .*grow_from"):
        start(config, tmp_path)


# The data after growth (and after `start_from`, which goes the same way)


def grown(base, tmp_path, allow_change=(), **changes) -> Start:
    config = changed(base.config, model=SIX_LAYERS, init__grow_from=str(base.workdir), **changes)
    return start(config, tmp_path, allow_change)


@pytest.mark.parametrize("batch", [8, 4, 12])
def test_data_go_on_at_the_next_token(base, stores, tmp_path, batch):
    """The grown run's first rows are those that the base would have read next."""
    begun = grown(base, tmp_path, data__batch=batch)
    store = TokenStore.open(stores.train)
    actual = TrainBatches(store, ReadOrder(16, batch, seed=0)).rows(
        begun.lineage.position, 0, batch
    )
    read = 8 * STEPS
    whole = TrainBatches(store, ReadOrder(16, read + batch, seed=0)).rows(0, read, read + batch)
    for name, rows in actual.items():
        np.testing.assert_array_equal(rows, whole[name], err_msg=name)


@pytest.mark.parametrize(
    ("change", "position"),
    [
        ({"data__seed": 9}, WINDOWS * 16),
        ({"data__shuffle": False}, WINDOWS * 16),
        ({"data__length": 8}, (3999 // 8) * 8),
        ({"data__overlap": False}, (4000 // 17) * 16),
    ],
    ids=lambda value: str(value),
)
def test_another_order_begins_a_new_epoch(base, tmp_path, change, position):
    begun = grown(base, tmp_path, **change)
    assert begun.lineage.position == position
    assert "epoch 2" in begun.how
    (record,) = begun.lineage.changes
    assert record.key == next(iter(change)).replace("__", ".")


def test_in_blocks_another_length_goes_on_at_the_next_token(base, stores):
    begun = start(base.config, base.workdir)
    data = {**begun.lineage.config["data"], "block": 64, "pieces": 1, "strata": 1}
    lineage = dataclasses.replace(begun.lineage, config={**begun.lineage.config, "data": data})
    store = TokenStore.open(stores.train)

    def position(length: int, at: int, **order: int) -> int:
        keys = {f"data__{key}": value for key, value in order.items()}
        config = changed(base.config, data__length=length, data__block=64, data__strata=1, **keys)
        batches = TrainBatches(store, ReadOrder(length, 8, seed=0, block=64, **order))
        there = dataclasses.replace(lineage, position=at)
        actual, _, changes = data_position(there, config, batches, ())
        assert changes[0].key == "data.length"
        return actual

    assert position(32, 768, pieces=1) == 768
    assert position(64, 768, pieces=32) == 768  # a block of one window has one piece
    assert position(32, 768, pieces=2) == 3999 // 64 * 64  # pieces of 32, not of 64
    assert position(64, 768 + 16, pieces=1) == 3999 // 64 * 64  # within a window of 64


def test_a_run_of_an_older_version_does_not_change_the_order_of_its_blocks(base, stores):
    """It read a block's windows in a row; now that needs pieces=1 and strata=1."""
    begun = start(base.config, base.workdir)
    data = {**begun.lineage.config["data"], "block": 64}
    del data["pieces"], data["strata"]
    lineage = dataclasses.replace(
        begun.lineage, config={**begun.lineage.config, "data": data}, position=768
    )
    store = TokenStore.open(stores.train)
    same = changed(base.config, data__block=64, data__pieces=1, data__strata=1)
    assert config_changes(lineage, same, store.fingerprint, ()) == ()
    batches = TrainBatches(store, ReadOrder(16, 8, seed=0, block=64))
    assert data_position(lineage, same, batches, ())[0] == 768

    new = changed(base.config, data__block=64)
    with pytest.raises(UserError, match=r"config.data.pieces: was 1 .* is now 32; set it back"):
        config_changes(lineage, new, store.fingerprint, ())
    later = changed(base.config, data__block=64, data__pieces=1)
    with pytest.raises(UserError, match=r"config.data.strata: was 1 .* is now 32; set it back"):
        config_changes(lineage, later, store.fingerprint, ())
    batches = TrainBatches(store, ReadOrder(16, 8, seed=0, block=64, pieces=32))
    assert data_position(lineage, new, batches, ())[0] == 3999 // 64 * 64


def test_shares_of_sets_that_change_begin_an_epoch(base, stores):
    lineage = start(base.config, base.workdir).lineage
    store = TokenStore.open(stores.train)
    config = changed(base.config, data__mixture="natural")
    batches = TrainBatches(store, ReadOrder(16, 8, seed=0))
    assert data_position(lineage, config, batches, ())[0] == WINDOWS * 16


def test_another_store_needs_allow_change(base, other_store, tmp_path):
    with pytest.raises(
        UserError, match=r"config.data.train: .* is not what the checkpoint was trained on"
    ):
        grown(base, tmp_path, data__train=other_store)
    begun = grown(base, tmp_path, ("data.store",), data__train=other_store)
    assert begun.lineage.position == 0
    assert [change.key for change in begun.lineage.changes] == ["data.store"]


@pytest.mark.parametrize("key", ["init__start_from", "init__grow_from"])
def test_a_store_of_another_tokenizer_is_refused(base, tmp_path, key):
    other = tiny.write_store(tmp_path / "other", 900, 7, tokenizer="1" * 64)
    config = changed(base.config, data__train=str(other.directory), **{key: str(base.workdir)})
    with pytest.raises(UserError, match=r"other: its tokens are of another tokenizer .*1{12}"):
        start(config, tmp_path / "run", ("data.store",))
