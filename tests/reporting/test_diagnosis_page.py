"""The page of a diagnosis: one file that says everything, runs nothing, and fits every width."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from steadynorm.doctor import CHECKS, Diagnosis, accuracy, diagnose
from steadynorm.doctor.diagnosis import places_of
from steadynorm.reporting.diagnosis import Examination, cost_text
from steadynorm.reporting.diagnosis_page import describe, diagnosis_page
from tests.reporting.browser import CHROMIUM, chromium
from tests.support.doctor import HOSTILE, batches, faulty_network, hostile_network, trained_network, wiped_network


class Text(HTMLParser):
    """What a reader sees, and every tag and attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.tags, self.links = "", set[str](), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.words += data


def read(page: str) -> Text:
    parser = Text()
    parser.feed(page)
    parser.words = " ".join(parser.words.split())
    return parser


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    return diagnose(faulty_network(), batches(), metric=accuracy)


@pytest.fixture(scope="module")
def examination(diagnosis: Diagnosis) -> Examination:
    return Examination(
        diagnosis=diagnosis,
        model="package.module:build",
        told=("weights.pth: 32 of the model's 32 tensors read.", "Data: 256 samples."),
        has_data=True,
        scores={"stored": 0.5, "batch": 0.875},
        command="steadynorm doctor package.module:build",
        created="2026-11-29T12:00:00+00:00",
        versions={"steadynorm": "0.1.0"},
    )


@pytest.fixture(scope="module")
def page(examination: Examination) -> Text:
    return read(diagnosis_page(examination))


def test_it_says_of_every_finding_what_is_wrong_and_what_to_do(page: Text, diagnosis: Diagnosis) -> None:
    for finding in diagnosis:
        assert finding.problem in page.words
        assert finding.remedy.advice in page.words
        assert finding.place in page.words
        harm = CHECKS[finding.check].sections()["Harm"].replace("``", "")
        assert harm[1:] in page.words
    assert "How safe that is:" in page.words


def test_it_says_what_it_rests_on(page: Text) -> None:
    assert "Accuracy 50.0 % with the statistics that are stored, 87.5 % with those of each batch. Data:" in page.words
    assert "weights.pth: 32 of the model's 32 tensors read." in page.words
    assert "steadynorm doctor · package.module:build · 2026-11-29" in page.words
    assert "steadynorm doctor package.module:build" in page.words


def test_every_check_is_on_it(page: Text, diagnosis: Diagnosis) -> None:
    assert all(name in page.words for name in (*diagnosis.checks, *diagnosis.not_run))


def test_it_is_one_file(page: Text) -> None:
    assert [link for link in page.links if not link.startswith(("#", "data:,"))] == []
    assert "script" not in page.tags
    anchors = [link[1:] for link in page.links if link.startswith("#")]
    assert len(anchors) == len(set(anchors)) > 4


def test_a_healthy_model_has_a_page_that_says_what_was_looked_at() -> None:
    found = read(diagnosis_page(Examination(diagnosis=diagnose(trained_network()), model="a:b")))
    assert "Healthy: no fault was found" in found.words
    assert "would need --data with labels: train-eval-gap, needs-recalibration." in found.words
    assert "Findings" not in found.words


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_names_are_text(kind: str) -> None:
    diagnosis = diagnose(hostile_network(kind))
    page = diagnosis_page(Examination(diagnosis=diagnosis, model=HOSTILE[kind], command=HOSTILE[kind]))
    found = read(page)
    assert not found.tags & {"script", "img", "red"}
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    if kind == "html":
        assert HOSTILE[kind] in found.words


def test_every_layer_is_in_the_figures() -> None:
    diagnosis = diagnose(wiped_network(), batches(), metric=accuracy)
    report = describe(Examination(diagnosis=diagnosis, model="a:b"))
    distance, won_back = report.figures
    kinds = [(row["layer"], row["kind"], row["name"]) for row in distance.data]
    assert kinds == [
        (1, "layer found at fault", "1"),
        (2, "layer found at fault", "4"),
        (1, "expected from sampling", ""),
        (2, "expected from sampling", ""),
    ]
    assert [row["distance"] for row in distance.data[:2]] == [each.distance for each in diagnosis.layers]
    assert [row["share"] for row in won_back.data] == [each.won_back for each in diagnosis.layers]
    found = read(diagnosis_page(Examination(diagnosis=diagnosis, model="a:b")))
    assert "Distance of each layer's running mean" in found.words and "svg" in found.tags
    assert "Not shown" not in found.words


