"""Faults of how a model is built and used, as they are put into it by hand, and what only looks like them."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from steadynorm.doctor import Severity, diagnose

NOTE, WARNING = Severity.NOTE, Severity.WARNING
KNOWN = nn.BatchNorm1d(3)


class Calls(nn.Module):
    """Holds something, and calls it."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held

    def forward(self, x: Tensor) -> Tensor:
        return self.held(x)


class Globally(nn.Module):
    """Calls what stands in its file."""

    def forward(self, x: Tensor) -> Tensor:
        return KNOWN(x)


def by_default(norm: nn.Module) -> Any:
    def call(x: Tensor, layer: nn.Module = norm) -> Any:
        return layer(x)

    return call


def by_keyword(norm: nn.Module) -> Any:
    def call(x: Tensor, *, layer: nn.Module = norm) -> Any:
        return layer(x)

    return call


def hooked() -> nn.Module:
    model, norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
    model.register_forward_hook(lambda module, given, y: norm(y))
    return model


@pytest.mark.parametrize(
    "model",
    [Calls(by_default(nn.BatchNorm1d(3))), Calls(by_keyword(nn.BatchNorm1d(3))), hooked(), Globally()],
    ids=["default", "keyword", "hook", "global"],
)
def test_a_norm_that_a_function_takes_is_found(model: nn.Module) -> None:
    assert [each.severity for each in diagnose(model).of("hidden-module")] == [WARNING]


encoder = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))


class Encoding(nn.Module):
    """Has an encoder of its own, of the name that another has in the same file."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)  # type: ignore[no-any-return]


def test_an_attribute_may_be_called_as_a_global_is() -> None:
    assert diagnose(Encoding()).of("hidden-module") == ()


class Own(nn.Module):
    """Keeps running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))


def test_a_norm_of_ones_own_that_is_left_in_training_is_found() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Own()).eval()
    assert diagnose(model).of("mixed-modes") == ()
    model[1].train()
    assert [(each.layer, each.severity) for each in diagnose(model).of("mixed-modes")] == [("1", WARNING)]


def changed(norm: nn.Module, **attributes: Any) -> nn.Module:
    for name, value in attributes.items():
        setattr(norm, name, value)
    return norm


@pytest.mark.parametrize(
    ("norm", "found"),
    [
        (changed(nn.BatchNorm1d(3, momentum=None), num_batches_tracked=None), [WARNING]),
        (changed(nn.BatchNorm1d(3), num_batches_tracked=None), []),
        (nn.BatchNorm1d(3, momentum=None), []),
        (changed(nn.InstanceNorm1d(3, track_running_stats=True), track_running_stats=False), [WARNING]),
        (nn.InstanceNorm1d(3, track_running_stats=True), []),
        (nn.InstanceNorm1d(3), []),
    ],
)
def test_a_counter_or_a_flag_that_buffers_do_not_bear_out_is_found(norm: nn.Module, found: list[Severity]) -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 1), norm)
    assert [each.severity for each in diagnose(model).of("track-flag-inconsistent")] == found


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_statistics_that_are_no_numbers_on_one_rank_are_found(value: float) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    states = [{name: each.clone() for name, each in model.state_dict().items()} for _ in range(3)]
    states[2]["1.running_var"][1] = value
    (found,) = diagnose(model, ranks=states).of("rank-divergence")
    assert (found.layer, found.severity, found.numbers["rank"]) == ("1", Severity.ERROR, 2)
    for state in states:
        state["1.running_var"][1] = value
    assert diagnose(model, ranks=states).of("rank-divergence") == ()


@pytest.mark.parametrize(
    ("norm", "shape", "found"),
    [
        (nn.GroupNorm(4, 4), (8, 4, 1, 1), [WARNING]),
        (nn.GroupNorm(4, 4), (8, 4, 6, 6), [NOTE]),
        (nn.GroupNorm(4, 4), (8, 4, 64), [NOTE]),
        (nn.GroupNorm(4, 4), (8, 4, 65), []),
        (nn.GroupNorm(2, 4), (8, 4, 6, 6), []),
        (nn.InstanceNorm2d(4), (8, 4, 6, 6), []),
        (nn.LayerNorm(1), (8, 4, 1), [WARNING]),
        (nn.LayerNorm(4), (8, 1, 4), []),
    ],
)
def test_norms_of_single_channels_or_values_are_found(norm: nn.Module, shape: Any, found: list[Severity]) -> None:
    diagnosis = diagnose(nn.Sequential(norm, nn.ReLU()).eval(), [torch.randn(*shape)])
    assert [each.severity for each in diagnosis.of("degenerate-group-norm")] == found


