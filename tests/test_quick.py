"""Every experiment as a newcomer meets it: ``steadynorm NAME --quick``, on embedded data, to the end of its report."""

import json
from pathlib import Path
from typing import get_args

import pytest

from steadynorm import cli
from steadynorm.lab.experiments import EXPERIMENTS
from steadynorm.reporting.report import Verdict

UNJUDGED = ("recalibration",)  # its expectation is of 2,000 images, more than are embedded


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_quick_runs_on_embedded_data_and_ends_in_a_report(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main((name, "--quick", "--out", str(tmp_path / "a")))
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["finished"]
    assert f"report: {tmp_path / 'a' / 'report.html'}" in capsys.readouterr().out.replace("\n", "")
    verdicts = {item["verdict"] for item in summary["expectations"]}
    assert verdicts <= set(get_args(Verdict))
    assert verdicts & {"met", "not met"} or name in UNJUDGED
    assert "quick look" in (tmp_path / "a" / "report.html").read_text()
