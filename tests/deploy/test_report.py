"""Verdicts of an export, from made-up numbers."""

from dataclasses import replace

import pytest

from steadynorm.deploy.report import describe
from steadynorm.deploy.results import Artifact, Latency, Outcome
from steadynorm.reporting.records import Record, head_of
from steadynorm.reporting.report import as_json
from tests.support.documented import check_equals, content_of, export_of
from tests.support.records import record


def exported(accuracy: float | None, *, images: int = 1000) -> tuple[Record, Outcome]:
    """An export of a model of this accuracy, and its static int8 file of 0.4 points less."""
    latency = Latency(requests=100, p50=4.0, p90=5.0, p99=6.0)
    eager = Artifact(name="eager torch", format="eager", quantize="none", accuracy=accuracy, latency=latency)
    int8 = Artifact(
        name="ONNX, int8",
        format="onnx",
        quantize="static",
        file="model.onnx",
        agreement=0.99,
        accuracy=None if accuracy is None else accuracy - 0.004,
        latency=replace(latency, p50=1.0),
    )
    config = {"target_p50_ms": None, "max_drop": 0.5, "input_size": [32, 32], "calibration_images": 10}
    made = record((), **config, batch_size=[1])
    resolved = {"format": ["onnx"], "threads": 1, "images": images, "chance": 0.1}
    outcome = Outcome(model="cnn", parameters=10, norms=2, steps=(), artifacts=(eager, int8))
    return replace(made, experiment="export", resolved=resolved), outcome


@pytest.mark.parametrize(
    ("accuracy", "verdict"), [(0.8, "met"), (0.14, "met"), (0.105, "not measured: at chance"), (None, "met")]
)
def test_accuracy_is_judged_of_models_that_are_surely_better_than_guessing(
    accuracy: float | None, verdict: str
) -> None:
    report = describe(*exported(accuracy))
    speed, quality = report.claims
    assert (speed.verdict, quality.verdict) == ("met", verdict)
    assert ("at chance: 10.5" in report.headline) == (accuracy == 0.105)


@pytest.mark.parametrize(
    ("gap", "said"), [(0.004, "0.4 points less accurate"), (-0.02, "2.0 points more accurate"), (0.0004, "as accurate")]
)
def test_the_headline_says_how_accurate_the_best_file_is(gap: float, said: str) -> None:
    made, outcome = exported(0.8)
    eager, best = outcome.artifacts
    report = describe(made, replace(outcome, artifacts=(eager, replace(best, accuracy=0.8 - gap))))
    assert report.headline.replace("\N{NO-BREAK SPACE}", " ") == f"ONNX, int8: 1.00 ms, 4.0 times as fast, {said}"


@pytest.mark.parametrize("name", ["cnn_32", "resnet20_128", "resnet20_32"])
def test_the_records_in_docs_are_said_as_before(name: str) -> None:
    content = content_of(f"export_{name}_cpu_20261123")
    whole, outcome = export_of(content)
    for one in content["outcome"]["artifacts"]:
        if one["latency"]:
            one["latency"]["p95"] = None  # which the records do not have
    check_equals(as_json(head_of(whole), describe(whole, outcome)), content)