class Private(nn.Module):
    """Takes gradients sample by sample by its own code."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def gradients(self, x: Tensor) -> Any:
        def loss(parameters: Any, each: Tensor) -> Tensor:
            return torch.func.functional_call(self, parameters, each[None]).sum()

        return torch.func.vmap(torch.func.grad(loss), (None, 0))(dict(self.named_parameters()), x)


class Mapped(nn.Module):
    """Maps over something else."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(torch.dot)(x, x)


class DPOptimizer(torch.optim.SGD):
    """Named as Opacus names it."""


def test_gradients_per_sample_are_told_by_what_takes_them() -> None:
    def found(model: nn.Module, **options: Any) -> list[str]:
        return [each.layer for each in diagnose(model, **options).of("transform-unsafe")]

    plain = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    assert found(Private()) == ["norm"]
    assert found(Mapped()) == found(plain) == []
    assert found(plain, optimizer=torch.optim.SGD(plain.parameters(), 0.1)) == []
    assert found(plain, optimizer=DPOptimizer(plain.parameters(), 0.1)) == ["1"]
    plain[0].weight.grad_sample = None
    assert found(plain) == ["1"]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))


def test_what_the_optimizer_leaves_out_is_frozen() -> None:
    def found(model: nn.Module, *groups: Any) -> list[str]:
        optimizer = torch.optim.SGD(groups, 0.1)
        return [each.layer for each in diagnose(model, optimizer=optimizer).of("frozen-affine-live-statistics")]

    model = network()
    backbone, head = [*model[0].parameters(), *model[1].parameters()], list(model[3].parameters())
    assert found(model, {"params": head}) == ["1"]
    assert found(model, {"params": head}, {"params": backbone, "lr": 0.0}) == ["1"]
    assert found(model, {"params": head}, {"params": backbone}) == []
    assert found(model, {"params": [each for each in model.parameters() if each.dim() > 1]}) == []  # as Muon does
    assert found(model, {"params": [each for each in model.parameters() if each.dim() == 1]}) == []
    assert found(model.eval(), {"params": head}) == []


def test_a_frozen_copy_that_follows_may_normalize_by_the_batch() -> None:
    """As the targets of BYOL and MoCo; a frozen teacher with the very weights of its student drifts by mistake."""

    def found(distance: float) -> list[Severity]:
        online = network()
        target = copy.deepcopy(online).requires_grad_(False)
        with torch.no_grad():
            target[0].weight.add_(distance * target[0].weight)
        model = nn.ModuleDict({"online": online, "target": target})
        diagnosis = diagnose(model).of("frozen-affine-live-statistics")
        assert {each.layer for each in diagnosis} == {"target.1"}
        return [each.severity for each in diagnosis]

    assert found(0.0) == [WARNING]
    assert found(0.1) == [NOTE]
    assert found(2.0) == [WARNING]  # no copy


class Moving(nn.Module):
    """Batch norm as a textbook writes it: its estimates are plain tensors."""

    def __init__(self, *, right: bool = True, always: bool = False) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(1, 3)), nn.Parameter(torch.zeros(1, 3))
        self.moving_mean, self.moving_var = torch.zeros(1, 3), torch.full((1, 3), 4.0)
        self.right, self.always = right, always

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.moving_mean, self.moving_var if self.right or self.training else self.moving_var.square()
        if self.training or self.always:
            batch_mean, batch_var = x.mean(0, keepdim=True), x.var(0, keepdim=True, unbiased=False)
            self.moving_mean = (0.9 * self.moving_mean + 0.1 * batch_mean).detach()
            self.moving_var = (0.9 * self.moving_var + 0.1 * batch_var).detach()
            mean, var = (batch_mean, batch_var) if self.training else (mean, var)
        return self.gamma * (x - mean) / (var + 1e-5).sqrt() + self.beta


class Reversible(nn.Module):
    """Keeps what its input shows, to undo it later."""

    def forward(self, x: Tensor) -> Tensor:
        self.mean, self.std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
        return (x - self.mean) / self.std


