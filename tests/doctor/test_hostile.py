"""Names of modules that would do harm where they are shown come out inert."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from rich.console import Console

from steadynorm.doctor import Diagnosis, diagnose, treat_
from steadynorm.printable import printable_line
from steadynorm.reporting.diagnosis import Examination, show
from tests.support.doctor import HOSTILE, hostile_network

CONTROL = {chr(code) for code in (*range(32), *range(127, 160))} | {"\N{RIGHT-TO-LEFT OVERRIDE}"}


@pytest.fixture(params=HOSTILE)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def diagnosis(kind: str) -> Diagnosis:
    found = diagnose(hostile_network(kind))
    assert HOSTILE[kind] in {each.layer for each in found}
    return found


def controls(text: str) -> set[str]:
    return set(text) & CONTROL - {"\n"}


def test_printed_it_steers_nothing_and_adds_no_line(diagnosis: Diagnosis) -> None:
    text = str(diagnosis)
    assert controls(text) == set()
    assert text.startswith("Found 1 error")
    assert not any(line.startswith("Healthy") for line in text.splitlines())


def test_a_treatment_steers_nothing(kind: str, diagnosis: Diagnosis) -> None:
    text = str(treat_(hostile_network(kind), diagnosis))
    assert controls(text) == set()
    assert not any(line.startswith("Healthy") for line in text.splitlines())


def test_json_is_ascii_and_keeps_the_name(kind: str, diagnosis: Diagnosis) -> None:
    assert diagnosis.to_json().isascii() and controls(diagnosis.to_json()) == set()
    assert HOSTILE[kind] in {each.layer for each in Diagnosis.from_json(diagnosis.to_json())}


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for each in value.items() for text in strings(each)]
    if isinstance(value, list | tuple):
        return [text for each in value for text in strings(each)]
    return [value] if isinstance(value, str) else []


def test_sarif_shows_no_control_character_placeholder_or_link(kind: str, diagnosis: Diagnosis) -> None:
    run = json.loads(diagnosis.to_sarif())["runs"][0]
    assert controls("".join(strings(run["results"]))) == set()
    text = run["results"][0]["message"]["text"]
    assert "\n" not in text
    assert "{0}" not in text.replace("{{", "").replace("}}", "")
    assert "[click](" not in text
    if kind == "markdown":
        assert r"\[click\](https://x/y) {{0}}" in text


def test_at_the_terminal_markup_and_escapes_are_text(kind: str, diagnosis: Diagnosis) -> None:
    file = io.StringIO()
    show(Examination(diagnosis=diagnosis, model="a:b"), Console(file=file, width=500, force_terminal=True))
    text = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())  # rich's own colors
    assert controls(text) == set()
    assert not any(line.startswith("Healthy") for line in text.splitlines())
    assert printable_line(HOSTILE[kind]) in text
    assert "\x1b]8" not in file.getvalue()
