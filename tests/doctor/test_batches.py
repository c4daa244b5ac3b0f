"""Checks that need batches: each fires on its fault, names the layer, and is silent on what only looks like it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from steadynorm import GatedBatchNorm2d
from steadynorm.doctor import CHECKS, Cost, Severity, diagnose, observe
from steadynorm.doctor.check import Check
from steadynorm.doctor.checks import needs_recalibration, reused_norm, train_eval_gap
from steadynorm.doctor.compared import cost_of, distance_of
from steadynorm.surgery import no_statistics_update, recalibrate_
from tests.support.doctor import batches, images

BATCH_CHECKS = [name for name, check in CHECKS.items() if check.needs == ("batches",)]


@pytest.mark.parametrize(("size", "training"), [(4, False), (16, False), (16, True), (64, False), (64, True)])
def test_a_healthy_model_is_silent_at_any_batch_size(model: Any, size: int, training: bool) -> None:
    diagnosis = diagnose(model.train(training), batches(8, size))
    assert diagnosis.findings == ()
    assert set(BATCH_CHECKS) <= set(diagnosis.checks)


def test_stale_statistics_of_one_layer_are_found_there_with_their_cost(model: Any) -> None:
    model[4].running_mean += 3 * model[4].running_var.sqrt()
    diagnosis = diagnose(model, batches())
    (gap,) = diagnosis.of("train-eval-gap")
    assert gap.layer == "4"
    assert gap.cost is not None
    with torch.no_grad():
        worse = sum(float(functional.cross_entropy(model(x), y)) for x, y in batches()) / 8
        model[4].train()
        with no_statistics_update(model):
            better = sum(float(functional.cross_entropy(model(x), y)) for x, y in batches()) / 8
    assert gap.cost.value == pytest.approx(worse - better, rel=0.1)
    (stale,) = diagnosis.of("needs-recalibration")
    assert stale.cost is not None
    assert stale.cost.value > 0.5 * gap.cost.value


def test_shifted_data_cost_what_recalibration_wins_back(model: Any) -> None:
    shifted = [(0.2 * x, y) for x, y in batches()]
    found = {each.check for each in diagnose(model, shifted)}
    assert found == {"train-eval-gap", "needs-recalibration"}


def test_a_metric_of_which_more_is_better_is_understood(model: Any) -> None:
    def accuracy(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (output.argmax(1) == batch[1]).double().mean()

    model[4].running_mean += 3 * model[4].running_var.sqrt()
    (gap,) = diagnose(model, batches(), metric=accuracy).of("train-eval-gap")
    assert gap.cost is not None
    assert gap.cost.quantity == "accuracy"
    assert 0.1 < gap.cost.value <= 1


def test_a_batch_that_cannot_be_halved_by_its_tensors_is_named(model: Any) -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model

        def forward(self, x: Tensor, number: int) -> Tensor:
            if len(x) != number:
                raise IndexError("not all are there")
            return self.body(x)

    diagnosis = diagnose(Counted(), [{"x": x, "number": len(x)} for x, _ in batches()])
    (line,) = diagnosis.unread
    assert line == "outputs that depend on the batch: on two samples of one, IndexError: not all are there"


@pytest.mark.parametrize(("side", "single"), [(1, True), (2, False)])
def test_group_norm_by_channels_says_where_a_channel_is_one_number(side: int, single: bool) -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.GroupNorm(4, 4), nn.GroupNorm(2, 4))
    found = diagnose(model, [torch.randn(8, 4, 6, 6)]).of("degenerate-group-norm")
    assert [(each.layer, each.severity) for each in found] == [("1", Severity.WARNING if single else Severity.NOTE)]
    assert ("has one value" in found[0].problem) == single


class Doubled(nn.BatchNorm2d):
    """What a check cannot know."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_an_unknown_norm_is_named_and_stands_in_no_check_s_way(model: Any) -> None:
    model[1] = Doubled(8).eval()
    diagnosis = diagnose(model, batches())
    assert [each.layer for each in diagnosis.of("lossy-subclass")] == ["1"]
    assert [each.layer for each in diagnosis.of("train-eval-gap")] == ["4"]