def test_layers_without_numbers_are_counted() -> None:
    model: Any = trained_network()
    three = nn.Sequential(*copy.deepcopy(list(model[:6])), *copy.deepcopy(list(model[4:6])), *model[6:])
    three[4] = nn.BatchNorm2d(8, track_running_stats=False)
    report = describe(Examination(diagnosis=diagnose(three, batches()), model="a:b"))
    assert report.figures[0].caption.endswith(" Not shown: 1 layer without numbers to compare.")


def test_a_hostile_name_in_a_figure_is_text(diagnosis: Diagnosis) -> None:
    name = "<img src=x onerror=alert(1)>\x1b]8;;http://x\x07" + 40 * "a"
    layers = [replace(each, name=name) for each in diagnosis.layers]
    findings = [replace(diagnosis.findings[0], layer=name)]
    shown = diagnosis_page(
        Examination(diagnosis=replace(diagnosis, layers=tuple(layers), findings=tuple(findings)), model="a:b")
    )
    found = read(shown)
    assert not found.tags & {"script", "img"} and "\x1b" not in shown
    assert "…" + 27 * "a" in shown


def test_a_short_hostile_name_is_an_escape_in_its_figure(diagnosis: Diagnosis) -> None:
    name = "\x1b[31m<b>\u202ered"
    layers = tuple(replace(each, name=name, distance=1.0, sampling=0.1) for each in diagnosis.layers)
    findings = (replace(diagnosis.findings[0], layer=name),)
    shown = diagnosis_page(Examination(diagnosis=replace(diagnosis, layers=layers, findings=findings), model="a:b"))
    labels = re.findall(r"<text[^>]*>([^<]*31m[^<]*)</text>", shown)
    assert labels == 4 * [r"\x1b[31m&lt;b&gt;\u202ered"]  # of two layers in two figures
    assert "\x1b" not in shown and "\u202e" not in shown


def test_layers_of_one_problem_share_a_row(diagnosis: Diagnosis) -> None:
    dead = diagnosis.of("dead-channel")
    assert len(dead) == 2 and dead[0].problem == dead[1].problem
    report = describe(Examination(diagnosis=diagnosis, model="a:b"))
    (section,) = [each for each in report.sections if each.short == "dead-channel"]
    table: Any = section.shown[0]
    assert [row[0].text for row in table.rows] == ["1 and 4"]


def test_many_layers_are_counted(diagnosis: Diagnosis) -> None:
    def text(*names: str) -> str:
        return places_of([replace(diagnosis.findings[0], layer=name) for name in names])

    assert text("0", "1", "2", "3") == "0, 1, 2 and 3"
    stages = [f"layer{stage}.{block}.bn1" for stage in range(1, 5) for block in range(3)]
    assert text("bn1", *stages, "head.norm") == "bn1, layer*.*.bn* (12 layers) and head.norm"
    assert text(*"abcdef") == "a, b, c and 3 more layers"
    assert text("a", "b", "c", "d1", "d2") == "a, b, c and d* (2 layers)"


def test_a_cost_has_its_error(diagnosis: Diagnosis) -> None:
    (cost,) = {each.cost for each in diagnosis.of("train-eval-gap")} or {None}
    assert cost is None or cost.quantity == "accuracy"
    from steadynorm.doctor import Cost

    assert cost_text(Cost(quantity="accuracy", value=0.523, standard_error=0.021)) == "52.3 ± 2.1 points of accuracy"
    assert cost_text(Cost(quantity="accuracy", value=0.5, standard_error=math.nan)) == "50.0 points of accuracy"
    assert cost_text(Cost(quantity="cross-entropy", value=1.5, standard_error=0.25)) == "1.50 ± 0.25 of cross-entropy"


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")
def test_it_fits_every_width_and_asks_for_nothing(tmp_path: Path, examination: Examination) -> None:
    path = tmp_path / "page.html"
    path.write_text(diagnosis_page(examination))
    with chromium() as tab:
        for width in (1280, 390, 320):
            tab.open(path, width=width)
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
        asked = [event for event in tab.events if event.get("method") == "Network.requestWillBeSent"]
        assert [each["params"]["request"]["url"] for each in asked] == [path.as_uri(), "data:,"][: len(asked)]
        chips = "[...document.querySelectorAll('.chip')].map(chip => getComputedStyle(chip).color)"
        light = tab.evaluate(chips)
        tab.open(path, width=1280, dark=True)
        assert len(set(light)) == 3 and not set(light) & set(tab.evaluate(chips))
