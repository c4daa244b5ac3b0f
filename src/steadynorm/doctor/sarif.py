"""A diagnosis as a SARIF 2.1.0 log, the form in which code hosts and editors take findings of analysers.

A result's place is logical: the qualified name of a module, since a model's state is in no line of a file. Each check
that ran is a rule, with its page as help. A finding keeps its fingerprint, its check and layer, from run to run.

Source: OASIS, Static Analysis Results Interchange Format version 2.1.0, of which sections are named below.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from steadynorm.doctor.check import Check
from steadynorm.doctor.checks import CHECKS
from steadynorm.doctor.diagnosis import Diagnosis
from steadynorm.doctor.document import as_document
from steadynorm.doctor.finding import Finding
from steadynorm.printable import printable_line

__all__ = ["as_log", "to_sarif"]

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def to_sarif(diagnosis: Diagnosis) -> str:
    """Write a diagnosis as a SARIF log."""
    return json.dumps(as_log(diagnosis), indent=2, allow_nan=False) + "\n"


def as_log(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the content of the log."""
    document = as_document(diagnosis)
    known = [*diagnosis.checks, *(each.check for each in diagnosis if each.check not in diagnosis.checks)]
    rules = list(dict.fromkeys(known))
    driver = {
        "name": "steadynorm doctor",
        "version": document["steadynorm"],
        "rules": [_rule(name) for name in rules],
    }
    results = [
        _result(finding, rules.index(finding.check), entry)
        for finding, entry in zip(diagnosis.findings, document["findings"], strict=True)
    ]
    invocation = {
        "executionSuccessful": True,
        "toolExecutionNotifications": [
            {"level": "note", "message": {"text": _message(f"Not looked at: {line}")}} for line in _left(diagnosis)
        ],
    }
    run = {"tool": {"driver": driver}, "invocations": [invocation], "results": results}
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [run | {"properties": {"lookedAt": printable_line(diagnosis.looked_at)}}],
    }


def _left(diagnosis: Diagnosis) -> list[str]:
    return [*diagnosis.unread, *(f"{name}, which needs {needs}." for name, needs in diagnosis.not_run.items())]


def _rule(name: str) -> dict[str, Any]:
    check = CHECKS.get(name)
    if check is None:  # from a document of another version
        return {"id": name}
    return {
        "id": name,
        "shortDescription": {"text": _message(check.title)},
        "fullDescription": {"text": _message(check.sections().get("Harm", check.title))},
        "help": {"text": _message(_page(check)), "markdown": check.explain()},
    }


def _page(check: Check) -> str:
    return " ".join(f"{name}: {text}" for name, text in check.sections().items())


def _result(finding: Finding, rule: int, entry: dict[str, Any]) -> dict[str, Any]:
    name = printable_line(finding.layer)
    place = {"fullyQualifiedName": name, "name": name.rpartition(".")[2], "kind": "module"}
    whole = {"name": "(the model)", "kind": "module"}
    return {
        "ruleId": finding.check,
        "ruleIndex": rule,
        "level": str(finding.severity),
        "message": {"text": _message(f"{finding.place}: {finding.problem} {finding.remedy.advice}")},
        "locations": [{"logicalLocations": [place if name else whole]}],
        "partialFingerprints": {"checkAndLayer/v1": sha256(f"{finding.check}\n{finding.layer}".encode()).hexdigest()},
        "properties": {key: _inert(entry[key]) for key in ("what", "remedy", "numbers", "cost")},
    }


def _inert(value: Any) -> Any:  # noqa: ANN401 (JSON)
    if isinstance(value, dict):
        return {key: _inert(each) for key, each in value.items()}
    return printable_line(value) if isinstance(value, str) else value


def _message(text: str) -> str:
    """Escape placeholders (3.11.5) and links (3.11.6) in a text."""
    line = printable_line(text).replace("{", "{{").replace("}", "}}")
    return line.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]") if "](" in line else line
