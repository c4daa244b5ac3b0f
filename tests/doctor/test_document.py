"""A diagnosis as JSON: what is written is read back, and what is another document is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from steadynorm import __version__
from steadynorm.doctor import Cost, Diagnosis, Finding, Remedy, Severity, diagnose
from tests.support.doctor import batches, faulty_network


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    return diagnose(faulty_network(), batches())


def finding(**changed: Any) -> Finding:
    made = Finding(
        check="mixed-eps",
        layer="0.1",
        what="BatchNorm2d(4)",
        severity=Severity.WARNING,
        problem="It is odd.",
        remedy=Remedy(advice="Fix it.", treatment="repair"),
    )
    return replace(made, **changed)


def of(*findings: Finding) -> Diagnosis:
    return Diagnosis(findings=findings, looked_at="2 layers", checks=("mixed-eps",), not_run={"reused-norm": "batches"})


def test_what_is_written_is_read_back(diagnosis: Diagnosis) -> None:
    assert {each.severity for each in diagnosis} == set(Severity)
    assert Diagnosis.from_json(diagnosis.to_json()) == diagnosis


def test_a_cost_is_read_back() -> None:
    cost = Cost(quantity="accuracy", value=0.25, standard_error=0.01)
    assert Diagnosis.from_json(of(finding(cost=cost)).to_json()) == of(finding(cost=cost))


def test_a_number_that_is_not_finite_is_no_bare_nan() -> None:
    cost = Cost(quantity="accuracy", value=0.25, standard_error=math.nan)
    text = of(finding(cost=cost, numbers={"largest": math.inf, "channels": 3})).to_json()
    (entry,) = json.loads(text, parse_constant=pytest.fail)["findings"]
    assert (entry["cost"]["standard_error"], entry["numbers"]) == (None, {"largest": "inf", "channels": 3})
    (read,) = Diagnosis.from_json(text)
    assert read.cost is not None and math.isnan(read.cost.standard_error)


def test_the_document_says_its_format_and_who_wrote_it(diagnosis: Diagnosis) -> None:
    content = json.loads(diagnosis.to_json())
    assert (content["format"], content["steadynorm"], content["healthy"]) == (1, __version__, False)
    assert [each["severity"] for each in content["findings"]][:1] == ["error"]


def test_further_keys_are_passed_over() -> None:
    content = json.loads(of().to_json()) | {"command": "steadynorm doctor x:y"}
    assert Diagnosis.from_json(json.dumps(content)) == of()


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"findings": [{}]},
        {"findings": None},
        {"checks": "mixed-eps"},
        {"not_run": {"reused-norm": 1}},
    ],
)
def test_another_document_is_refused(change: dict[str, Any]) -> None:
    content = json.loads(of(finding()).to_json()) | change
    with pytest.raises(ValueError, match=r"^diagnosis: must be a document of format 1, got another \("):
        Diagnosis.from_json(json.dumps(content))


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_what_is_no_document_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^diagnosis: must be a document of format 1"):
        Diagnosis.from_json(text)


def test_a_severity_of_another_name_is_refused() -> None:
    text = of(finding()).to_json().replace('"severity": "warning"', '"severity": "fatal"')
    with pytest.raises(ValueError, match="fatal"):
        Diagnosis.from_json(text)
