"""The page on operators: every one is drawn from its map, and the example of one's own works."""

import re
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from docs.draw_operators import EXAMPLES, IMAGES, MAP_DIGEST, draw, example
from prts_jax.checkpoint.layout import read_lineage
from prts_jax.cli import grow
from prts_jax.config import OPERATOR_GROUP
from prts_jax.growth.operators import OPERATORS
from tests.checkpoint.tiny import write_source

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"


def test_every_operator_is_drawn_and_described():
    text = PAGE.read_text()
    assert EXAMPLES.keys() == OPERATORS.keys()
    for operator in OPERATORS:
        assert f"### {operator}\n![{operator}](images/operators/{operator}.png)\n" in text


@pytest.mark.parametrize("operator", EXAMPLES)
def test_the_picture_is_of_the_map_that_the_operator_makes(operator):
    picture = Image.open(IMAGES / f"{operator}.png")
    assert picture.info[MAP_DIGEST] == example(operator).digest(), (
        "the map has changed since it was drawn: run python docs/draw_operators.py, and look"
    )


@pytest.mark.parametrize("operator", ["random", "split"])
def test_a_map_in_depth_or_width_can_be_drawn(operator, tmp_path):
    (tmp_path / "map.png").write_bytes(draw(example(operator)))
    assert Image.open(tmp_path / "map.png").size[0] > 600


@pytest.mark.parametrize("operator", EXAMPLES)
def test_the_page_says_of_every_operator_whether_it_keeps_the_function(operator):
    (section,) = re.findall(rf"^### {operator}\n(.*?)(?=^##)", PAGE.read_text(), re.M | re.S)
    says_so = "**Function preserving**" in section
    assert says_so == example(operator).function_preserving()


def code(language):
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    return block


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The page's package, as pip would have installed it."""
    package = tmp_path / "site"
    metadata = package / "my_package-1.0.dist-info"
    metadata.mkdir(parents=True)
    (package / "my_package.py").write_text(code("python"))
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n")
    points = tomllib.loads(code("toml"))["project"]["entry-points"][OPERATOR_GROUP]
    lines = [f"{name} = {value}\n" for name, value in points.items()]
    (metadata / "entry_points.txt").write_text(f"[{OPERATOR_GROUP}]\n{''.join(lines)}")
    monkeypatch.syspath_prepend(package)


@pytest.mark.usefixtures("installed")
def test_the_operator_of_the_page_grows_a_checkpoint(tmp_path, capsys):
    write_source(tmp_path / "source")
    argv = [f"--source={tmp_path / 'source'}", f"--target={tmp_path / 'grown'}"]
    assert grow.main([*argv, "--operator=mirror", "--options=quiet=3", "--verify"]) == 0
    assert "mirror: 3 → 6 layers" in capsys.readouterr().out
    growth_map = read_lineage(str(tmp_path / "grown")).growth[0].map
    assert growth_map.layers == (0, 1, 2, 2, 1, 0)
    assert growth_map.function_preserving()


def test_the_example_is_no_longer_than_thirty_lines():
    lines = [*code("toml").splitlines(), *code("python").splitlines()]
    assert len(lines) <= 30
