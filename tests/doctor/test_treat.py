"""Treatments repair what was diagnosed, stay only where they help, and can be undone bit for bit."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from steadynorm import FrozenBatchNorm2d
from steadynorm.doctor import Cost, Diagnosis, Finding, Remedy, Severity, diagnose, treat_
from steadynorm.doctor.checks import CHECKS
from steadynorm.doctor.treatments import TREATMENTS
from tests.support.doctor import batches


def bits(model: nn.Module) -> list[bytes]:
    return [each.detach().clone().numpy().tobytes() for each in model.state_dict().values()]


def mean(scores: tuple[float, ...]) -> float:
    return sum(scores) / len(scores)


def damage(model: Any, fault: str) -> None:
    with torch.no_grad():
        if fault == "nan":
            model[1].running_var[3] = math.nan
        elif fault == "negative":
            model[1].running_var[3] = -1.0
        elif fault == "lost":
            model[4].reset_running_stats()
        elif fault == "stale":
            model[4].running_mean += 3 * model[4].running_var.sqrt()
        else:
            model[1].running_var[3] *= 1e4


@pytest.mark.parametrize("fault", ["nan", "negative", "lost", "stale", "outlier"])
def test_a_fault_is_repaired_and_can_be_brought_back(healthy: nn.Sequential, model: Any, fault: str) -> None:
    damage(model, fault)
    before = bits(model)
    diagnosis = diagnose(model, batches())
    assert not diagnosis.is_healthy
    treatment = treat_(model, diagnosis, batches())
    assert diagnose(model, batches()).is_healthy
    (well,) = {mean(treat_(healthy, diagnose(healthy), batches()).after)}
    assert mean(treatment.after) == pytest.approx(well, rel=0.25)
    assert treatment.undo() is model
    assert bits(model) == before
    with pytest.raises(RuntimeError, match=r"^treat_: this treatment has been undone already\.$"):
        treatment.undo()


@pytest.mark.parametrize("skip", [(), ("train-eval-gap", "needs-recalibration", "outlier-statistics")])
def test_what_shows_only_behind_a_repair_is_treated_as_well(model: Any, skip: tuple[str, ...]) -> None:
    """A port that put the running mean and the running variance in each other's place."""
    well = mean(treat_(model, diagnose(model), batches()).after)
    for norm in (model[1], model[4]):
        norm.running_mean, norm.running_var = norm.running_var, norm.running_mean
    before = bits(model)
    diagnosis = diagnose(model, batches(), skip=skip)
    treatment = treat_(model, diagnosis, batches())
    tried = [each.treatment for each in treatment.applied]
    assert tried == (["repair"] if skip else ["repair", "recalibrate"])
    assert (mean(treatment.after) == pytest.approx(well, rel=0.25)) is not bool(skip)
    treatment.undo()
    assert bits(model) == before


def diagnosis_of(*findings: Finding) -> Diagnosis:
    return Diagnosis(findings=findings, looked_at="", checks=(), not_run={})


def finding(layer: str, treatment: str) -> Finding:
    return Finding(
        layer=layer, what="", severity=Severity.WARNING, problem="", remedy=Remedy(advice="Do it.", treatment=treatment)
    )


def test_what_makes_the_score_worse_is_undone(model: Any) -> None:
    noise = [(0.05 * torch.randn(32, 1, 12, 12, generator=torch.Generator().manual_seed(at)), None) for at in range(4)]
    mixed = [(x, batches()[0][1]) for x, _ in noise] + batches()[:4]  # measured on noise, scored on images
    before = bits(model)
    treatment = treat_(model, diagnosis_of(finding("", "recalibrate")), mixed)
    (applied,) = treatment.applied
    assert (applied.kept, applied.why) == (False, "the score was worse after it")
    assert applied.after > applied.before
    assert bits(model) == before
    assert treatment.after == treatment.before


