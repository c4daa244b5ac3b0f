"""Checks of running statistics, on faults in a few layers of a trained network: found, at the right layer, repaired."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from steadynorm.doctor import Severity, accuracy, diagnose, treat_
from steadynorm.doctor.batch_evidence import Runs
from steadynorm.doctor.compared import few_off, standing_out
from steadynorm.surgery import recalibrate_
from tests.support.doctor import batches

WARNING, ERROR = Severity.WARNING, Severity.ERROR


@pytest.fixture(scope="module")
def deep() -> nn.Sequential:
    """Six norms, with the statistics of its weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (1, 8, 8, 8, 8, 8):
        layers += [nn.Conv2d(inputs, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for x, y in batches(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    recalibrate_(model, batches(16, seed=2))
    return model.eval()


def worse(norm: Any) -> None:
    """Half of the channels get another's statistics, and all a larger deviation."""
    norm.running_mean.copy_(norm.running_mean.roll(1) + norm.running_var.sqrt())
    norm.running_var.mul_(6)


@pytest.mark.parametrize("layers", [("4",), ("1", "10"), ("7", "13")])
def test_a_gap_is_named_where_running_estimates_are_off_though_later_layers_win_as_much_back(
    deep: nn.Sequential, layers: tuple[str, ...]
) -> None:
    model = copy.deepcopy(deep)
    for name in layers:
        worse(model.get_submodule(name))
    found = diagnose(model, batches()).of("train-eval-gap")
    assert {each.layer for each in found} == set(layers)
    assert all(each.numbers["share"] > 0.5 for each in found)  # type: ignore[operator]
    assert {each.layer for each in diagnose(model, batches()).of("needs-recalibration")} == set(layers)


def test_a_gap_of_all_layers_is_named_at_none(deep: nn.Sequential) -> None:
    model: Any = copy.deepcopy(deep)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            worse(norm)
    assert len(diagnose(model, batches()).of("train-eval-gap")) == 1


@pytest.mark.parametrize(
    ("off", "named"),
    [
        ({"a": 0.5, "b": 0.1, "c": 0.1}, ("a",)),
        ({"a": 0.1, "b": 2.0, "c": 0.9, "d": 0.2, "e": 0.1}, ("b", "c")),
        ({"a": 9.0, "b": 0.4}, ("a", "b")),
        ({"a": 0.5, "b": 0.4, "c": 0.3, "d": 0.25}, ()),
        ({"a": 0.1, "b": 0.0}, ()),
        ({"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 0.1}, ()),
        ({"a": 1.0}, ("a",)),
        ({}, ()),
    ],
)
def test_layers_stand_out_where_few_are_off_and_all_others_clearly_less(
    off: dict[str, float], named: tuple[str, ...]
) -> None:
    assert standing_out(off) == named


@pytest.mark.parametrize(("scores", "named"), [((1.1, 1.1), ("a", "b")), ((1.9, 1.9), ())])
def test_layers_that_stand_out_are_named_where_they_win_half_of_the_gap_back(
    scores: tuple[float, ...], named: tuple[str, ...]
) -> None:
    runs = Runs(
        batches=2,
        sightings={},
        score="cross-entropy",
        evaluation=(2.0, 2.0),
        by_batch=(1.0, 1.0),
        few_layers={("a", "b"): scores},
    )
    assert few_off(runs) == (named, pytest.approx(2.0 - scores[0]))


@pytest.mark.parametrize("change", ["running_mean.zero_()", "running_var.fill_(1)"])
def test_a_half_of_the_statistics_that_is_still_a_new_layers_is_found_and_repaired(model: Any, change: str) -> None:
    model[4].running_mean += 1.0
    model[3].bias = nn.Parameter(torch.ones(8))  # so that neither is by chance what a new layer has
    model[3].weight.data *= 6
    recalibrate_(model, batches(16, seed=2))
    assert diagnose(model, batches()).of("statistics-at-init") == ()
    assert diagnose(model, batches()).is_healthy
    name, _, call = change.partition(".")
    getattr(getattr(model[4], name), call.partition("(")[0])(*([1] if "1" in call else []))
    diagnosis = diagnose(model, batches())
    assert [(each.layer, each.severity) for each in diagnosis.of("statistics-at-init")] == [("4", ERROR)]
    treat_(model, diagnosis, [x for x, _ in batches(16, seed=2)])  # with labels: larger logits cost less here
    assert diagnose(model, batches()).is_healthy


def test_a_half_that_is_right_as_it_is_says_nothing(model: Any) -> None:
    model[4].running_mean.zero_()
    shifted = [(x, y) for x, y in batches()]
    mean = diagnose(model, shifted)
    model[3].bias = nn.Parameter(torch.zeros(8))
    for _ in range(3):  # the mean is taken away before the layer
        recalibrate_(model, batches(16, seed=2))
        model[3].bias.data -= model[4].running_mean
        model[4].running_mean.zero_()
    assert mean.of("statistics-at-init") and diagnose(model, batches()).of("statistics-at-init") == ()


@pytest.mark.parametrize(("share", "found"), [(2, []), (1, []), (8, [("4", WARNING)]), (4, [("4", WARNING)])])
def test_variances_of_nothing_are_a_warning_where_the_input_varies(model: Any, share: int, found: list[Any]) -> None:
    if share > 2:
        model[4].running_var[:share] = 0
    else:  # filters that died
        model[3].weight.data[: 2 * share] = 0
        recalibrate_(model, batches(16, seed=2))
    diagnosis = diagnose(model, batches())
    warnings = [each for each in diagnosis.of("near-zero-variance") if each.severity >= WARNING]
    assert [(each.layer, each.severity) for each in warnings] == found
    if found:
        treat_(model, diagnosis, [x for x, _ in batches(16, seed=2)])
        assert diagnose(model, batches()).of("near-zero-variance") == ()


@pytest.mark.parametrize(("mean", "severity"), [(1.0, Severity.NOTE), (1e3, WARNING)])
def test_half_precision_in_evaluation_is_a_warning_where_it_moves_a_mean(mean: float, severity: Severity) -> None:
    norm = nn.BatchNorm2d(4).eval()
    norm.running_mean.fill_(mean)  # type: ignore[union-attr]
    (found,) = diagnose(nn.Sequential(norm.bfloat16()).eval()).of("low-precision-statistics")
    assert found.severity == severity


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1.0])
def test_ranks_of_which_one_holds_no_possible_statistics_are_apart(model: Any, value: float) -> None:
    states = [{name: each.clone() for name, each in model.state_dict().items()} for _ in range(4)]
    assert diagnose(model, ranks=states).of("rank-divergence") == ()
    states[2]["4.running_var"][1] = value
    (found,) = diagnose(model, ranks=states).of("rank-divergence")
    assert (found.layer, found.severity, found.numbers["rank"]) == ("4", ERROR, 2)
    for state in states:
        state["4.running_var"][1] = value
    assert (
        diagnose(model, ranks=states).of("rank-divergence") == ()
    )  # nonfinite-statistics or negative-variance says so


def _swap(state: dict[str, Any]) -> None:
    for key in ("weight", "bias", "running_mean", "running_var"):
        state[f"1.{key}"], state[f"4.{key}"] = state[f"4.{key}"], state[f"1.{key}"]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (_swap, {"1", "4"}),
        (lambda state: state["4.weight"].fill_(1), {"4"}),
        (lambda state: state["3.weight"].copy_(state["3.weight"].flip(0)), {"3"}),
        (lambda state: [state[name].mul_(1.1) for name in state if name.endswith("weight")], set()),
        (lambda state: state["8.weight"].mul_(1.2), set()),
    ],
    ids=["swapped", "affine lost", "not loaded", "trained since", "head trained since"],
)
def test_a_part_that_was_not_loaded_is_named(
    model: Any, change: Callable[[dict[str, Any]], object], found: set[str]
) -> None:
    state = {name: each.clone() for name, each in model.state_dict().items()}
    change(state)
    findings = [each for each in diagnose(model, checkpoint=state).of("checkpoint-diff") if each.severity >= WARNING]
    assert {each.layer for each in findings} == found


def test_what_a_repair_of_one_layer_leaves_behind_is_treated_in_all(deep: nn.Sequential) -> None:
    """The first diagnosis can measure nothing behind NaN; the second one asks for other layers than the first."""
    model: Any = copy.deepcopy(deep)
    model[1].reset_running_stats()
    model[4].running_var[0] = torch.nan
    for at in (7, 10, 13):
        worse(model[at])
    treatment = treat_(model, diagnose(model, batches()), batches(16, seed=2))
    tried = [(each.treatment, {one.layer for one in each.findings}) for each in treatment.applied]
    assert tried[:2] == [("repair", {"4"}), ("recalibrate", {"1"})]
    assert tried[2][0] == "recalibrate" and tried[2][1] > {"1"} and treatment.applied[2].kept
    assert diagnose(model, batches()).is_healthy


def test_means_of_a_few_channels_far_off_are_outliers(model: Any) -> None:
    model[4].running_mean[[1, 5]] += 50 * model[4].running_var[[1, 5]].sqrt()
    diagnosis = diagnose(model, [x for x, _ in batches()])
    assert [each.layer for each in diagnosis.of("outlier-statistics")] == ["4"]


def test_of_two_values_of_eps_torchs_own_is_the_usual_one(model: Any) -> None:
    model[1].eps = 0.5
    assert [each.layer for each in diagnose(model).of("mixed-eps")] == ["1"]


@pytest.mark.parametrize(("labels", "eps"), [(True, 1e-5), (False, 5.0)])
def test_eps_is_set_to_that_of_most_layers_where_the_score_is_better_for_it(
    deep: nn.Sequential, labels: bool, eps: float
) -> None:
    model: Any = copy.deepcopy(deep)
    model[7].eps = 5.0
    diagnosis = diagnose(model, batches())
    assert [each.layer for each in diagnosis.of("mixed-eps")] == ["7"]
    treatment = treat_(model, diagnosis, [each if labels else each[0] for each in batches(16, seed=2)])
    assert model[7].eps == eps
    if not labels:
        assert treatment.applied[0].why.startswith(
            "the right eps depends on the weights: it needs batches with labels or a loss"
        )
    treatment.undo()
    assert model[7].eps == 5.0


def test_eps_stays_where_the_score_is_not_better_for_another(deep: nn.Sequential) -> None:
    model: Any = copy.deepcopy(deep)
    norm = model[7]
    with torch.no_grad():  # as if trained so
        norm.weight *= ((norm.running_var + 5.0) / (norm.running_var + norm.eps)).sqrt()
    norm.eps = 5.0
    (applied,) = treat_(model, diagnose(model, batches()), batches(16, seed=2), metric=accuracy).applied
    assert (applied.treatment, applied.kept) == ("eps", False)
    assert norm.eps == 5.0


def test_gammas_and_betas_that_were_exchanged_are_found_though_most_tensors_are_norms() -> None:
    model: Any = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), *(nn.BatchNorm2d(4) for _ in range(3))).eval()
    for norm in model[1:]:
        nn.init.uniform_(norm.bias)
    state = {name: each.clone() for name, each in model.state_dict().items()}
    for norm in model[1:]:
        norm.weight, norm.bias = norm.bias, norm.weight
    found = [each for each in diagnose(model, checkpoint=state).of("checkpoint-diff") if each.severity >= WARNING]
    assert [each.layer for each in found] == ["1", "2", "3"]
    with torch.no_grad():
        model[0].weight += 0.01  # trained since
    assert all(each.severity < WARNING for each in diagnose(model, checkpoint=state).of("checkpoint-diff"))


@pytest.mark.parametrize(("scale", "severity"), [(1e-3, []), (1e-5, [WARNING])])
def test_a_layer_whose_input_is_scaled_below_eps_does_not_normalize(scale: float, severity: list[Severity]) -> None:
    model: Any = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)).train()
    model[0].momentum = None
    x = [scale * torch.randn(8, 3, 4, 4) for _ in range(4)]
    for each in x:
        model(each)
    found = diagnose(model.eval(), x).of("near-zero-variance")
    assert [each.severity for each in found] == severity
