"""What a diagnosis says of every layer, at fault or not."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import nn

from steadynorm.doctor import Diagnosis, diagnose
from steadynorm.doctor.batch_evidence import Runs
from steadynorm.doctor.compared import cost_of, won_back
from tests.support.doctor import batches


def test_each_has_its_distance_in_standard_deviations(model: Any) -> None:
    inputs = torch.cat([model[:1](x) for x, _ in batches()]).detach().double()
    norm = model[1]
    norm.running_var.copy_(inputs.var((0, 2, 3), unbiased=False))
    norm.running_mean.copy_(inputs.mean((0, 2, 3)) + 2 * (norm.running_var + norm.eps).sqrt())
    first, second = diagnose(model, batches()).layers
    assert (first.name, first.what, second.name) == ("1", "torch.nn.BatchNorm2d(8)", "4")
    assert first.distance == pytest.approx(2, rel=1e-4)
    assert first.sampling is not None and 0 < first.sampling < 0.2


def test_healthy_layers_are_as_far_as_sampling_puts_them(model: Any) -> None:
    for layer in diagnose(model, batches()).layers:
        assert layer.distance is not None and layer.sampling is not None and layer.won_back is None
        assert 0.2 < layer.distance / layer.sampling < 3


def test_the_layer_at_fault_wins_the_gap_back(model: Any) -> None:
    model[4].running_mean.add_(5 * model[4].running_var.sqrt())
    first, second = diagnose(model, batches()).layers
    assert first.won_back is not None and second.won_back is not None
    assert second.won_back == pytest.approx(1, abs=0.1)
    assert first.won_back < 0.2


def test_shares_are_told_where_single_layers_were_tried() -> None:
    """Of a gap that is a warning only where statistics are stale as well, the page shows what a check names."""
    evaluation, by_batch = (1.031, 1.03, 1.029, 1.03), (1.0, 1.0, 1.0, 1.0)
    gap = cost_of("cross-entropy", evaluation, by_batch)
    assert gap is not None and not gap.matters(by_batch) and gap.matters(by_batch, expected=True)
    runs = Runs(
        batches=4,
        sightings={},
        score="cross-entropy",
        evaluation=evaluation,
        by_batch=by_batch,
        one_layer={"a": (1.0, 1.0), "b": evaluation[:2]},
    )
    assert won_back(runs) == {"a": pytest.approx(1), "b": pytest.approx(0)}


def test_what_is_not_known_is_none(model: Any) -> None:
    model[4] = nn.BatchNorm2d(8, track_running_stats=False)
    diagnosis = diagnose(model, batches())
    assert [layer.distance is None for layer in diagnosis.layers] == [False, True]
    assert diagnose(model).layers == ()
    content = json.loads(diagnosis.to_json())
    assert content["layers"][1] == {
        "name": "4",
        "what": "torch.nn.BatchNorm2d(8)",
        "distance": None,
        "sampling": None,
        "won_back": None,
    }
    assert Diagnosis.from_json(diagnosis.to_json()).layers == diagnosis.layers
    del content["layers"]
    assert Diagnosis.from_json(json.dumps(content)).layers == ()


def test_inputs_that_are_no_numbers_are_named(model: Any) -> None:
    model[1].running_var[0] = -1
    diagnosis = diagnose(model, batches())
    assert [line for line in diagnosis.unread if line.startswith("the inputs of 4, which are not finite.")]
    assert diagnosis.layers[1].distance is None
    model[1].running_var[0] = 1
    assert not diagnose(model, batches()).unread
    model[1].running_var[0] = math.inf
    assert not diagnose(model, batches()).unread, "an infinite variance gives a finite output"