def test_what_makes_the_score_nan_is_undone(model: Any) -> None:
    before = model[1].running_mean.clone()
    loss = lambda output, batch: 1.0 if torch.equal(model[1].running_mean, before) else math.nan  # noqa: E731
    (applied,) = treat_(model, diagnosis_of(finding("", "recalibrate")), batches(), loss=loss).applied
    assert not applied.kept
    assert torch.equal(model[1].running_mean, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_raises_leaves_the_model_as_it_was(model: Any, error: type[BaseException]) -> None:
    damage(model, "negative")
    model[4].momentum = 0.99
    before, calls = bits(model), []

    def loss(output: torch.Tensor, batch: object) -> float:
        calls.append(float(model[1].running_var[3]))
        if calls[-1] >= 0:  # the repair is done
            raise error
        return 1.0

    diagnosis = diagnose(model)
    with pytest.raises(error):
        treat_(model, diagnosis, batches(), loss=loss)
    assert bits(model) == before
    assert model[4].momentum == 0.99


def test_statistics_are_measured_on_the_half_that_is_not_scored(model: Any) -> None:
    (applied,) = treat_(model, diagnosis_of(finding("", "recalibrate")), batches(6)).applied
    assert applied.change is not None
    assert applied.change.measured["batches"] == 3


def test_without_batches_statistics_are_repaired_and_not_measured(model: Any) -> None:
    damage(model, "nan")
    damage(model, "lost")
    treatment = treat_(model, diagnose(model))
    assert [(each.treatment, each.kept) for each in treatment.applied] == [("repair", True), ("recalibrate", False)]
    assert treatment.applied[1].why == "it needs batches"
    assert float(model[1].running_var[3]) == 1.0


def test_only_the_layers_that_were_named_change(model: Any) -> None:
    treat_(model, diagnosis_of(finding("4", "freeze")))
    assert (type(model[1]), type(model[4])) == (nn.BatchNorm2d, FrozenBatchNorm2d)


@pytest.mark.parametrize(("momentum", "after"), [(0.99, 0.01), (0.0, 0.1), (0.9, 0.1), (1.0, 0.1), (1, 0.1), (0, 0.1)])
def test_another_frameworks_momentum_is_turned_round(model: Any, momentum: float, after: float) -> None:
    model[4].momentum = momentum
    treatment = treat_(model, diagnose(model))
    assert model[4].momentum == after
    treatment.undo()
    assert model[4].momentum == momentum


def test_a_layer_left_in_training_evaluates(model: Any) -> None:
    model[4].train()
    treatment = treat_(model, diagnose(model))
    assert not model[4].training
    treatment.undo()
    assert model[4].training


def test_half_precision_statistics_become_wide(model: Any) -> None:
    model[4].bfloat16().train()
    stored, weight, bits_of_weight = model[4].running_var, model[4].weight, model[4].weight.detach().clone()
    treatment = treat_(model.train(), diagnose(model))
    assert model[4].running_var.dtype == torch.float32
    assert model[4](torch.randn(4, 8, 3, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    treatment.undo()
    assert model[4].running_var is stored
    assert model[4].weight is weight
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, bits_of_weight)


def test_synchronised_layers_become_plain() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.SyncBatchNorm(4)).eval()
    treat_(model, diagnose(model))
    assert type(model[1]) is nn.BatchNorm2d


def test_what_only_the_user_can_do_is_left_to_the_user(model: Any) -> None:
    model[1].weight.data[:5] = 0
    treatment = treat_(model, diagnose(model))
    assert [each.check for each in treatment.advice] == ["dead-channel"]
    assert "left to you: dead-channel" in str(treatment)


def test_every_remedy_names_a_treatment_that_exists() -> None:
    remedies = [
        value
        for check in CHECKS.values()
        for value in vars(__import__(check.run.__module__, fromlist=["_"])).values()
        if isinstance(value, Remedy)
    ]
    assert {remedy.treatment for remedy in remedies} - {""} <= set(TREATMENTS)
    assert len(remedies) >= len(CHECKS) - 1


def test_where_a_cost_was_measured_all_layers_are_measured_again(model: Any) -> None:
    damage(model, "stale")
    named = finding("1", "recalibrate")
    alone = treat_(copy.deepcopy(model), diagnosis_of(named), batches())
    assert [each.name for each in alone.applied[0].change.changed] == ["1"]
    costly = replace(named, cost=Cost(quantity="cross-entropy", value=1.0, standard_error=0.1))
    both = treat_(model, diagnosis_of(costly), batches())
    assert [each.name for each in both.applied[0].change.changed] == ["1", "4"]


def test_a_wrong_momentum_is_set_right_and_what_it_left_is_measured_again(model: Any) -> None:
    for norm in (model[1], model[4]):
        norm.momentum = 0.99
    model.train()
    with torch.no_grad():
        model(3 * batches()[0][0][:4] + 1)
    model.eval()
    treatment = treat_(model, diagnose(model), batches())
    assert [each.treatment for each in treatment.applied] == ["momentum", "recalibrate"]
    assert model[1].momentum == pytest.approx(0.01)
    assert mean(treatment.after) < 0.9 * mean(treatment.before)


def accuracy(output: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return (output.argmax(1) == batch[1]).double().mean()


def test_a_metric_is_shown_as_it_is(model: Any) -> None:
    damage(model, "stale")
    treatment = treat_(model, diagnose(model, batches(), metric=accuracy), batches(), metric=accuracy)
    with torch.no_grad():
        now = sum(float(accuracy(model(x), (x, y))) for x, y in batches()[4:]) / 4
    assert f"-> {now:.4g} (more is better)" in str(treatment)
    assert "score -" not in str(treatment)
    assert "-> -" not in str(treatment)


def test_a_norm_that_two_parents_share_is_treated_once_and_given_back(model: Any) -> None:
    model[4] = model[1]
    with torch.no_grad():
        model[1].running_var[3] = math.nan
    before = bits(model)
    treatment = treat_(model, diagnose(model, batches()), batches())
    assert model[4] is model[1]
    assert bool(model[1].running_var.isfinite().all())
    treatment.undo()
    assert bits(model) == before


def test_a_norm_that_is_the_model_is_exchanged_and_given_back() -> None:
    norm = nn.BatchNorm2d(3)
    treatment = treat_(norm, diagnosis_of(finding("", "freeze")), [torch.randn(8, 3, 4, 4)])
    assert type(treatment.model) is FrozenBatchNorm2d
    assert treatment.undo() is norm


def test_a_compiled_model_is_treated_in_place_and_nothing_is_exchanged(model: Any) -> None:
    damage(model, "stale")
    before = bits(model)
    compiled = torch.compile(model, backend="eager")
    diagnosis = diagnose(compiled, batches())
    wished = (*diagnosis.findings, finding("4", "freeze"))
    treatment = treat_(compiled, diagnosis_of(*wished), batches())
    assert [(each.treatment, each.kept) for each in treatment.applied] == [("recalibrate", True), ("freeze", False)]
    assert "before the model is wrapped or compiled" in treatment.applied[1].why
    assert diagnose(compiled, batches()).is_healthy
    assert treatment.undo() is compiled
    assert bits(model) == before


def test_a_compiled_part_keeps_its_modules(model: Any) -> None:
    model[1] = torch.compile(model[1], backend="eager")
    (applied,) = treat_(model, diagnosis_of(finding("4", "freeze"))).applied
    assert not applied.kept
    assert type(model[4]) is nn.BatchNorm2d


def test_statistics_that_a_loader_passed_over_are_loaded_from_the_checkpoint(model: Any) -> None:
    checkpoint = {"model": {f"module.{name}": each.clone() for name, each in model.state_dict().items()}}
    well = bits(model)
    damage(model, "lost")
    lost = bits(model)
    diagnosis = diagnose(model, batches(), checkpoint=checkpoint)
    treatment = treat_(model, diagnosis, batches(), checkpoint=checkpoint)
    assert [(each.treatment, each.kept) for each in treatment.applied] == [("load", True), ("recalibrate", False)]
    assert treatment.applied[1].why == "statistics were loaded. Diagnose again"
    assert bits(model) == well
    assert diagnose(model, batches(), checkpoint=checkpoint).is_healthy
    treatment.undo()
    assert bits(model) == lost


def test_without_batches_statistics_are_loaded_and_what_the_checkpoint_lacks_is_measured(model: Any) -> None:
    checkpoint = {name: each.clone() for name, each in model.state_dict().items() if "1.running" not in name}
    well = model[4].running_var.clone()
    model[1].reset_running_stats()
    damage(model, "lost")
    treatment = treat_(model, diagnose(model, checkpoint=checkpoint), checkpoint=checkpoint)
    assert torch.equal(model[4].running_var, well)
    assert [(each.treatment, each.kept, each.why) for each in treatment.applied] == [
        ("load", True, ""),
        ("recalibrate", False, "it needs batches"),
    ]
    assert {each.layer for each in treatment.applied[1].findings} == {"1"}


def test_without_the_checkpoint_nothing_is_loaded(model: Any) -> None:
    diagnosis = diagnosis_of(finding("4", "load"))
    assert treat_(model, diagnosis, batches()).applied[0].why == "it needs the checkpoint"


def test_weights_are_loaded_where_the_score_is_better(model: Any) -> None:
    checkpoint = {name: each.clone() for name, each in model.state_dict().items()}
    checkpoint["8.bias"] = checkpoint["8.bias"][:1]
    well = bits(model)
    with torch.no_grad():
        model[3].weight.neg_()
        model[4].weight.neg_()
        model[4].running_mean.add_(3.0)
    before = bits(model)
    diagnosis = diagnose(model, batches(), checkpoint=checkpoint)
    treatment = treat_(model, diagnosis, batches(), checkpoint=checkpoint)
    applied = treatment.applied[0]
    assert (applied.treatment, applied.kept) == ("load", True)
    assert bits(model) == well
    assert applied.change is not None
    assert {each.name for each in applied.change.changed} == {"3.weight", "4.weight", "1", "4"}
    assert [(each.name, each.why) for each in applied.change.refused] == [
        ("8.bias", "of another shape: (1,) for (2,).")
    ]
    treatment.undo()
    assert bits(model) == before


def test_weights_are_not_loaded_where_the_score_is_no_better_or_not_known(model: Any) -> None:
    checkpoint = {name: each.clone() for name, each in model.state_dict().items()}
    with torch.no_grad():
        model[8].weight.mul_(1.001)
    before = bits(model)
    diagnosis = diagnose(model, batches(), checkpoint=checkpoint)
    (scored,) = treat_(model, diagnosis, batches(), checkpoint=checkpoint).applied
    assert (scored.kept, scored.why) == (False, "the score was not better after it")
    (unscored,) = treat_(model, diagnosis, checkpoint=checkpoint).applied
    assert (unscored.kept, unscored.why.split(",")[0]) == (False, "it would replace weights")
    assert bits(model) == before
