"""Each check fires on a model with its fault, at the right layer, and is silent on one that only looks like it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from steadynorm.doctor import CHECKS, Severity, diagnose
from steadynorm.doctor.check import SECTIONS
from steadynorm.surgery import freeze_
from tests.support.doctor import batches
from tests.support.foreign import FOREIGN

STATE = [name for name, check in CHECKS.items() if not check.needs]


class Residual(nn.Module):
    """A block whose order no container tells."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.norm(self.conv(x)).relu()


def trained(batches: int = 400) -> nn.Sequential:
    """A small network with the statistics and weights of a training."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        Residual(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8, 10),
    )
    for norm in norms(model):
        with torch.no_grad():
            norm.running_mean.copy_(torch.randn(8, generator=generator))
            norm.running_var.copy_(torch.rand(8, generator=generator) + 0.5)
            norm.weight.copy_(torch.rand(8, generator=generator) + 0.5)
            norm.bias.copy_(torch.randn(8, generator=generator))
            norm.num_batches_tracked.fill_(batches)
    return model


def norms(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]


def edit(change: Callable[[Any], object]) -> Callable[[], nn.Module]:
    """A trained network whose first batch norm is changed."""

    def build() -> nn.Module:
        model = trained()
        with torch.no_grad():
            change(norms(model)[0])
        return model

    return build


def edit_model(change: Callable[[Any], object], model: Callable[[], nn.Module] = trained) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        built = model()
        with torch.no_grad():
            change(built)
        return built

    return build


def set_(**attributes: Any) -> Callable[[Any], None]:
    def change(norm: Any) -> None:
        for name, value in attributes.items():
            setattr(norm, name, value)

    return change


def fresh(**options: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, **options), nn.ReLU(), nn.Conv2d(8, 3, 3))


def reset_counter(norm: Any, batches: int, momentum: float) -> None:
    norm.momentum = momentum
    norm.num_batches_tracked.fill_(batches)


def follow(norm: Any, batches: int, momentum: float, mean: float = 3.0, var: float = 9.0) -> None:
    """What so many batches of given moments make of a new layer."""
    weight = (1 - momentum) ** batches
    norm.running_mean.fill_((1 - weight) * mean)
    norm.running_var.fill_(weight + (1 - weight) * var)
    reset_counter(norm, batches, momentum)


class Switchable(nn.Module):
    """Names it where it would be switched on, as transformers' models do."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def enable(self) -> None:
        self.rerun = lambda function, *arguments: checkpoint(function, *arguments, use_reentrant=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


class Inside(Switchable):
    """Calls it in a method of its forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(x)

    def again(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.norm, x, use_reentrant=False)


def plain_average(model: Any) -> None:
    """Measured over 20 batches, the momentum put back: one variance is smaller than a start at 1 would leave."""
    for norm, var in zip(norms(model), (0.3, 0.05), strict=False):
        reset_counter(norm, 20, 0.1)
        norm.running_var.fill_(var)


class Custom(nn.BatchNorm2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


class Holder(nn.Module):
    def __init__(self, held: object) -> None:
        super().__init__()
        self.held = held
        self.norm = nn.BatchNorm2d(3)


def copied(change: Callable[[Any], object]) -> Callable[[], nn.Module]:
    """A trained network and a frozen copy of it, whose first norm is changed."""

    def build() -> nn.Module:
        pair = nn.ModuleDict({"model": trained(), "average": trained().requires_grad_(False).eval()})
        pair["average"].load_state_dict(pair["model"].state_dict())
        change(norms(pair["average"])[0])
        return pair

    return build


class GradSampleModule(nn.Sequential):
    """Named as Opacus names its wrapper."""


def flagged(name: str, norm: nn.Module) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), norm, nn.Conv2d(8, 3, 3))
    vars(model)[name] = True
    return model


class Checkpointed(nn.Module):
    """Runs a norm again in the backward, by its own code."""

    def __init__(self, norm: nn.Module, **flags: bool) -> None:
        super().__init__()
        self.norm, self.other = norm, nn.SyncBatchNorm(8)
        vars(self).update(flags)

    def forward(self, x: torch.Tensor) -> Any:
        return self.other(checkpoint(self.norm, x, use_reentrant=False))


class Rerun(Checkpointed):
    """By another name, and of something that is not told."""

    def forward(self, x: torch.Tensor) -> Any:
        def run(y: torch.Tensor) -> Any:
            return self.norm(y)

        return torch.utils.checkpoint.checkpoint(run, x)


class Switched(Checkpointed):
    """By a flag of its own."""

    def forward(self, x: torch.Tensor) -> Any:
        from torch.utils import checkpoint as saving

        return saving.checkpoint(self.norm, x) if self.thrifty else self.norm(x)


def sequence(*modules: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*modules, nn.ReLU(), nn.Linear(8, 2))


FAULTS: list[tuple[str, str, Severity, Callable[[], nn.Module]]] = [
    ("nonfinite-statistics", "0.1", Severity.ERROR, edit(lambda norm: norm.running_mean[3].fill_(torch.nan))),
    ("nonfinite-statistics", "0.1", Severity.ERROR, edit(lambda norm: norm.running_var[3].fill_(torch.inf))),
    ("negative-variance", "0.1", Severity.ERROR, edit(lambda norm: norm.running_var[7].fill_(-1e-12))),
    ("statistics-at-init", "0.1", Severity.ERROR, edit(lambda norm: norm.reset_running_stats())),
    (
        "statistics-at-init",
        "0.1",
        Severity.ERROR,
        edit(lambda norm: (norm.running_mean.zero_(), norm.running_var.fill_(1))),
    ),
    (
        "statistics-at-init",
        "0.1",
        Severity.NOTE,
        edit_model(lambda model: model[0].__setitem__(1, nn.BatchNorm2d(8))),
    ),
    ("statistics-horizon", "0.1", Severity.WARNING, edit(lambda norm: follow(norm, 20, 0.01))),
    ("mixed-modes", "0.1", Severity.WARNING, edit_model(lambda model: model.eval()[0][1].train())),
    ("mixed-modes", "0.1", Severity.NOTE, edit(lambda norm: norm.eval())),
    ("frozen-affine-live-statistics", "0.1", Severity.WARNING, edit(lambda norm: norm.requires_grad_(False))),
    ("hidden-module", "held[0]", Severity.WARNING, lambda: Holder([nn.BatchNorm2d(3)])),
    ("hidden-module", "held[0]", Severity.WARNING, lambda: Holder([nn.BatchNorm2d(3).eval()])),
    ("hidden-module", "held[0]", Severity.WARNING, lambda: Holder([nn.BatchNorm2d(3).requires_grad_(False)])),
    ("hidden-module", "held[0]", Severity.NOTE, lambda: Holder([nn.BatchNorm2d(3).requires_grad_(False).eval()])),
    ("momentum-convention", "0.1", Severity.WARNING, edit(set_(momentum=0.99))),
    ("momentum-convention", "0.1", Severity.WARNING, edit(set_(momentum=0.0))),
    ("momentum-convention", "0.1", Severity.ERROR, edit(set_(momentum=1.5))),
    ("momentum-convention", "0.1", Severity.ERROR, edit(set_(momentum=-0.1))),
    ("track-flag-inconsistent", "0.1", Severity.WARNING, edit(set_(track_running_stats=False))),
    ("track-flag-inconsistent", "0.1", Severity.WARNING, edit(set_(running_mean=None, running_var=None))),
    ("low-precision-statistics", "0.1", Severity.WARNING, edit(lambda norm: norm.bfloat16())),
    ("low-precision-statistics", "0.1", Severity.NOTE, edit_model(lambda model: model.eval()[0][1].half())),
    ("mixed-eps", "1.norm", Severity.WARNING, edit_model(lambda model: set_(eps=0.5)(model[1].norm))),
    ("dropout-before-norm", "1", Severity.WARNING, sequence(nn.Dropout(0.3), nn.BatchNorm1d(8))),
    (
        "dropout-before-norm",
        "3",
        Severity.WARNING,
        sequence(nn.Dropout(0.3), nn.Linear(8, 8), nn.ReLU(), nn.BatchNorm1d(8)),
    ),
    ("degenerate-group-norm", "0", Severity.NOTE, lambda: nn.Sequential(nn.GroupNorm(8, 8))),
    ("transform-unsafe", "0", Severity.ERROR, lambda: GradSampleModule(nn.BatchNorm1d(3))),
    (
        "sync-with-checkpoint",
        "1",
        Severity.WARNING,
        lambda: flagged("gradient_checkpointing", nn.SyncBatchNorm(8)),
    ),
    ("sync-with-checkpoint", "norm", Severity.WARNING, lambda: Checkpointed(nn.SyncBatchNorm(8))),
    ("sync-with-checkpoint", "norm", Severity.WARNING, lambda: Switched(nn.SyncBatchNorm(8), thrifty=True)),
    ("sync-with-checkpoint", "norm", Severity.WARNING, lambda: Inside(nn.SyncBatchNorm(8))),
    ("sync-in-inference", "0", Severity.NOTE, lambda: nn.Sequential(nn.SyncBatchNorm(8)).eval()),
    ("lossy-subclass", "0", Severity.NOTE, lambda: nn.Sequential(Custom(8))),
    ("dead-channel", "0.1", Severity.NOTE, edit(lambda norm: norm.weight[2].zero_())),
    ("dead-channel", "0.1", Severity.NOTE, edit(lambda norm: norm.weight[2].fill_(1e-8))),
    ("dead-channel", "0.1", Severity.WARNING, edit(lambda norm: norm.weight[: len(norm.weight) // 2 + 1].zero_())),
    ("dead-channel", "0.1", Severity.NOTE, edit(lambda norm: norm.weight[: len(norm.weight) // 2].zero_())),
    ("dead-channel", "0.1", Severity.WARNING, edit(lambda norm: norm.weight.zero_())),
    ("near-zero-variance", "0.1", Severity.NOTE, edit(lambda norm: norm.running_var[:2].fill_(1e-8))),
    ("fp16-unsafe-variance", "0.1", Severity.NOTE, edit(lambda norm: norm.running_var[2].fill_(1e5))),
    ("fp16-unsafe-variance", "0.1", Severity.NOTE, edit(lambda norm: norm.running_mean[2].fill_(-1e5))),
    ("norm-near-output", "1", Severity.NOTE, lambda: nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8))),
    (
        "norm-near-output",
        "0.1",
        Severity.NOTE,
        lambda: nn.Sequential(nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Identity())),
    ),
    (
        "copied-statistics-mismatch",
        "average.0.1",
        Severity.WARNING,
        copied(lambda norm: norm.running_mean.add_(1)),
    ),
    ("redundant-bias", "0", Severity.NOTE, sequence(nn.Linear(3, 8), nn.BatchNorm1d(8))),
]


def fresh_with_drawn_weights() -> nn.Module:
    """A new network whose γ are drawn at random, as those of timm's RepVGG are."""
    model = fresh()
    for norm in norms(model):
        nn.init.normal_(norm.weight, 0, 0.1)
    return model


HEALTHY: list[tuple[str, Callable[[], nn.Module]]] = [
    ("nonfinite-statistics", trained),
    ("negative-variance", edit(lambda norm: norm.running_var[7].zero_())),
    ("statistics-at-init", fresh),
    ("statistics-at-init", edit(lambda norm: norm.running_mean.zero_())),
    ("statistics-at-init", edit(lambda norm: norm.running_var.fill_(1))),
    ("statistics-horizon", edit(lambda norm: follow(norm, 600, 0.01))),
    ("statistics-horizon", edit(lambda norm: follow(norm, 20, 0.01, mean=0.0, var=1.0))),
    ("statistics-horizon", edit(lambda norm: (reset_counter(norm, 5, 0.1), norm.running_var.fill_(0.3)))),
    ("statistics-horizon", edit(lambda norm: follow(norm, 0, 0.1))),
    ("statistics-horizon", edit_model(plain_average)),
    ("mixed-modes", trained),
    ("mixed-modes", edit_model(lambda model: model.eval())),
    ("mixed-modes", edit_model(lambda model: freeze_(model.train()) and model.eval()[0][1].train())),
    ("frozen-affine-live-statistics", trained),
    ("frozen-affine-live-statistics", edit(lambda norm: norm.requires_grad_(False).eval())),
    ("frozen-affine-live-statistics", edit(lambda norm: norm.weight.requires_grad_(False))),
    ("frozen-affine-live-statistics", edit_model(freeze_)),
    ("frozen-affine-live-statistics", lambda: fresh(affine=False)),
    ("hidden-module", lambda: Holder([nn.Linear(3, 3)])),
    ("statistics-at-init", fresh_with_drawn_weights),
    ("momentum-convention", edit(set_(momentum=0.5))),
    ("momentum-convention", edit(set_(momentum=0.49))),
    ("momentum-convention", edit(set_(momentum=None))),
    ("momentum-convention", edit_model(lambda model: freeze_(model) and set_(momentum=0.99)(model[0][1]))),
    ("momentum-convention", edit(set_(momentum=0.99, running_mean=None, running_var=None))),
    ("track-flag-inconsistent", lambda: fresh(track_running_stats=False)),
    ("low-precision-statistics", edit(lambda norm: norm.double())),
    ("mixed-eps", edit(set_(eps=2e-5))),
    ("mixed-eps", edit_model(lambda model: [set_(eps=0.5)(norm) for norm in norms(model)])),
    ("dropout-before-norm", trained),
    ("dropout-before-norm", sequence(nn.Dropout(0.01), nn.BatchNorm1d(8))),
    ("dropout-before-norm", sequence(nn.BatchNorm1d(8), nn.Dropout(0.3))),
    ("dropout-before-norm", sequence(nn.Dropout(0.3), Residual(8), nn.BatchNorm2d(8))),
    ("degenerate-group-norm", lambda: nn.Sequential(nn.GroupNorm(4, 8), nn.GroupNorm(1, 1))),
    ("transform-unsafe", edit(lambda norm: None)),
    ("transform-unsafe", lambda: GradSampleModule(nn.BatchNorm1d(3)).eval()),
    ("sync-with-checkpoint", lambda: flagged("gradient_checkpointing", nn.BatchNorm2d(8))),
    ("sync-with-checkpoint", lambda: flagged("something_else", nn.SyncBatchNorm(8))),
    ("sync-with-checkpoint", lambda: Checkpointed(nn.BatchNorm2d(8))),
    ("sync-with-checkpoint", lambda: Switched(nn.SyncBatchNorm(8), thrifty=False)),
    ("sync-with-checkpoint", lambda: Switchable(nn.SyncBatchNorm(8))),
    ("sync-in-inference", lambda: nn.Sequential(nn.SyncBatchNorm(8))),
    ("lossy-subclass", trained),
    ("dead-channel", edit(lambda norm: norm.weight[2].fill_(1e-5))),
    ("dead-channel", edit(lambda norm: norm.weight.mul_(1e-7))),
    ("dead-channel", edit(lambda norm: (norm.weight.zero_(), norm.num_batches_tracked.fill_(3)))),
    ("near-zero-variance", edit(lambda norm: norm.running_var[0].fill_(1e-8))),
    ("near-zero-variance", edit(lambda norm: (norm.running_var[:2].fill_(1e-8), norm.weight[:2].zero_()))),
    ("fp16-unsafe-variance", edit(lambda norm: norm.running_var[2].fill_(6e4))),
    ("norm-near-output", trained),
    ("norm-near-output", lambda: nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 2))),
    ("copied-statistics-mismatch", copied(lambda norm: norm.running_mean.add_(0.1))),
    ("redundant-bias", sequence(nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8))),
    ("redundant-bias", sequence(nn.Linear(3, 8), nn.ReLU(), nn.BatchNorm1d(8))),
    ("redundant-bias", edit_model(freeze_, sequence(nn.Linear(3, 8), nn.BatchNorm1d(8)))),
]


