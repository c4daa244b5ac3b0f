"""What a report is, before it is a page."""

import json
import math

from steadynorm.reporting.report import Report, Table, as_json
from steadynorm.reporting.seeds import spread

EMPTY = Report(
    headline="", lead="", table=Table(columns=(), rows=[]), sections=(), method=(), finished=True, findings={}
)


def test_findings_may_be_dataclasses_and_hold_what_is_not_finite() -> None:
    findings = {"arms": {1: [spread([1.0, 3.0])]}, "gap": (math.nan, 2), "none": spread([])}
    found = as_json({"experiment": "compare"}, Report(**vars(EMPTY) | {"findings": findings}))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["arms"] == {"1": [{"mean": 2.0, "low": 1.0, "high": 3.0, "n": 2, "sd": math.sqrt(2)}]}
    assert (found["gap"], found["none"]) == ([None, 2], None)