class Functional(nn.Module):
    """Calls batch norm's function, always in training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, self.mean, self.var, training=True)


@pytest.mark.parametrize(
    ("layer", "check"),
    [
        (Moving(), None),
        (Moving(right=False), "backend-parity"),
        (Moving(always=True), "statistics-moved-in-eval"),
        (Functional(), "statistics-moved-in-eval"),
        (Reversible(), None),
    ],
    ids=["right", "without root", "moves", "function", "reversible"],
)
def test_running_estimates_by_other_names_are_found(layer: nn.Module, check: str | None) -> None:
    model = nn.Sequential(nn.Linear(4, 3), layer, nn.ReLU()).eval()
    model(torch.randn(8, 4))
    held = {name: each for name, each in vars(layer).items() if isinstance(each, Tensor)}
    values = {name: each.clone() for name, each in held.items()}
    diagnosis = diagnose(model, [2 * torch.randn(32, 4)])
    found = {each.check for each in diagnosis if each.severity >= WARNING}
    assert found - {"batch-dependence"} == ({check} if check else set())
    assert all(each.layer == "1" for each in diagnosis if each.severity >= WARNING)
    assert all(vars(layer)[name] is each and torch.equal(each, values[name]) for name, each in held.items())


def partly(module: nn.Module) -> Any:
    return functools.partial(checkpoint, module.forward, use_reentrant=False)


def closed(module: nn.Module) -> Any:
    forward = module.forward
    return lambda x: checkpoint(forward, x, use_reentrant=False)


def harmless(module: nn.Module) -> Any:
    forward = module.forward
    return lambda x: forward(x)


@pytest.mark.parametrize(("replace", "found"), [(partly, True), (closed, True), (harmless, False)])
@pytest.mark.parametrize("block", [True, False])
def test_checkpointing_that_is_set_on_an_instance_is_found(replace: Any, found: bool, block: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.SyncBatchNorm(3), nn.ReLU()))
    part = model[1] if block else model[1][0]
    part.forward = replace(part)
    assert [each.layer for each in diagnose(model).of("sync-with-checkpoint")] == ["1.0"] * found


@pytest.mark.parametrize(
    ("still", "learns", "found"), [(1, True, [WARNING]), (1, False, [NOTE]), (3, True, [NOTE] * 3)]
)
def test_a_layer_that_was_left_in_evaluation_is_a_warning(still: int, learns: bool, found: list[Severity]) -> None:
    model = nn.Sequential(*(nn.BatchNorm2d(3) for _ in range(5 if still == 1 else 15))).train()
    for norm in model[:still]:
        norm.eval().requires_grad_(learns)
    assert [each.severity for each in diagnose(model).of("mixed-modes")] == found


class Virtual(nn.Module):
    """Normalizes pieces of the batch in training."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm, self.size = nn.BatchNorm1d(6), size

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.norm(each) for each in x.split(self.size)]) if self.training else self.norm(x)


@pytest.mark.parametrize(("size", "found"), [(2, [WARNING]), (32, [])])
def test_pieces_of_the_batch_that_training_normalizes_are_counted(size: int, found: list[Severity]) -> None:
    model = nn.Sequential(nn.Linear(6, 6), Virtual(size), nn.Linear(6, 2)).train()
    x = torch.randn(256, 6, generator=torch.Generator().manual_seed(0))
    assert [each.severity for each in diagnose(model, list(x.split(64))).of("statistics-noise")] == found


def test_a_layer_that_is_called_twice_on_the_whole_batch_is_called_on_no_pieces() -> None:
    norm = nn.BatchNorm1d(6)
    model = nn.Sequential(nn.Linear(6, 6), norm, nn.Linear(6, 6), norm).train()
    x = torch.randn(256, 6, generator=torch.Generator().manual_seed(0))
    assert diagnose(model, list(x.split(64))).of("statistics-noise") == ()


@pytest.mark.parametrize(("left", "found"), [(2, [WARNING]), (6, [])])
def test_a_class_of_ones_own_that_is_batch_norm_in_most_channels_is_to_be_so_in_all(
    left: int, found: list[Severity]
) -> None:
    class Short(nn.BatchNorm1d):
        def forward(self, input: Tensor) -> Tensor:
            y = super().forward(input)
            return torch.cat((y[:, :-left], 3 * input[:, -left:]), 1)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), Short(8)).eval()
    diagnosis = diagnose(model, [torch.randn(32, 6)])
    assert [each.severity for each in diagnosis.of("backend-parity")] == found
