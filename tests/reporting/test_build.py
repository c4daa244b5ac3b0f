"""A report from a run directory alone."""

import html.parser
import json
import math
import re

import nbformat
import pytest

from steadynorm.lab.report import build_report, head_of
from steadynorm.reporting.build import write_report
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.notebook import NotebookFailure
from steadynorm.reporting.records import write_record
from steadynorm.reporting.report import Figure, Figures, Report, Section, Table
from tests.support.records import RECORD, check_page, example_record, record, run

VOID = {"meta", "link", "br", "hr", "img", "input", "path", "use"}


class Reader(html.parser.HTMLParser):
    """Collects tags, what would be loaded, and ids; notes tags that do not match."""

    def __init__(self):
        super().__init__()
        self.loads, self.ids, self.tags, self.links, self.open, self.crossed = [], [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self._see(tag, dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._see(tag, dict(attrs))

    def handle_endtag(self, tag):
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.crossed.append(tag)

    def _see(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag in {"link", "script", "img", "iframe", "use", "image"}:
            self.loads += [value for key, value in attrs.items() if key in {"src", "href", "xlink:href"}]
        if tag == "a":
            self.links.append(attrs["href"])


def read(directory):
    reader = Reader()
    reader.feed((directory / "report.html").read_text())
    return reader


def test_every_file_is_written(full):
    found = {path.name for path in full.iterdir()}
    assert {"report.html", "report.ipynb", "summary.json", "figures"} <= found
    names = {path.stem for path in (full / "figures").glob("*.svg")}
    assert names == {path.stem for path in (full / "figures").glob("*.png")}
    assert {"val_accuracy", "grad_norm", "layers_first", "layers_last", "time", "rates", "val_accuracy_tuned"} <= names


def test_nothing_unfinished_is_left_behind(full):
    assert not list(full.rglob("*.part"))


def test_the_page_loads_nothing(full):
    assert all(load.startswith(("#", "data:")) for load in read(full).loads)
    text = re.sub(
        "<script.*?</script>", "", (full / "report.html").read_text(), flags=re.DOTALL
    )  # seen in test_page.py
    assert "http://" not in text and "https://" not in text and "@import" not in text


def test_tags_match(awkward):
    reader = read(awkward)
    assert (reader.crossed, reader.open) == ([], [])


def test_ids_are_unique(full):
    ids = read(full).ids
    assert len(ids) == len(set(ids))


def test_links_inside_the_page_lead_somewhere(full):
    reader = read(full)
    anchors = [link[1:] for link in reader.links if link.startswith("#")]
    assert anchors and set(anchors) <= set(reader.ids)


def test_links_to_files_lead_somewhere(full):
    links = [link for link in read(full).links if not link.startswith("#") and link != "checkpoints/"]
    assert [link for link in links if not (full / link).exists()] == []


def test_names_from_the_record_are_escaped(awkward):
    text = (awkward / "report.html").read_text()
    assert "<b>" not in text and "&lt;b&gt;$x&lt;/b&gt;" in text


def test_an_interrupted_experiment_says_so_with_the_command(awkward):
    text = re.sub("<[^>]*>", "", (awkward / "report.html").read_text())
    assert "not complete: 5 of 6 networks have ended" in text and "steadynorm compare --resume DIR" in text


def test_a_complete_experiment_has_no_notice(full):
    assert "--resume" not in (full / "report.html").read_text()


def test_a_diverged_run_shows_its_step(awkward):
    assert "diverged at step 1,234" in (awkward / "report.html").read_text()


def test_tuned_rates_have_a_picture_and_a_table(full):
    text = (full / "report.html").read_text()
    assert "Each at its own learning rate" in text and "Learning rate</th>" in text
    assert set(json.loads((full / "summary.json").read_text())["pictures"]) == {"shared", "tuned"}


@pytest.mark.slow
def test_building_again_gives_the_same_bytes(tmp_path):
    example_record(tmp_path, count=3, seeds=2)
    build_report(tmp_path)
    first = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    build_report(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == first


@pytest.mark.parametrize(
    "runs",
    [
        (run("batch_norm", status="waiting"), run("none", status="waiting")),
        (run("batch_norm", val_accuracy=[0.4], purpose="tune"), run("none", status="diverged", purpose="tune")),
        (run("batch_norm", val_accuracy=[0.4]), run("none", val_accuracy=[0.3], with_layers=False)),
        (run("batch_norm", status="diverged", diverged_at_step=2), run("none", status="diverged", diverged_at_step=1)),
        (run("batch_norm", val_accuracy=[math.nan, math.nan]), run("none", val_accuracy=[0.2, math.inf])),
        (
            run("batch_norm", val_accuracy=[0.4, 0.5], change=lambda _: {"val_loss": math.inf, "grad_norm_p5": 0.0}),
            run("none", val_accuracy=[0.3], change=lambda _: {"grad_norm_mean": 1e9, "seconds": math.nan}),
        ),
    ],
    ids=["waiting", "only tuned", "one epoch", "all diverged", "nan accuracy", "inf columns"],
)
def test_poor_records_still_make_a_page(tmp_path, runs):
    text = check_page(record(runs, epochs=2, milestones=[1], tune_lr=[0.1]), tmp_path)
    assert "inf %" not in text


def test_a_kernel_that_fails_leaves_the_page(tmp_path, monkeypatch):
    def fail(notebook, directory):
        raise NotebookFailure("no kernel")

    monkeypatch.setattr("steadynorm.reporting.build.execute", fail)
    example_record(tmp_path, count=1)
    with pytest.raises(UserError, match=r"got no kernel.*the report itself is complete: .*report\.html"):
        build_report(tmp_path)
    assert (tmp_path / "report.html").exists()
    assert nbformat.read(tmp_path / "report.ipynb", as_version=4).cells


def test_a_record_of_another_experiment_is_refused(tmp_path):
    made = record([])
    object.__setattr__(made, "experiment", "bake")
    write_record(tmp_path, made)
    with pytest.raises(UserError, match="got 'bake'"):
        build_report(tmp_path)


def test_a_directory_without_a_record_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run directory"):
        build_report(tmp_path)


def test_a_figure_whose_name_leads_out_of_the_directory_is_refused(tmp_path):
    figure = Figure(
        name="../precious", title="", caption="", kind="bars", data=[{"a": "b", "c": 1.0, "d": "e"}],
        options={"rows": "a", "x": "c", "text": "d", "order": ["b"]},
    )  # fmt: skip
    sections = (Section(title="a", blocks=(Figures([figure]),)),)
    empty = Table(columns=(), rows=[])
    report = Report(headline="", lead="", table=empty, sections=sections, method=(), finished=True)
    with pytest.raises(UserError, match=r"'\.\./precious\.png' is no name of a file"):
        write_report(tmp_path / "run", head_of(RECORD), report, files=[], eyebrow="")
    assert list(tmp_path.rglob("*")) == []
