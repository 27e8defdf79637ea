"""Config files that start from another one."""

import pytest

from prts_jax.config import inherit
from prts_jax.errors import UserError

PARENT = """
from prts_jax import config


def get_config(layers="3"):
    c = config.default_config()
    c.model.layers = int(layers)
    return c
"""


def test_a_file_begins_with_what_another_makes(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    child = str(tmp_path / "folder" / "child.py")
    assert inherit("../parent.py", child).model.layers == 3
    assert inherit("../parent.py:5", child).model.layers == 5


def test_another_that_is_not_there_is_named(tmp_path):
    child = str(tmp_path / "child.py")
    with pytest.raises(UserError, match=r"child\.py: inherits from .*parent\.py, which does not"):
        inherit("parent.py", child)
    (tmp_path / "empty.py").touch()
    with pytest.raises(UserError, match="which has no function get_config"):
        inherit("empty.py:x", child)