def test_what_could_not_be_tried_is_said(model: Any) -> None:
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(1, 2))
    unread = diagnose(pooled.eval(), batches(2, 1)).unread
    assert [line.split(",")[0] for line in unread if "training" in line] == ["a step of training"]
    assert "not looked at: a step of training" in str(diagnose(pooled, batches(2, 1)))
    broken = [(x.clone().index_fill_(0, torch.tensor([0]), math.nan), y) for x, y in batches()]
    assert any(line.startswith("the score with statistics measured now") for line in diagnose(model, broken).unread)


def test_statistics_without_numbers_are_said_to_be_unread() -> None:
    (line,) = diagnose(nn.Sequential(nn.BatchNorm2d(3, device="meta"))).unread
    assert line == "the statistics of 0, which are on the meta device. Load the weights."


def test_one_outlier_in_one_channel_is_found(model: Any) -> None:
    model[1].running_var[3] *= 1e4
    (found,) = diagnose(model, batches()).of("outlier-statistics")
    assert (found.layer, found.numbers["channels"]) == ("1", 1)


def test_a_layer_without_running_statistics_depends_on_its_batch(model: Any) -> None:
    model[4] = nn.BatchNorm2d(8, track_running_stats=False).eval()
    (found,) = diagnose(model, batches()).of("batch-dependence")
    assert (found.layer, found.severity) == ("4", Severity.WARNING)


def test_the_first_layer_that_depends_on_its_batch_is_named_and_none_behind_it(model: Any) -> None:
    model[1] = nn.BatchNorm2d(8, track_running_stats=False).eval()
    assert [each.layer for each in diagnose(model, batches()).of("batch-dependence")] == ["1"]


def test_a_gated_layer_depends_on_its_batch_on_purpose(model: Any) -> None:
    gated = GatedBatchNorm2d(8).eval()
    gated.load_state_dict(gated.state_dict() | model[4].state_dict())
    model[4] = gated
    (found,) = diagnose(model, [(5 * x, y) for x, y in batches()]).of("batch-dependence")
    assert (found.layer, found.severity) == ("4", Severity.NOTE)


class Always(nn.Module):
    """Normalizes by the batch, whatever its mode."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        self.norm.training = True
        return self.norm(x)


def test_a_forward_that_switches_modes_moves_statistics_in_evaluation(model: Any) -> None:
    model[4] = Always(model[4])
    (found,) = diagnose(model, batches()).of("statistics-moved-in-eval")
    assert (found.layer, found.severity) == ("4.norm", Severity.ERROR)


def test_statistics_are_tried_on_every_second_batch(model: Any) -> None:
    """Half of the batches, one after the other, are of another scale: statistics of one half fit not the other."""
    mixed = [(x * (1 if at < 4 else 3), labels) for at, (x, labels) in enumerate(batches())]
    by_hand = copy.deepcopy(model)
    recalibrate_(by_hand, mixed[::2], passes=1)
    runs = observe(model, mixed).batches
    assert runs is not None
    with torch.no_grad():
        expected = [float(functional.cross_entropy(by_hand(x), labels)) for x, labels in mixed[1::2]]
    assert runs.recalibrated == pytest.approx(expected, rel=1e-4)


class Trains(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return functional.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, True)


def test_a_subclass_that_always_trains_moves_statistics_in_evaluation(model: Any) -> None:
    live = Trains(model[4].num_features)
    live.load_state_dict(model[4].state_dict())
    model[4] = live.eval()
    (found,) = diagnose(model, batches()).of("statistics-moved-in-eval")
    assert (found.layer, found.severity) == ("4", Severity.ERROR)


class Shared(nn.Module):
    """One batch norm for two inputs."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.norm, self.scale = nn.BatchNorm2d(1), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) + self.norm(self.scale * x)