def numbered(cases: list[Any]) -> list[str]:
    return [f"{case[0]}-{at}" for at, case in enumerate(cases)]


@pytest.mark.parametrize(("check", "layer", "severity", "build"), FAULTS, ids=numbered(FAULTS))
def test_a_fault_is_found_at_its_layer(
    check: str, layer: str, severity: Severity, build: Callable[[], nn.Module]
) -> None:
    found = diagnose(build()).of(check)
    assert [(each.layer, each.severity) for each in found] == [(layer, severity)]


@pytest.mark.parametrize(("check", "build"), HEALTHY, ids=numbered(HEALTHY))
def test_what_only_looks_like_a_fault_is_none(check: str, build: Callable[[], nn.Module]) -> None:
    diagnosis = diagnose(build())
    assert diagnosis.of(check) == ()
    assert check in diagnosis.checks


def test_what_a_warning_explains_is_a_note_and_is_treated_all_the_same(healthy: nn.Sequential) -> None:
    model: Any = copy.deepcopy(healthy)
    with torch.no_grad():
        for each in (model[1].weight, model[1].bias):
            each[:5] = 0
    diagnosis = diagnose(model, batches())
    assert [each.check for each in diagnosis if each.severity == Severity.WARNING] == ["dead-channel"]
    (stale,) = diagnosis.of("needs-recalibration")
    assert stale.severity == Severity.NOTE
    assert stale.problem.endswith("That comes of what dead-channel has found.")
    assert stale.remedy.treatment == "recalibrate"


