import re
from html.parser import HTMLParser

from prts_jax.report import figures, html
from prts_jax.report.comparison import compare
from tests.report.synthetic import power_law, read_runs, write_family, write_run

VOID = {"meta", "img"}


class Balanced(HTMLParser):
    """Collects the tags and text of a page and checks that every tag is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(page):
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    return parser


def test_the_page_is_self_contained(tmp_path):
    comparison = compare(read_runs([str(path) for path in write_family(tmp_path)]))
    page = parse(html.render([comparison], figures.draw_all(comparison)))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 4
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)
    assert all(image["alt"] for image in images)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe"})


def test_the_page_states_the_result_and_its_definition(tmp_path):
    comparison = compare(read_runs([str(path) for path in write_family(tmp_path)]))
    text = " ".join(parse(html.render([comparison], {})).text)
    assert re.search(r"grown reached scratch's lowest .* a speed-up of \+\d+\.\d%\.", text)
    assert "FLOPs(baseline, ℓ) / FLOPs(run, ℓ) − 1" in text
    assert "init.grow_from" in text


def test_labels_are_escaped(tmp_path):
    workdir = write_run(tmp_path / "run", power_law(8.0, 2.5, 1e10), steps=100)
    runs = read_runs([f"<script>alert(1)<_script>={workdir}", f"a&b={workdir}"])
    page = parse(html.render([compare(runs)], {}))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script>alert(1)<_script>" in page.text
    assert "a&b" in page.text


def test_a_page_notes_missing_metrics(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    page = parse(html.render([compare(read_runs([f"new={tmp_path}"]))], {}))
    assert "new has no metrics yet." in page.text


def test_an_unreached_loss_is_stated(tmp_path):
    scratch = write_run(tmp_path / "scratch", power_law(8.0, 2.5, 1e10))
    grown = write_run(tmp_path / "grown", power_law(8.0, 3.5, 1e10), init__grow_from="elsewhere")
    [line] = html.results(compare(read_runs([str(scratch), str(grown)])))
    assert line.startswith("grown has not reached scratch's lowest validation loss")