@pytest.mark.parametrize(("factor", "found"), [(1e-5, True), (1e-3, False)])
def test_a_channel_that_was_constant_is_an_outlier_too(model: Any, factor: float, found: bool) -> None:
    model[1].running_var[2] *= factor
    findings = diagnose(model, batches()).of("outlier-statistics")
    assert [each.layer for each in findings] == (["1"] if found else [])
    assert all(0.001 < float(each.numbers["ratio"]) < 0.01 for each in findings)


def test_a_variance_that_is_off_in_most_channels_is_no_outlier(model: Any) -> None:
    model[1].running_var *= 25
    model[1].running_var[3] *= 1e4
    assert diagnose(model, batches()).of("outlier-statistics") == ()


class Halves(nn.Module):
    """One batch norm for two halves of a batch of vectors, which are alike but for chance."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2)
        return self.norm(first) + self.norm(second)


class Reused(nn.Module):
    """One batch norm behind two convolutions, or behind one that is called twice."""

    def __init__(self, convolutions: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(1, 1, 1) for _ in range(convolutions))
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convs[0](x)) + self.norm(self.convs[-1](3 * x) + 2)


@pytest.mark.parametrize(("convolutions", "severity"), [(2, Severity.WARNING), (1, Severity.NOTE)])
def test_a_norm_that_is_shared_without_the_weights_before_it_is_a_warning(
    convolutions: int, severity: Severity
) -> None:
    torch.manual_seed(0)
    (found,) = diagnose(Reused(convolutions), [x for x, _ in batches()]).of("reused-norm")
    assert (found.layer, found.severity) == ("norm", severity)


def test_calls_that_differ_by_chance_alone_may_share_statistics() -> None:
    x = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    assert diagnose(Halves(), [x]).of("reused-norm") == ()


@pytest.mark.parametrize(("scale", "found"), [(1.0, []), (1.2, []), (5.0, ["norm"])])
def test_calls_that_differ_share_no_statistics(scale: float, found: list[str]) -> None:
    assert [each.layer for each in diagnose(Shared(scale), batches()).of("reused-norm")] == found


def test_shared_statistics_are_a_note_until_they_cost_something() -> None:
    """By the statistics of each call both are the same, and their sum has a variance of 4."""

    def off(output: Tensor, batch: Any) -> Tensor:
        return (output.var() - 4).abs()

    def nothing(output: Tensor, batch: Any) -> Tensor:
        return torch.ones(())

    (costly,), (free,) = (diagnose(Shared(5.0), batches(), loss=each).of("reused-norm") for each in (off, nothing))
    assert (costly.severity, free.severity) == (Severity.WARNING, Severity.NOTE)


@pytest.mark.parametrize(
    ("average", "evaluation", "recalibrated", "found"),
    [
        (True, 1.1, 1.1, {"reused-norm": Severity.NOTE}),  # as a detector whose levels share a head
        (True, 2.0, 1.1, {"reused-norm": Severity.NOTE, "train-eval-gap": Severity.WARNING}),
        (True, 2.0, 2.0, {"reused-norm": Severity.WARNING}),
        (False, 1.1, 1.1, {"reused-norm": Severity.NOTE, "train-eval-gap": Severity.WARNING}),
    ],
)
def test_what_sharing_costs_is_told_from_what_stale_statistics_do(
    average: bool, evaluation: float, recalibrated: float, found: dict[str, Severity]
) -> None:
    """Statistics that are the average of the calls are those of a training with both."""
    model = Shared(5.0)
    if average:
        recalibrate_(model, batches())
    evidence = observe(model, batches(), loss=lambda *_: 1.0)
    assert evidence.batches is not None
    bumps = [0.01 * (at // 2 % 2) for at in range(8)]
    runs = replace(
        evidence.batches,
        evaluation=tuple(evaluation + bump for bump in bumps),
        by_batch=(1.0,) * 8,
        recalibrated=tuple(recalibrated + bump for bump in bumps[1::2]),
    )
    checks = (reused_norm, train_eval_gap)
    spoken = {Check.of(each).name: each.run(replace(evidence, batches=runs)) for each in checks}
    assert {name: each.severity for name, findings in spoken.items() for each in findings} == found


def test_a_filter_that_died_is_no_outlier_in_the_statistics(model: Any) -> None:
    """The batches' deviation is 0 there, that of the training was usual."""
    with torch.no_grad():
        model[3].weight[2] = 0
    assert diagnose(model, batches()).of("outlier-statistics") == ()


