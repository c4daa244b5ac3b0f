"""What batches say of how data were drawn, padded and laid out, of another domain, and of a layer's arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from steadynorm import GatedBatchNorm1d, MaskedBatchNorm1d
from steadynorm.doctor import Severity, diagnose, observe
from steadynorm.doctor.axes import FeatureAxes
from steadynorm.doctor.batch_evidence import Sighting
from steadynorm.doctor.checks import domain_shift
from steadynorm.doctor.score import mixes_labels
from steadynorm.doctor.sightings import sighting_of, watching
from steadynorm.surgery import recalibrate_
from tests.support.doctor import batches, images

NOTE, WARNING = Severity.NOTE, Severity.WARNING
Pairs = list[tuple[Tensor, Tensor]]


def split(x: Tensor, y: Tensor, size: int = 32) -> Pairs:
    return list(zip(x.split(size), y.split(size), strict=True))


def from_sources(number: int = 8, size: int = 32) -> Pairs:
    """Batches of one source each: every source has a brightness of its own, in every class."""
    x, y = images(number * size)
    source = torch.randn(number, generator=torch.Generator().manual_seed(1))
    return split(x + source.repeat_interleave(size).view(-1, 1, 1, 1), y, size)


def shuffled(pairs: Pairs, seed: int = 0) -> Pairs:
    x, y = (torch.cat(list(each)) for each in zip(*pairs, strict=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return split(x[order], y[order], len(pairs[0][0]))


def test_batches_of_one_source_each_are_named(model: Any) -> None:
    (found,) = diagnose(model.train(), from_sources()).of("order-leak")
    assert found.severity == WARNING
    assert diagnose(model.eval(), from_sources()).of("order-leak") == ()
    (without_labels,) = diagnose(model.train(), [x for x, _ in from_sources()]).of("order-leak")
    assert without_labels.layer == found.layer


def test_mixtures_of_samples_are_not_asked_how_they_were_drawn(model: Any) -> None:
    """Mixup takes one share for a batch, so that the contrast of its samples is one."""

    def mixed(share: float) -> list[tuple[Tensor, Tensor]]:
        shares = functional.one_hot(torch.arange(32) % 2, 2) * share + (1 - share) / 2
        return [(x, shares) for x, _ in from_sources()]

    diagnosis = diagnose(model.train(), mixed(0.5))
    assert diagnosis.of("order-leak") == () and any("mixup" in line for line in diagnosis.unread)
    whole = diagnose(model.train(), mixed(1.0))
    assert whole.of("order-leak") != () and whole.unread == ()


@pytest.mark.parametrize(("share", "mixed"), [(1.0, False), (0.7, True)])
def test_smoothed_labels_are_not_mixed(share: float, mixed: bool) -> None:
    one, other = functional.one_hot(torch.tensor([0, 1, 2]), 5), functional.one_hot(torch.tensor([0, 3, 4]), 5)
    assert mixes_labels((None, 0.9 * (share * one + (1 - share) * other) + 0.1 / 5)) == mixed


def test_the_same_samples_in_any_order_are_silent(model: Any) -> None:
    for seed in range(5):
        diagnosis = diagnose(model.train(), shuffled(from_sources(), seed))
        assert [diagnosis.of(check) for check in ("order-leak", "batch-mixture", "padding-in-statistics")] == [()] * 3


def test_batches_ordered_by_class_are_left_to_the_check_of_classes(model: Any) -> None:
    x, y = images(256)
    order = y.argsort(stable=True)
    diagnosis = diagnose(model.train(), split(x[order], y[order]))
    assert diagnosis.of("single-class-batch") != ()
    assert diagnosis.of("order-leak") == ()


def concatenated(gain: float) -> Pairs:
    """The second half of every batch is of another domain."""
    x, y = images(256)
    gains = torch.where(torch.arange(256) % 32 < 16, 1.0, gain).view(-1, 1, 1, 1)
    return split(x * gains, y)


@pytest.mark.parametrize(("gain", "found"), [(4.0, [WARNING]), (1.0, [])])
def test_two_domains_one_behind_the_other_in_each_batch_are_named(
    model: Any, gain: float, found: list[Severity]
) -> None:
    assert [each.severity for each in diagnose(model.train(), concatenated(gain)).of("batch-mixture")] == found


def alternating(by: float) -> Pairs:
    """Every other image is brighter, of both classes."""
    x, y = images(256)
    order = torch.arange(256).view(-1, 4)[:, [0, 2, 1, 3]].flatten()
    return split(x[order] + by * (torch.arange(256) % 2).view(-1, 1, 1, 1), y[order])


@pytest.mark.parametrize(("by", "found"), [(2.0, [WARNING]), (0.0, [])])
def test_two_domains_in_turn_are_named(model: Any, by: float, found: list[Severity]) -> None:
    assert [each.severity for each in diagnose(model.train(), alternating(by)).of("batch-mixture")] == found


def noisy(by: float) -> Pairs:
    """The second half of every batch has more noise, which moves no mean at the first layer."""
    x, y = images(256)
    late = (torch.arange(256) % 32 >= 16).view(-1, 1, 1, 1)
    return split(x + by * late * torch.randn(x.shape, generator=torch.Generator().manual_seed(3)), y)


@pytest.mark.parametrize(("by", "found"), [(1.2, ["1"]), (0.0, [])])
def test_halves_that_differ_in_their_variance_are_named(model: Any, by: float, found: list[str]) -> None:
    linear = nn.Sequential(model[0], model[1]).train()  # behind an activation the means differ too
    diagnosis = diagnose(linear, noisy(by)).of("batch-mixture")
    assert [each.layer for each in diagnosis] == found
    assert all("The first halves of the batches are" in each.problem for each in diagnosis)


@pytest.mark.parametrize(("share", "words"), [(0.25, "quarters"), (0.75, "three quarters")])
def test_beginnings_of_other_sizes_are_named(model: Any, share: float, words: str) -> None:
    x, y = images(512)
    late = (torch.arange(512) % 64 >= 64 * share).view(-1, 1, 1, 1)
    noise = 1.2 * late * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    given = list(zip((x + noise).split(64), y.split(64), strict=True))
    (found,) = diagnose(model.train(), given).of("batch-mixture")
    assert f"The first {words} of the batches are" in found.problem


class Patches(nn.Module):
    """Tokens of one image one behind the other, (N·L, C), as LeViT's norms are given them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 4, 4), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).flatten(2).transpose(1, 2).flatten(0, 1))