@pytest.mark.parametrize(("decay", "severity"), [(0.05, Severity.NOTE), (5e-4, Severity.WARNING)])
def test_a_strong_decay_explains_a_gap(healthy: nn.Sequential, decay: float, severity: Severity) -> None:
    model: Any = copy.deepcopy(healthy)
    model[4].running_mean.add_(5 * model[4].running_var.sqrt())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=decay)
    found = diagnose(model, batches(), optimizer=optimizer).of("train-eval-gap")
    assert {each.severity for each in found} == {severity}


def test_what_runs_again_but_is_not_told_is_the_whole_module() -> None:
    found = diagnose(Rerun(nn.SyncBatchNorm(8))).of("sync-with-checkpoint")
    assert [each.layer for each in found] == ["norm", "other"]


def test_an_eps_that_a_part_of_the_model_has_throughout_is_a_note() -> None:
    def part(eps: float) -> nn.Module:
        return nn.Sequential(*(nn.BatchNorm1d(4, eps=eps) for _ in range(3)))

    body = nn.Sequential(part(1e-3), part(1e-3))
    model: Any = nn.ModuleDict({"body": body, "head": part(1e-5)})
    for norm in norms(model):
        norm.running_var.fill_(1e-4)
    assert {each.severity for each in diagnose(model).of("mixed-eps")} == {Severity.NOTE}
    for norm in model["head"]:
        norm.eps = 0.8
    assert {each.severity for each in diagnose(model).of("mixed-eps")} == {Severity.WARNING}
    model["head"] = part(1e-5)
    for norm in model["head"]:
        norm.running_var.fill_(1e-4)
    model["head"][1].eps = 1e-4
    assert {each.severity for each in diagnose(model).of("mixed-eps")} == {Severity.WARNING}