@pytest.mark.parametrize(("off", "found"), [(0.5, ["4"]), (0.0, [])])
def test_a_cost_counts_earlier_where_the_statistics_are_clearly_not_those_of_the_batches(
    model: Any, off: float, found: list[str]
) -> None:
    model[4].running_mean += off * model[4].running_var.sqrt()
    evidence = observe(model, batches(), loss=lambda *_: 1.0)
    assert evidence.batches is not None
    noisy = tuple(1.1 + 0.14 * (-1) ** at for at in range(8))  # two standard errors above 1
    scores = replace(evidence.batches, evaluation=noisy, by_batch=(1.0,) * 8, one_layer={"4": (1.0, 1.0)})
    assert [each.layer for each in train_eval_gap.run(replace(evidence, batches=scores))] == found


@pytest.mark.parametrize(("training", "severity"), [(False, Severity.WARNING), (True, Severity.NOTE)])
def test_a_new_layer_in_a_trained_model_counts_where_batches_reach_it(
    model: Any, training: bool, severity: Severity
) -> None:
    """As after load_state_dict(strict=False) of a checkpoint that names the layer otherwise."""
    model[4] = nn.BatchNorm2d(8)
    found = diagnose(model.train(training), batches()).of("statistics-at-init")
    assert [(each.layer, each.severity) for each in found] == [("4", severity)]


def test_statistics_that_fit_the_batches_are_not_to_be_measured_again(model: Any) -> None:
    evidence = observe(model, batches(), loss=lambda *_: 1.0)
    assert evidence.batches is not None
    by_chance = replace(evidence.batches, evaluation=(1.1,) * 8, recalibrated=(1.0, 1.001, 0.999, 1.0))
    assert list(needs_recalibration.run(replace(evidence, batches=by_chance))) == []
    model[4].running_mean += 0.3 * model[4].running_var.sqrt()
    stale = replace(observe(model, batches(), loss=lambda *_: 1.0), batches=by_chance)
    assert [each.severity for each in needs_recalibration.run(stale)] == [Severity.WARNING]