def test_tokens_of_an_image_are_no_samples_that_are_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 1, 16, 16, generator=generator) + 3 * torch.randn(32, 1, 1, 1, generator=generator)
    torch.manual_seed(0)
    found = {each.check for each in diagnose(Patches().train(), list(x.split(4)))}
    assert found.isdisjoint({"order-leak", "batch-mixture"})


def brightened(by: float) -> Pairs:
    """Every other image of each class is brighter, in no order."""
    x, y = images(256)
    return shuffled(split(x + by * (torch.arange(256) // 2 % 2).view(-1, 1, 1, 1), y))


@pytest.mark.parametrize(("by", "labels", "found"), [(4.0, True, [WARNING]), (4.0, False, [NOTE]), (0.2, True, [])])
def test_two_heaps_of_samples_are_named(model: Any, by: float, labels: bool, found: list[Severity]) -> None:
    given = brightened(by) if labels else [x for x, _ in brightened(by)]
    assert [each.severity for each in diagnose(model.train(), given).of("batch-mixture")] == found


@pytest.mark.parametrize(("contrast", "found"), [(0.2, [WARNING]), (1.0, [])])
def test_two_heaps_of_like_means_are_told_by_their_variances(
    model: Any, contrast: float, found: list[Severity]
) -> None:
    """As where a discriminator is given real and generated images in one batch, shuffled."""
    x, y = images(256)
    contrasts = torch.where(torch.arange(256) // 2 % 2 == 1, contrast, 1.0).view(-1, 1, 1, 1)
    diagnosis = diagnose(model.train(), shuffled(split(x * contrasts, y)))
    assert [each.severity for each in diagnosis.of("batch-mixture")] == found


def test_images_of_one_value_are_no_heap_of_small_variances(model: Any) -> None:
    x, y = images(256)
    blank = shuffled(split(x * (torch.arange(256) // 2 % 3 > 0).view(-1, 1, 1, 1), y))
    assert diagnose(model.train(), blank).of("batch-mixture") == ()


def test_columns_of_two_values_are_no_heaps() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    x = functional.one_hot(torch.randint(2, (256,), generator=torch.Generator().manual_seed(0))).float()
    assert diagnose(model, split(x, torch.arange(256) % 2)).of("batch-mixture") == ()
    assert diagnose(nn.Sequential(nn.Identity(), nn.Linear(2, 2), model), split(x, x)).of("batch-mixture") != ()


def test_classes_are_no_heaps(model: Any) -> None:
    x, y = images(256)
    bright = x + 4 * y.view(-1, 1, 1, 1)
    assert diagnose(model.train(), shuffled(split(bright, y))).of("batch-mixture") == ()


def darkened(by: float) -> Pairs:
    return [(by * x, y) for x, y in batches(seed=4)]


def test_a_shift_that_costs_something_is_found_with_its_cost(model: Any) -> None:
    (found,) = diagnose(model, darkened(0.2), reference=batches()).of("domain-shift")
    with torch.no_grad():
        worse, right = (
            sum(float(functional.cross_entropy(model(x), y)) for x, y in pairs) / 8
            for pairs in (darkened(0.2), batches())
        )
    assert found.severity == WARNING
    assert found.cost is not None
    assert found.cost.value == pytest.approx(worse - right, rel=1e-6)


def test_a_cost_on_the_same_samples_is_measured_batch_by_batch(model: Any) -> None:
    """Batches differ in how hard they are by more than the shift costs, and each is as hard in both."""
    evidence = observe(model, [(0.2 * x, y) for x, y in batches()], reference=batches())
    assert evidence.batches is not None and evidence.reference is not None
    known = replace(evidence.reference, evaluation=tuple(1.0 + each for each in range(8)))
    given = replace(evidence.batches, evaluation=tuple(1.6 + each for each in range(8)))
    (found,) = domain_shift.run(replace(evidence, batches=given, reference=known))
    assert found.cost is not None
    assert found.cost.value == pytest.approx(0.6)
    others = replace(known, labels=known.labels[::-1][:7])
    assert list(domain_shift.run(replace(evidence, batches=given, reference=others))) == []


@pytest.mark.parametrize("by", [1.0, 1.3])
def test_a_shift_that_costs_nothing_is_none(model: Any, by: float) -> None:
    diagnosis = diagnose(model, darkened(by), reference=batches())
    assert "domain-shift" in diagnosis.checks
    assert diagnosis.of("domain-shift") == ()


def test_harder_data_whose_moments_are_the_same_are_no_shift(model: Any) -> None:
    wrong = [(x, 1 - y) for x, y in batches(seed=4)]
    assert diagnose(model, wrong, reference=batches()).of("domain-shift") == ()


@pytest.mark.parametrize(("by", "found"), [(0.2, [NOTE]), (1.0, [])])
def test_without_labels_a_shift_is_a_note(model: Any, by: float, found: list[Severity]) -> None:
    given, known = ([x for x, _ in pairs] for pairs in (darkened(by), batches()))
    assert [each.severity for each in diagnose(model, given, reference=known).of("domain-shift")] == found
    assert diagnose(model, given).not_run["domain-shift"] == "reference"


def test_an_outlier_in_the_statistics_is_one_beside_the_data_that_they_are_of() -> None:
    """Of other data one channel is not loud; the running statistics are right, and the reference says so."""
    loud = torch.tensor([20.0, 1.0, 1.0, 1.0]).view(4, 1, 1)
    x = torch.randn(256, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    norm: Any = nn.BatchNorm2d(4)
    recalibrate_(norm, list((loud * x[:128]).split(32)))
    known, other = list((loud * x[128:]).split(32)), list(x[128:].split(32))
    assert [each.layer for each in diagnose(norm, other).of("outlier-statistics")] == [""]
    assert diagnose(norm, other, reference=known).of("outlier-statistics") == ()
    norm.running_var[2] *= 1e4
    assert diagnose(norm, other, reference=known).of("outlier-statistics") != ()


def twice(pairs: Pairs) -> Pairs:
    """Each image and its mirror image in one batch, the second views behind the first."""
    return [(torch.cat([x, x.flip(3)]), torch.cat([y, y])) for x, y in pairs]


def test_two_views_of_the_same_images_are_drawn_once() -> None:
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(256, 1, 12, 12, generator=generator) + 2 * torch.randn(256, 1, 1, 1, generator=generator)
    y = torch.randint(10, (256,), generator=generator)
    torch.manual_seed(0)
    ten = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    spoken = {each.check for each in diagnose(ten, twice(split(x, y)))}
    assert spoken.isdisjoint({"single-class-batch", "order-leak"})
    dark_first = x.mean((1, 2, 3)).argsort()
    assert diagnose(ten, twice(split(x[dark_first], y))).of("order-leak") != ()


class Wide(nn.Module):
    """Dropout before a norm in a forward of its own; the skip connection takes the same tensor without it."""

    def __init__(self, norm: nn.Module, probability: float) -> None:
        super().__init__()
        self.norm, self.skipped, self.probability = norm, nn.BatchNorm2d(4), probability

    def forward(self, x: Tensor) -> Tensor:
        kept = functional.dropout(x, self.probability, self.training)
        return self.norm(functional.relu(kept)) + self.skipped(x)


@pytest.mark.parametrize(("probability", "found"), [(0.5, ["norm"]), (0.0, []), (0.01, [])])
def test_dropout_before_a_norm_is_found_in_a_forward_of_its_own(probability: float, found: list[str]) -> None:
    x = list(torch.randn(256, 4, 5, 5, generator=torch.Generator().manual_seed(0)).split(32))
    torch.manual_seed(0)
    model = Wide(nn.BatchNorm2d(4), probability)
    for _ in range(10):
        for each in x:
            model(each)
    diagnosis = diagnose(model.eval(), x).of("dropout-before-norm")
    assert [(each.layer, each.severity) for each in diagnosis] == [(name, WARNING) for name in found]
    recalibrate_(model, x)
    assert diagnose(model, x).of("dropout-before-norm") == ()


def severities_of_dropout_around_recalibration(model: nn.Module, x: list[Tensor]) -> list[list[Severity]]:
    """Let statistics follow batches with dropout, diagnose in evaluation, and again with statistics without it."""
    for _ in range(10):
        for each in x:
            model(each)
    before = diagnose(model.eval(), x).of("dropout-before-norm")
    recalibrate_(model, x)
    return [[each.severity for each in found] for found in (before, diagnose(model, x).of("dropout-before-norm"))]


def test_dropout_costs_nothing_where_the_variance_was_measured_without_it() -> None:
    x = list(torch.randn(256, 4, generator=torch.Generator().manual_seed(0)).split(32))
    model: Any = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 2))
    assert severities_of_dropout_around_recalibration(model, x) == [[WARNING], [NOTE]]
    assert [each.severity for each in diagnose(model.train(), x).of("dropout-before-norm")] == [WARNING]


def test_dropout_that_makes_the_variance_smaller_is_found_too() -> None:
    """Alpha dropout keeps the variance of what is standard normal; what varies by more it damps."""
    x = list((4 * torch.randn(256, 4, generator=torch.Generator().manual_seed(0))).split(32))
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.AlphaDropout(0.3), nn.BatchNorm1d(4), nn.Linear(4, 2))
    assert severities_of_dropout_around_recalibration(model, x) == [[WARNING], [NOTE]]


def sequences(lengths: Tensor, time: int = 20) -> Tensor:
    """Sequences of so many steps, with zeros behind them."""
    x = 3 + torch.randn(len(lengths), 4, time, generator=torch.Generator().manual_seed(0))
    return x * (torch.arange(time) < lengths.unsqueeze(1)).unsqueeze(1)


RAGGED = 4 + torch.arange(32) % 15


def letterboxed(value: float) -> Tensor:
    """Images of many aspects in the middle of a square."""
    x = torch.randn(32, 4, 20, 20, generator=torch.Generator().manual_seed(0))
    margins = (2 + torch.arange(32) % 6).unsqueeze(1)
    rows = torch.arange(20)
    inside = (rows >= margins) & (rows < 20 - margins)
    return torch.where(inside.view(32, 1, 20, 1), x, value)


def in_corners() -> Tensor:
    """Images that are filled up below and on the right, by a seventh each."""
    x = torch.randn(32, 4, 20, 20, generator=torch.Generator().manual_seed(0))
    sizes = 14 + torch.arange(32) % 7
    inside = torch.arange(20) < sizes.unsqueeze(1)
    return x * (inside.unsqueeze(1) & inside.unsqueeze(2)).unsqueeze(1)


def drawn_on_black() -> Tensor:
    """Rings of many sizes: their outermost rows are short."""
    at = torch.arange(20.0) - 10
    radius = (at.square() + at.square().unsqueeze(1)).sqrt()
    sizes = (4 + torch.arange(32) % 6).view(32, 1, 1)
    ring = ((radius - sizes).abs() < 1).float().unsqueeze(1)
    return ring * torch.randn(32, 4, 1, 1, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("x", "norm", "found"),
    [
        (sequences(RAGGED), nn.BatchNorm1d(8), [WARNING]),
        (sequences(RAGGED).flip(2), nn.BatchNorm1d(8), [WARNING]),
        (sequences(12 + torch.arange(32) % 9), nn.BatchNorm1d(8), [WARNING]),
        (sequences(RAGGED).unsqueeze(2).expand(32, 4, 6, 20), nn.BatchNorm2d(8), [WARNING]),
        (sequences(RAGGED).unsqueeze(3).expand(32, 4, 20, 6), nn.BatchNorm2d(8), [WARNING]),
        (letterboxed(0.0), nn.BatchNorm2d(8), [WARNING]),
        (letterboxed(-2.0), nn.BatchNorm2d(8), [WARNING]),
        (in_corners(), nn.BatchNorm2d(8), [WARNING]),
        (drawn_on_black(), nn.BatchNorm2d(8), [NOTE]),
        (sequences(torch.full((32,), 20)), nn.BatchNorm1d(8), []),
        (sequences(torch.full((32,), 12)), nn.BatchNorm1d(8), []),
        (sequences(RAGGED), MaskedBatchNorm1d(8), []),
    ],
    ids=[
        "time",
        "in front",
        "a few steps",
        "width",
        "height",
        "letterbox",
        "dark letterbox",
        "corners",
        "drawings",
        "full",
        "equal lengths",
        "masked",
    ],
)
def test_padding_in_the_statistics_is_found(x: Tensor, norm: nn.Module, found: list[Severity]) -> None:
    conv = nn.Conv1d(4, 8, 3, padding=1, bias=False) if x.dim() == 3 else nn.Conv2d(4, 8, 3, padding=1)
    diagnosis = diagnose(nn.Sequential(conv, norm, nn.ReLU()), [x])
    assert [each.severity for each in diagnosis.of("padding-in-statistics")] == found


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5])
def test_padding_is_looked_for_in_maps_of_any_size(side: int) -> None:
    x = torch.randn(6, 4, side, side, generator=torch.Generator().manual_seed(0)) * (torch.arange(side) < 1)
    found = sighting_of(x, 0, 0).padding
    assert (found is not None) == (side > 2)


def test_padding_is_measured_beside_what_is_not() -> None:
    lengths = torch.tensor([3, 5, 7, 8])
    x = sequences(lengths, 8)
    found = sighting_of(x, 0, 0).padding
    assert found is not None
    assert found.share == 8 / 32  # one last step is no run of its own
    kept = torch.cat([sample[:, :length] for sample, length in zip(x, (3, 5, 8, 8), strict=True)], 1)
    torch.testing.assert_close(found.mean, kept.double().mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.var, kept.double().var(1, correction=0), rtol=1e-5, atol=0)


class Tokens(nn.Module):
    """A linear layer over the last axis, then a batch norm."""

    def __init__(self, features: int, norm: int, arrange: Any = None) -> None:
        super().__init__()
        self.linear, self.norm, self.arrange = nn.Linear(6, features), nn.BatchNorm1d(norm), arrange

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.linear(x))
        return self.norm(y if self.arrange is None else self.arrange(y))


@pytest.mark.parametrize(
    ("features", "norm", "arrange", "found"),
    [
        (10, 10, None, [WARNING]),
        (8, 10, None, [WARNING]),
        (10, 10, lambda y: y.transpose(1, 2), []),
        (10, 10, lambda y: y.permute(0, 2, 1).contiguous(), []),
        (10, 10, lambda y: y.transpose(1, 2).transpose(-1, 1), [WARNING]),
        (8, 8, lambda y: y.flatten(0, 1), []),
        (8, 10, lambda y: y.unsqueeze(1).squeeze(1).view(16, 10, 8), [WARNING]),
        (8, 2, lambda y: y.unflatten(1, (2, 5)).reshape(16, 2, 40), []),
    ],
    ids=["silent", "other size", "transposed", "permuted", "twice", "flattened", "shaped", "cut"],
)
def test_features_on_another_axis_are_found(features: int, norm: int, arrange: Any, found: list[Severity]) -> None:
    x = torch.randn(16, 10, 6, generator=torch.Generator().manual_seed(0))
    diagnosis = diagnose(Tokens(features, norm, arrange).eval(), [x])
    assert [(each.layer, each.severity) for each in diagnosis.of("axis-suspect")] == [("norm", each) for each in found]


class Recurrent(nn.Module):
    """A norm behind a recurrent layer, with as many channels as there are steps or as there are features."""

    def __init__(self, kind: Any, *, turned: bool) -> None:
        super().__init__()
        self.layer, self.norm, self.turned = kind(3, 6, batch_first=True), nn.BatchNorm1d(6), turned

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.layer(x)
        return self.norm(states.transpose(1, 2) if self.turned else states)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
@pytest.mark.parametrize(("turned", "found"), [(False, [WARNING]), (True, [])])
def test_features_of_a_recurrent_layer_are_last(kind: Any, turned: bool, found: list[Severity]) -> None:
    diagnosis = diagnose(Recurrent(kind, turned=turned).eval(), [torch.randn(16, 6, 3)])
    assert [(each.layer, each.severity) for each in diagnosis.of("axis-suspect")] == [("norm", each) for each in found]


class Flat(nn.Module):
    """Normalizes each value of a map by itself."""

    def __init__(self, behind: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.behind = nn.Conv2d(3, 8, 1), nn.BatchNorm1d(8 * 16), behind

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(functional.relu(self.norm(functional.relu(self.conv(x)).flatten(1))))


@pytest.mark.parametrize(
    ("behind", "found"),
    [(nn.Unflatten(1, (8, 4, 4)), [WARNING]), (nn.Unflatten(1, (32, 4)), []), (nn.Linear(128, 2), [])],
)
def test_maps_that_are_flattened_to_be_normalized_are_found(behind: nn.Module, found: list[Severity]) -> None:
    diagnosis = diagnose(Flat(behind).eval(), [torch.randn(16, 3, 4, 4)])
    assert [(each.layer, each.severity) for each in diagnosis.of("axis-suspect")] == [("norm", each) for each in found]


@pytest.mark.parametrize("samples", [16, 0])
def test_a_map_of_one_place_that_is_flattened_has_a_channel_s_statistics(samples: int) -> None:
    """As where channels are weighed: pooled, normalized as rows, and multiplied with the map."""
    layers = (nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), nn.Unflatten(1, (8, 1, 1)))
    assert diagnose(nn.Sequential(*layers).eval(), [torch.randn(samples, 3, 4, 4)]).of("axis-suspect") == ()


def test_rows_of_a_linear_layer_that_become_a_map_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Unflatten(1, (8, 4, 4)))
    assert diagnose(model.eval(), [torch.randn(16, 6)]).of("axis-suspect") == ()


class ChannelsFirst(nn.LayerNorm):
    """As timm's and torchvision's LayerNorm2d."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, -1)).transpose(1, -1)


@pytest.mark.parametrize(
    ("norm", "places", "last", "found"),
    [
        (nn.GroupNorm(2, 8), 8, True, [WARNING]),
        (nn.GroupNorm(2, 8), 8, False, []),
        (nn.GroupNorm(2, 6), 6, True, []),  # other sizes: it was built for the places
        (nn.LayerNorm(8), 8, False, [WARNING]),
        (nn.LayerNorm(8), 8, True, []),
        (nn.LayerNorm(6), 6, False, []),
        (nn.LayerNorm((8, 8)), 8, False, []),
        (ChannelsFirst(8), 8, False, []),
    ],
)
def test_group_and_layer_norms_that_take_places_for_features_are_found(
    norm: nn.Module, places: int, last: bool, found: list[Severity]
) -> None:
    model = nn.Sequential(nn.Conv1d(3, 8, 1), Turned() if last else nn.ReLU(), norm).eval()
    diagnosis = diagnose(model, [torch.randn(4, 3, places)])
    assert [(each.layer, each.severity) for each in diagnosis.of("axis-suspect")] == [("2", each) for each in found]


class Mixer(nn.Module):
    """Mixes tokens, as many as features, beside a stream of which it is not known where its features are."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix, self.last = nn.LayerNorm(8), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.mix(self.norm(x).transpose(1, 2)).transpose(1, 2))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "model",
    [Mixer(), nn.Sequential(nn.LayerNorm((8, 6)), nn.ReLU(), nn.BatchNorm1d(8))],
    ids=["tokens are mixed", "over several dimensions"],
)
def test_a_layer_norm_tells_where_features_are_if_it_is_over_one_dimension(model: nn.Module) -> None:
    size = 8 if isinstance(model, Mixer) else 6
    assert diagnose(model.eval(), [torch.randn(4, 8, size)]).of("axis-suspect") == ()