def test_a_trained_network_has_no_finding() -> None:
    assert list(diagnose(trained())) == []


@pytest.mark.parametrize("check", STATE)
def test_every_check_that_reads_the_state_alone_has_a_fault_and_a_healthy_case(check: str) -> None:
    assert any(name == check for name, *_ in FAULTS)
    assert any(name == check for name, _ in HEALTHY)


@pytest.mark.parametrize("decay", [0.0, 1e-4])
def test_weight_decay_of_a_norm_is_noted(decay: float) -> None:
    model = trained()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=decay)
    found = diagnose(model, optimizer=optimizer).of("decayed-affine")
    assert [each.layer for each in found] == (["0.1", "1.norm"] if decay else [])


@pytest.mark.parametrize(
    ("options", "severity"),
    [
        ({"lr": 0.1, "weight_decay": 5e-4, "momentum": 0.9}, Severity.NOTE),
        ({"lr": 0.1, "weight_decay": 0.05, "momentum": 0.9}, Severity.WARNING),
        ({"lr": 0.4, "weight_decay": 5e-4, "momentum": 0.9}, Severity.NOTE),
        ({"lr": 1.0, "weight_decay": 0.0045}, Severity.NOTE),  # ln 2 / 0.0045 = 154 steps
        ({"lr": 1.0, "weight_decay": 0.0048}, Severity.WARNING),  # 144 steps
    ],
)
def test_a_decay_that_halves_a_norm_in_a_few_steps_is_a_warning(options: dict[str, float], severity: Severity) -> None:
    model = trained()
    optimizer = torch.optim.SGD(model.parameters(), **options)
    assert {each.severity for each in diagnose(model, optimizer=optimizer).of("decayed-affine")} == {severity}
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)  # at the end of a schedule
    assert {each.severity for each in diagnose(model, optimizer=optimizer).of("decayed-affine")} == {severity}


@pytest.mark.parametrize("check", CHECKS.values(), ids=lambda check: check.name)
def test_each_check_explains_itself(check: Any) -> None:
    sections = check.sections()
    assert list(sections) == list(SECTIONS)
    assert all(text.endswith((".", ")")) for text in sections.values())
    assert check.title.endswith(".")


@pytest.mark.parametrize("build", FOREIGN.values(), ids=FOREIGN)
def test_a_new_layer_of_another_package_is_not_taken_for_one_that_lost_its_statistics(build: Any) -> None:
    assert diagnose(nn.Sequential(build(3))).of("statistics-at-init") == ()


@pytest.mark.parametrize(
    ("batches", "training", "severity"),
    [(60, True, Severity.NOTE), (60, False, Severity.WARNING), (20, True, Severity.WARNING)],
)
def test_a_start_that_a_training_is_about_to_forget_is_a_note(batches: int, training: bool, severity: Severity) -> None:
    norm = nn.BatchNorm2d(3).train(training)
    follow(norm, batches, 0.1, var=1e-3)
    assert [each.severity for each in diagnose(nn.Sequential(norm)).of("statistics-horizon")] == [severity]
