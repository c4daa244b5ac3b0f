"""The gallery of reports: each is there, says what its record says, and fits a phone."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from docs._site.gallery import GALLERY, RESULTS, SCRIPT, files, told_of

from steadynorm.lab.experiments import EXPERIMENTS
from tests.reporting.browser import CHROMIUM, chromium

DOCS = RESULTS.parent
TEXT = (DOCS / "gallery.md").read_text()
CARDS = {re.findall(r"\]\(gallery/(\w+)\.html\)", card)[0]: card for card in re.split(r"(?m)^-   ", TEXT)[1:]}
LARGEST = 60_000
"""Bytes of a picture."""

each_page = pytest.mark.parametrize("name", GALLERY)


@cache
def page_of(name: str) -> str:
    return dict(files([name]))[f"{name}.html"]


def test_every_experiment_has_a_page_and_a_card() -> None:
    assert sorted(GALLERY) == sorted([*EXPERIMENTS, "doctor", "export"])
    assert list(CARDS) == list(GALLERY)


@each_page
def test_a_card_says_what_the_record_says(name: str) -> None:
    headline, command = told_of(name)
    card = " ".join(CARDS[name].split())
    assert f"{headline.replace(chr(0xA0), ' ').rstrip('.')}." in card
    assert f"`{command}`" in card
    assert f"(results/{GALLERY[name]}" in card and f"({name}.md)" in card


@each_page
def test_a_picture_is_small_and_described(name: str) -> None:
    ((described, path),) = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", CARDS[name])
    assert len(described) > 20
    assert (DOCS / path).stat().st_size < LARGEST


@each_page
def test_the_page_of_an_experiment_links_its_report(name: str) -> None:
    assert f"](gallery/{name}.html)" in (DOCS / f"{name}.md").read_text()


@each_page
def test_a_report_is_whole(name: str) -> None:
    page = page_of(name)
    assert "is not complete" not in page
    assert page.count("<figure id=") == len(re.findall(r'<svg role="img" aria-label="[^"]+"', page)) > 0
    text = re.sub(r"<(script|style|svg).*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)
    assert re.findall(r"\d\.\d{9,}", text) == []  # more than a reader can use


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")
def test_no_report_is_wider_than_a_phone_or_misses_its_script(tmp_path: Path) -> None:
    for name, held in files():
        (tmp_path / name).write_text(held)
    with chromium() as page:
        for name in GALLERY:
            page.open(tmp_path / f"{name}.html", width=390)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
            assert page.evaluate("typeof vegaEmbed") == ("undefined" if name == "doctor" else "function"), name
            assert [event for event in page.events if event.get("method") == "Runtime.exceptionThrown"] == [], name
    assert (tmp_path / SCRIPT).stat().st_size > 0