class Turned(nn.Module):
    """Puts channels last."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


@pytest.mark.parametrize("between", [nn.Identity(), nn.MaxPool2d(2), nn.Upsample(scale_factor=2), "cat"])
def test_maps_with_their_channels_last_are_found_behind_what_joins_and_pools(between: Any) -> None:
    class Maps(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(size)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            y = torch.cat((y, y), 1) if between == "cat" else between(y)
            return self.norm(y.movedim(1, -1)).movedim(-1, 1)

    size = {nn.MaxPool2d: 4, nn.Upsample: 16}.get(type(between), 8)
    found = diagnose(Maps(size).eval(), [torch.randn(8, 3, 8, 8)]).of("axis-suspect")
    assert [(each.layer, each.severity) for each in found] == [("norm", WARNING)]


def test_maps_that_are_made_tokens_are_followed() -> None:
    class Maps(nn.Module):
        def __init__(self, size: int, *, turned: bool) -> None:
            super().__init__()
            self.conv, self.norm, self.turned = nn.Conv2d(3, 4, 1), nn.BatchNorm1d(size), turned

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x).flatten(2)
            return self.norm(y.transpose(1, 2) if self.turned else y)

    x = [torch.randn(8, 3, 6, 6)]
    assert [each.severity for each in diagnose(Maps(36, turned=True).eval(), x).of("axis-suspect")] == [WARNING]
    assert diagnose(Maps(4, turned=False).eval(), x).of("axis-suspect") == ()


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((-1, 4), [WARNING]),
        ((-1, 12), [WARNING]),
        ((8, 144), []),
        ((1, 32, 36), []),
        ((8, 2, 2, 36), []),
    ],
    ids=["rows", "parts", "flattened", "of each sample", "groups"],
)
def test_features_that_a_reshape_cuts_across_are_found(shape: tuple[int, ...], found: list[Severity]) -> None:
    class Reshaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv1d(3, 4, 1), nn.ReLU()
            self.norm = nn.SyncBatchNorm(shape[-1] if len(shape) == 2 else shape[1])

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.act(self.conv(x).reshape(shape)))

    diagnosis = diagnose(Reshaped().eval(), [torch.randn(8, 3, 36)])
    assert [(each.layer, each.severity) for each in diagnosis.of("axis-suspect")] == [("norm", each) for each in found]


def test_signals_with_their_sensors_last_are_found() -> None:
    x = torch.randn(8, 20, 3)
    assert [each.severity for each in diagnose(nn.BatchNorm1d(20).eval(), [x]).of("axis-suspect")] == [WARNING]
    assert diagnose(nn.BatchNorm1d(3).eval(), [x.transpose(1, 2)]).of("axis-suspect") == ()


def test_images_with_their_colours_last_are_found() -> None:
    x = torch.randn(4, 12, 12, 3, generator=torch.Generator().manual_seed(0))
    assert [each.severity for each in diagnose(nn.BatchNorm2d(12).eval(), [x]).of("axis-suspect")] == [WARNING]
    assert diagnose(nn.BatchNorm2d(3).eval(), [x.movedim(3, 1)]).of("axis-suspect") == ()
    memory = x.movedim(3, 1).contiguous(memory_format=torch.channels_last)
    assert diagnose(nn.BatchNorm2d(3).eval(), [memory]).of("axis-suspect") == ()


def test_a_value_changed_in_place_by_what_is_not_followed_is_not_followed() -> None:
    with FeatureAxes() as axes:
        y = functional.linear(torch.ones(2, 3, 4), torch.ones(5, 4))
        assert axes.of(y) == 2
        assert axes.of(y + 1) == 2
        assert axes.of(y @ torch.ones(5, 5)) is None
        y.cumsum_(1)
        assert axes.of(y) is None


class Rounded(nn.Module):
    """Makes a batch norm of torch's give something else, as a wrong kernel does."""

    def __init__(self, off: float) -> None:
        super().__init__()
        self.norm, self.off = nn.BatchNorm2d(1), off

    def forward(self, x: Tensor) -> Tensor:
        with Wrong(self.off):
            y: Tensor = self.norm(x)
        return y


