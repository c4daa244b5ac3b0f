"""SARIF 2.1.0: the rules of the format that a log of ours could break, and what it says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torch import nn

from steadynorm.doctor import CHECKS, Diagnosis, diagnose
from tests.support.doctor import batches, faulty_network, trained_network

LEVELS = {"none", "note", "warning", "error"}


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    return diagnose(faulty_network(), batches())


@pytest.fixture(scope="module")
def log(diagnosis: Diagnosis) -> Any:
    return json.loads(diagnosis.to_sarif(), parse_constant=pytest.fail)


def results(log: Any) -> Any:
    return log["runs"][0]["results"]


def test_the_log_has_what_the_format_requires(log: Any) -> None:
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = log["runs"]
    assert run["tool"]["driver"]["name"] == "steadynorm doctor"
    assert all(isinstance(each["executionSuccessful"], bool) for each in run["invocations"])


def test_every_result_names_a_rule_at_its_index(log: Any) -> None:
    rules = log["runs"][0]["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    assert all(rules[each["ruleIndex"]]["id"] == each["ruleId"] for each in results(log))


def test_every_result_has_a_message_a_level_and_a_place(log: Any, diagnosis: Diagnosis) -> None:
    assert len(results(log)) == len(diagnosis.findings) > 2
    for each, finding in zip(results(log), diagnosis, strict=True):
        assert finding.problem in each["message"]["text"] and finding.remedy.advice in each["message"]["text"]
        assert each["level"] == str(finding.severity) and each["level"] in LEVELS
        ((place,),) = [location["logicalLocations"] for location in each["locations"]]
        assert place.get("fullyQualifiedName", "") == finding.layer
        assert "physicalLocation" not in each["locations"][0]


def test_a_finding_has_the_same_fingerprint_in_every_run(log: Any) -> None:
    again = json.loads(diagnose(faulty_network()).to_sarif())
    marks = {(each["ruleId"], str(each["locations"])): each["partialFingerprints"] for each in results(log)}
    shared = [each for each in results(again) if (each["ruleId"], str(each["locations"])) in marks]
    assert len(shared) > 2
    assert all(marks[each["ruleId"], str(each["locations"])] == each["partialFingerprints"] for each in shared)
    assert len({str(mark) for mark in marks.values()}) == len(marks)


def test_every_rule_has_its_page(log: Any) -> None:
    for rule in log["runs"][0]["tool"]["driver"]["rules"]:
        assert rule["shortDescription"]["text"] == CHECKS[rule["id"]].title
        assert rule["help"]["markdown"] == CHECKS[rule["id"]].explain()


def test_what_could_not_be_looked_at_is_a_notification() -> None:
    log = json.loads(diagnose(trained_network()).to_sarif())
    told = [each["message"]["text"] for each in log["runs"][0]["invocations"][0]["toolExecutionNotifications"]]
    assert "Not looked at: train-eval-gap, which needs batches, loss or metric." in told
    assert results(log) == []


def test_the_root_as_a_layer_has_a_place() -> None:
    norm = nn.BatchNorm2d(4)
    norm.num_batches_tracked.fill_(100)
    (each,) = results(json.loads(diagnose(norm.eval()).to_sarif()))
    assert each["locations"] == [{"logicalLocations": [{"name": "(the model)", "kind": "module"}]}]


def test_a_check_of_another_version_is_a_rule_without_a_page() -> None:
    text = diagnose(faulty_network()).to_json().replace('"check": "mixed-eps"', '"check": "of-old"')
    log = json.loads(Diagnosis.from_json(text).to_sarif())
    rules = log["runs"][0]["tool"]["driver"]["rules"]
    (each,) = [one for one in results(log) if one["ruleId"] == "of-old"]
    assert rules[each["ruleIndex"]] == {"id": "of-old"}