class Pooled(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Conv2d(1, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


@pytest.mark.parametrize(
    ("size", "severity"), [(1, Severity.ERROR), (2, Severity.WARNING), (3, Severity.WARNING), (4, None)]
)
def test_values_per_channel_are_counted(size: int, severity: Severity | None) -> None:
    found = diagnose(Pooled(), [x for x, _ in batches(2, size)]).of("values-per-channel")
    assert [each.severity for each in found] == ([] if severity is None else [severity])
    assert diagnose(Pooled().eval(), [x for x, _ in batches(2, size)]).of("values-per-channel") == ()


@pytest.mark.parametrize(("number", "drop", "found"), [(145, False, [1]), (145, True, []), (144, False, [])])
def test_the_last_batch_of_an_epoch_is_counted(number: int, drop: bool, found: list[int]) -> None:
    loader = DataLoader(TensorDataset(*images(number)), batch_size=16, drop_last=drop)
    assert [each.numbers["values"] for each in diagnose(Pooled(), loader).of("values-per-channel")] == found


def test_pixels_of_one_image_that_agree_count_once() -> None:
    maps = nn.Sequential(nn.Conv2d(1, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
    flat = torch.randn(8, 1, 1, 1, generator=torch.Generator().manual_seed(0)).expand(8, 1, 12, 12)
    assert [each.layer for each in diagnose(maps, [flat]).of("statistics-noise")] == ["1"]


def test_small_batches_are_mostly_chance(model: Any) -> None:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    for seed in (0, 66, 75, 100):  # of 400, those whose noise a few of the samples call more than 1⅓
        torch.manual_seed(seed)
        vectors = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 2))
        assert diagnose(vectors, list(x.split(16))).of("statistics-noise") == ()
    assert [each.layer for each in diagnose(vectors, list(x.split(8))).of("statistics-noise")] == ["1"]
    assert diagnose(vectors, list(x.split(32))).of("statistics-noise") == ()
    assert diagnose(vectors.eval(), list(x.split(8))).of("statistics-noise") == ()


def test_batches_of_a_single_image_are_counted_together() -> None:
    maps = nn.Sequential(nn.Conv2d(1, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(8, 1, 1, 1, generator=generator).expand(8, 1, 12, 12) + 0.3 * torch.randn(8, 1, 12, 12)
    assert [each.layer for each in diagnose(maps, list(flat.split(1))).of("statistics-noise")] == ["1"]
    rough = torch.randn(8, 1, 12, 12, generator=generator)
    assert diagnose(maps, list(rough.split(1))).of("statistics-noise") == ()
    assert diagnose(maps, [flat[:1]]).of("statistics-noise") == ()
    (found,) = diagnose(maps, list(flat.split(1)), world_size=32).of("effective-batch")
    assert found.severity == Severity.WARNING


@pytest.mark.parametrize(("size", "severity"), [(4, Severity.WARNING), (8, Severity.NOTE)])
def test_workers_with_fewer_than_eight_images_are_a_warning_whatever_they_have_of_values(
    size: int, severity: Severity
) -> None:
    maps = nn.Sequential(nn.Conv2d(1, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)).train()
    rough = torch.randn(32, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    (found,) = diagnose(maps, list(rough.split(size)), world_size=8).of("effective-batch")
    assert found.severity == severity


def test_the_distance_of_a_healthy_average_is_its_sampling_error() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.BatchNorm1d(2000, momentum=0.3)
    for _ in range(100):
        model(torch.randn(8, 2000, generator=generator))
    evidence = observe(model.eval(), [torch.randn(8, 2000, generator=generator) for _ in range(8)])
    assert evidence.batches is not None
    distance = distance_of(evidence.norms[0], evidence.batches.sightings[""])
    assert distance is not None
    assert float(distance.shift.square().mean().sqrt()) == pytest.approx(distance.error, rel=0.1)


def test_the_start_counts_only_where_batches_do_not_contradict_it(model: Any) -> None:
    model[1].num_batches_tracked.fill_(5)
    model[1].running_var.clamp_(min=0.6)
    assert diagnose(model).of("statistics-horizon") != ()
    recalibrate_(model, batches())
    model[1].running_var.clamp_(min=0.6)
    assert diagnose(model, batches()).of("statistics-horizon") == ()


@pytest.mark.parametrize(("stored", "spoken"), [(17.6, True), (10.0, False)])
def test_a_start_that_explains_little_of_the_distance_is_not_the_fault(stored: float, spoken: bool) -> None:
    """Of 20 batches with mean 20 and variance 4, momentum 0.1 leaves 17.6; 10 has another reason."""
    norm = nn.BatchNorm1d(4).eval()
    norm.running_mean.fill_(stored)
    norm.running_var.fill_(0.12 + 0.88 * 4)
    norm.num_batches_tracked.fill_(20)
    generator = torch.Generator().manual_seed(0)
    found = diagnose(norm, [20 + 2 * torch.randn(64, 4, generator=generator) for _ in range(4)])
    assert bool(found.of("statistics-horizon")) is spoken


@pytest.mark.parametrize("seed", [15, 23])
def test_statistics_that_were_measured_after_a_short_training_have_no_start(seed: int) -> None:
    """Here taking a start of 8 % away brings them nearer to other batches, by less than sampling explains."""
    norm = nn.BatchNorm1d(2)
    norm.num_batches_tracked.fill_(24)
    x = math.sqrt(0.3) * torch.randn(128, 2, generator=drawn_after_scales(seed))
    recalibrate_(norm, list(x[:64].split(16)))
    assert diagnose(norm).of("statistics-horizon") != ()
    assert diagnose(norm, list(x[64:].split(16))).of("statistics-horizon") == ()


def drawn_after_scales(seed: int) -> torch.Generator:
    generator = torch.Generator().manual_seed(seed)
    torch.randint(2, (128, 1), generator=generator)
    return generator


def test_a_cost_is_the_mean_of_differences_with_their_standard_error() -> None:
    cost = cost_of("loss", [3.0, 4.0, math.nan, 5.0], [1.0, 3.0, 0.0, 2.0])
    assert cost is not None
    assert cost.value == pytest.approx(2.0)
    assert cost.standard_error == pytest.approx(1 / math.sqrt(3))
    assert cost_of("loss", [], []) is None
    one = cost_of("loss", [3.0], [1.0])
    assert one is not None
    assert not one.matters([1.0])


def state_of(model: nn.Module) -> list[Any]:
    """All that observing must leave alone, tensors by their bits."""
    tensors = [*model.parameters(), *model.buffers()]
    return [
        [each.detach().clone().numpy().tobytes() for each in tensors],
        [id(each) for each in tensors],
        [None if each.grad is None else each.grad.numpy().tobytes() for each in model.parameters()],
        [module.training for module in model.modules()],
        [sorted(vars(module)) for module in model.modules()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        torch.get_rng_state().numpy().tobytes(),
    ]


def explode(output: Tensor, batch: object) -> float:
    raise RuntimeError("no score")


@pytest.mark.parametrize("change", [None, lambda model: model.train(), lambda model: model[1].train()])
@pytest.mark.parametrize("loss", [None, explode], ids=["success", "exception"])
def test_observing_leaves_no_trace(model: Any, change: Callable[[Any], object] | None, loss: Any) -> None:
    model[2] = nn.Sequential(nn.ReLU(), nn.Dropout(0.2))
    if change is not None:
        change(model)
    functional.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    loader = DataLoader(TensorDataset(*images(64)), batch_size=16, shuffle=True)
    before = state_of(model)
    if loss is None:
        observe(model, loader)
    else:
        with pytest.raises(RuntimeError, match="no score"):
            observe(model, loader, loss=loss)
    assert state_of(model) == before


def test_no_batches_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match=r"^diagnose: there must be at least one batch, got none\."):
        diagnose(model, [])


@pytest.mark.parametrize(("batches", "errors"), [(2, 12.71), (4, 3.18), (8, 2.36), (32, 2.36)])
def test_a_cost_matters_by_students_test_and_from_a_twentieth_on(batches: int, errors: float) -> None:
    """The table of Student's distribution at 97.5 %, for one degree of freedom less than batches."""
    scores = [1.0] * batches
    above, below = (
        Cost(quantity="loss", value=0.1, standard_error=0.1 / each) for each in (errors + 0.1, errors - 0.1)
    )
    assert above.matters(scores) and not below.matters(scores)
    assert not Cost(quantity="loss", value=0.049, standard_error=1e-6).matters(scores)
    small = {"value": 0.0049, "standard_error": 1e-6}
    assert Cost(quantity="loss", **small).matters([1e-3] * batches)
    assert not Cost(quantity="cross-entropy", **small).matters([1e-3] * batches)


@pytest.mark.parametrize(
    ("gains", "named"),
    [
        ({"a": 0.0, "b": 0.98, "c": 0.85}, ["b"]),  # c normalizes again what b has distorted
        ({"a": 0.25, "b": 0.9, "c": 0.85}, ["a", "b"]),
        ({"a": 0.1, "b": 0.19, "c": -0.5}, []),
    ],
)
def test_a_layer_is_named_that_wins_back_more_than_those_before_it(gains: dict[str, float], named: list[str]) -> None:
    assert train_eval_gap._first_to_help(gains, ["a", "b", "c"]) == named