class Wrong(torch.overrides.TorchFunctionMode):
    def __init__(self, off: float) -> None:
        super().__init__()
        self.off = off

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        return output * (1 + self.off) if func is functional.batch_norm else output


@pytest.mark.parametrize(("off", "found"), [(0.1, [WARNING]), (1e-4, [NOTE]), (1e-7, []), (0.0, [])])
def test_a_kernel_that_is_off_from_the_formula_is_found(off: float, found: list[Severity]) -> None:
    diagnosis = diagnose(Rounded(off).eval(), batches(2))
    assert [(each.layer, each.severity) for each in diagnosis.of("backend-parity")] == [
        ("norm", each) for each in found
    ]
    for each in diagnosis.of("backend-parity"):
        assert each.numbers["error"] > off  # type: ignore[operator]


NORMS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.BatchNorm1d(6), (16, 6)),
    (nn.BatchNorm2d(6), (8, 6, 5, 5)),
    (nn.GroupNorm(2, 6), (8, 6, 5, 5)),
    (nn.LayerNorm(6), (8, 5, 6)),
    (nn.LayerNorm((5, 6), bias=False), (8, 5, 6)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("norm", "shape"), NORMS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_rounding_is_no_disagreement(norm: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, mean: float) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + mean
    evidence = observe(norm.eval().to(dtype), [x.to(dtype)])
    assert evidence.batches is not None
    assert {name: each.error for name, each in evidence.batches.parity.items()} == {"": 0.0}


def test_a_norm_without_a_formula_of_stored_numbers_is_left_out() -> None:
    evidence = observe(GatedBatchNorm1d(6).eval(), [torch.randn(8, 6)])
    assert evidence.batches is not None
    assert evidence.batches.parity == {}


def test_a_few_samples_are_kept_spread_over_the_batch() -> None:
    x = torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(0))
    found: Sighting = sighting_of(x, 0, 0)
    assert len(found.at) == 16
    assert found.at[-1] >= 46
    torch.testing.assert_close(found.sample_means, x.mean(2)[list(found.at)])


