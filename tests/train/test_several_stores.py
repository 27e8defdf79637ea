"""Runs on two stores with shares: killed and resumed to the bit, and refused where they change."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipelines.store.several import open_stores
from prts_jax.checkpoint.layout import read_lineage, resolve
from prts_jax.config import RunConfig
from prts_jax.errors import UserError
from prts_jax.train.loop import train
from tests.train import tiny
from tests.train.interrupting import Killed, call_during_step, kill

Configure = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`data.train` of two stores, 70% web and 30% code."""
    folder = tmp_path_factory.mktemp("two")
    for name, seed in (("web", 0), ("code", 5)):
        tiny.write_store(folder / name, 2000, seed)
    return f"{folder}/web,0.7;{folder}/code,0.3"


@pytest.fixture(scope="module")
def undisturbed(two: str, tmp_path_factory: pytest.TempPathFactory, stores) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    config = tiny.run_config(data__train=two, data__validation=stores.validation, data__block=32)
    train(config, str(workdir))
    return workdir


def test_killed_and_resumed_the_run_is_the_same_to_the_bit(
    configure: Configure, two: str, undisturbed: Path, tmp_path: Path
):
    config = configure(data__train=two, data__block=32)
    with pytest.MonkeyPatch.context() as patch:
        call_during_step(patch, 4, kill)
        with pytest.raises(Killed):
            train(config, str(tmp_path))
    train(config, str(tmp_path))
    assert tiny.curve(tiny.read_lines(tmp_path)) == tiny.curve(tiny.read_lines(undisturbed))
    tiny.assert_same(tiny.stored_params(tmp_path), tiny.stored_params(undisturbed))
    names = {f"loss/{store}/{of}" for store in ("web", "code") for of in tiny.SOURCES}
    assert names <= {key for line in tiny.read_lines(tmp_path) for key in line}
    lineage = read_lineage(resolve(str(tmp_path)))
    assert lineage.store == open_stores(two).fingerprint
    assert "=7/10," in lineage.store
    assert lineage.special_ids is not None
    assert lineage.special_ids.ends == (2,)


def test_another_share_or_store_is_refused_on_resume(
    configure: Configure, two: str, undisturbed: Path, stores, tmp_path: Path
):
    refused = (
        two.replace("0.7", "0.6"),
        two.partition(",")[0],
        two.partition(";")[0] + f";{stores.train},0.3",
    )
    with pytest.raises(UserError, match=r"fingerprint \w{12}=2/3,\w{12}=1/3, not \w{12}=7/10,"):
        train(configure(data__train=refused[0], data__block=32), str(undisturbed))
    for train_on in refused:
        config = configure(data__train=train_on, data__block=32, train__steps=7)
        with pytest.raises(UserError, match=r"config\.data\.train: .* is not what the checkpoint"):
            train(config, str(undisturbed))
    config = configure(data__train=two, data__block=32, data__validation=two)
    with pytest.raises(UserError, match="only config.data.train takes several"):
        train(config, str(tmp_path))