@pytest.mark.parametrize("shape", [(16, 40), (16, 40, 1, 1)])
def test_single_positions_are_independent_values_and_nothing_else(shape: tuple[int, ...]) -> None:
    """Estimated from four of 16 samples it varied by a third from batch to batch, and warned of 11 values."""
    for seed in range(5):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        assert sighting_of(x, 0, 0).noise == pytest.approx(1.0, rel=1e-5)


def test_calls_of_other_batch_sizes_are_seen_in_their_order() -> None:
    """Halves of a batch, thirds of it, and all of it through one layer; each has its own samples."""
    x = torch.randn(12, 3, 4, generator=torch.Generator().manual_seed(0))
    seen: list[Sighting] = []
    norm = nn.BatchNorm1d(3).eval()
    with watching({norm: seen}, 5):
        for part in (x[:6], x[:4], x, x[6:]):
            norm(part)
    assert [(each.batch, each.call, each.samples) for each in seen] == [(5, 0, 6), (5, 1, 4), (5, 2, 12), (5, 3, 6)]
    for each, part in zip(seen, (x[:6], x[:4], x, x[6:]), strict=True):
        alone = sighting_of(part, 5, each.call)
        torch.testing.assert_close(each.mean, part.double().mean((0, 2)), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(each.var, part.double().var((0, 2), correction=0), rtol=1e-5, atol=0)
        torch.testing.assert_close(each.sample_vars, part.var(2, correction=0)[list(each.at)])
        assert each.noise == pytest.approx(alone.noise)


def test_channels_that_do_not_vary_say_nothing_of_noise() -> None:
    assert sighting_of(torch.ones(4, 3, 2), 0, 0).noise == 1.0
