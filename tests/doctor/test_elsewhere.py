"""What is compared with the model from elsewhere: checkpoints, other ranks, copies, a step of the optimizer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim.swa_utils import AveragedModel

from steadynorm import SyncBatchNorm
from steadynorm.doctor import Severity, diagnose
from steadynorm.surgery import recalibrate_
from tests.support.doctor import batches
from tests.support.ranks import on_ranks

NOTE, WARNING = Severity.NOTE, Severity.WARNING


def without(*ends: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {name: each for name, each in state.items() if not name.endswith(ends)}


@pytest.mark.parametrize(
    "change",
    [
        dict,
        without("num_batches_tracked"),
        lambda state: {"state_dict": {f"module.{name}": each for name, each in state.items()}},
        lambda state: {name: each.half() for name, each in state.items()},
    ],
    ids=["same", "no counter", "wrapped", "half"],
)
def test_a_model_that_is_its_checkpoint_is_silent(model: Any, change: Callable[[Any], Any]) -> None:
    diagnosis = diagnose(model, checkpoint=change(model.state_dict()))
    assert "checkpoint-diff" in diagnosis.checks
    assert diagnosis.of("checkpoint-diff") == ()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (without("4.running_mean", "4.running_var"), [("4", WARNING)]),
        (lambda state: state | {"4.running_var": torch.ones(3)}, [("4", WARNING)]),
        (without("8.weight"), [("", WARNING)]),
        (lambda state: state | {"8.weight": torch.ones(3, 8)}, [("", WARNING)]),
        (lambda state: state | {"7.running_mean": torch.ones(3)}, [("", WARNING)]),
        (lambda state: state | {"7.weight": torch.ones(3)}, [("", NOTE)]),
        (lambda state: state | {"7.num_batches_tracked": torch.tensor(3)}, []),
        (lambda state: state | {"4.running_mean": state["4.running_mean"] + 0.1}, [("4", WARNING)]),
        (lambda state: {name: 1.1 * each for name, each in state.items()}, [("", NOTE)]),
        (
            lambda state: {name: each.flip(0) if each.dim() else each for name, each in state.items()},
            [("0", WARNING), ("3", WARNING), ("8", WARNING), ("", NOTE)],
        ),
    ],
    ids=[
        *("lost", "shape", "missing", "weight's shape", "no taker"),
        *("unexpected", "counter", "moved", "trained since", "other weights"),
    ],
)
def test_what_a_checkpoint_says_otherwise_is_named(
    model: Any, change: Callable[[Any], Any], found: list[tuple[str, Severity]]
) -> None:
    state = change({name: each.clone() for name, each in model.state_dict().items()})
    assert [(each.layer, each.severity) for each in diagnose(model, checkpoint=state).of("checkpoint-diff")] == found


def test_checks_say_what_they_were_not_given(model: Any) -> None:
    diagnosis = diagnose(model)
    assert diagnosis.not_run["checkpoint-diff"] == "checkpoint"
    assert diagnosis.not_run["effective-batch"] == "batches, accumulation or world_size"
    with pytest.raises(ValueError, match=r"^diagnose: accumulation must be at least 1, got 0\.$"):
        diagnose(model, accumulation=0)


def states(model: nn.Module, shifts: tuple[float, ...]) -> list[dict[str, Any]]:
    """A state for each rank; the statistics of the second norm are so many deviations off."""
    found = []
    for shift in shifts:
        state: Any = {f"module.{name}": each.clone() for name, each in model.state_dict().items()}
        state["module.4.running_mean"] += shift * state["module.4.running_var"].sqrt()
        found.append(state)
    return found


@pytest.mark.parametrize(
    ("shifts", "found"),
    [((0.0, 0.0, 0.0), []), ((0.0, 0.06), [("4", NOTE)]), ((0.0, 0.0, 1.0), [("4", WARNING)])],
    ids=["equal", "a step apart", "apart"],
)
def test_ranks_that_hold_other_statistics_are_found(model: Any, shifts: Any, found: list[Any]) -> None:
    diagnosis = diagnose(model, ranks=states(model, shifts))
    assert [(each.layer, each.severity) for each in diagnosis.of("rank-divergence")] == found
    for each in diagnosis.of("rank-divergence"):
        mean = sum(shifts) / len(shifts)
        assert each.numbers["distance"] == pytest.approx(max(abs(shift - mean) for shift in shifts), rel=1e-3)


def on_two() -> list[Any]:
    """Ranks that differ in the mean of one layer; the workers of a step are the group's."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(2)
    norm.running_mean += dist.get_rank()
    diagnosis = diagnose(norm, [torch.randn(4, 2)], ranks=dist.group.WORLD)
    (found,) = diagnosis.of("rank-divergence")
    (step,) = diagnosis.of("effective-batch")
    return [found.numbers["distance"], step.numbers["of_step"] / step.numbers["independent"]]  # type: ignore[operator]


def test_ranks_are_gathered_over_a_process_group(tmp_path: Path) -> None:
    assert on_ranks(on_two, 2, tmp_path) == [[pytest.approx(0.5, rel=1e-4), 2.0]] * 2


def test_one_rank_cannot_be_compared(model: Any) -> None:
    with pytest.raises(ValueError, match=r"^diagnose: ranks must be states of at least two ranks, got 1\."):
        diagnose(model, ranks=states(model, (0.0,)))


class Pair(nn.Module):
    """A network and a copy whose weights are an average of its own."""

    def __init__(self, network: nn.Module, *, frozen: bool = True) -> None:
        super().__init__()
        self.online = network
        self.target = copy.deepcopy(network).requires_grad_(not frozen)


def moved(pair: Any, *, weights: float, statistics: float) -> Any:
    """Train the network on, by so much of its size; the copy keeps its weights, and its statistics are further off."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in pair.online.parameters():
            each += weights * each.norm() / math.sqrt(each.numel()) * torch.randn(each.shape, generator=generator)
        for norm in (pair.online[1], pair.online[4]):
            norm.running_mean += statistics * norm.running_var.sqrt()
    return pair


@pytest.mark.parametrize(
    ("weights", "statistics", "frozen", "found"),
    [
        (0.1, 2.0, True, [("target.1", WARNING), ("target.4", WARNING)]),
        (0.1, 2.0, False, [("target.1", NOTE), ("target.4", NOTE)]),
        (0.1, 0.2, True, []),
        (0.0, 0.0, True, []),
        (2.0, 5.0, True, []),
    ],
    ids=["stale", "both learn", "near", "equal", "no copy"],
)
def test_a_copy_with_other_statistics_is_found(
    model: Any, weights: float, statistics: float, frozen: bool, found: list[Any]
) -> None:
    pair = moved(Pair(model, frozen=frozen), weights=weights, statistics=statistics)
    diagnosis = diagnose(pair)
    assert [(each.layer, each.severity) for each in diagnosis.of("copied-statistics-mismatch")] == found


class Student(nn.Module):
    """A network that runs, and a teacher that does not; the teacher is registered first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.teacher, self.student = copy.deepcopy(network), network

    def forward(self, x: Any) -> Any:
        return self.student(x)


def test_a_copy_that_learns_and_has_the_statistics_of_a_new_layer_lost_them(model: Any) -> None:
    pair: Any = nn.ModuleDict({"teacher": copy.deepcopy(model), "student": model})
    pair.teacher[4].reset_running_stats()
    with torch.no_grad():
        pair.student[0].weight *= 1.1
    found = diagnose(pair).of("copied-statistics-mismatch")
    assert [(each.layer, each.severity) for each in found] == [("teacher.4", WARNING)]


def test_a_copy_that_no_batch_reaches_is_not_trained(model: Any) -> None:
    pair: Any = Student(model)
    pair.teacher[4].running_mean += 2 * pair.teacher[4].running_var.sqrt()
    found = diagnose(pair, batches()).of("copied-statistics-mismatch")
    assert [(each.layer, each.severity) for each in found] == [("teacher.4", WARNING)]


@pytest.mark.parametrize("measured", [False, True])
def test_a_copy_that_no_batch_reaches_is_run_on_what_its_original_is_given(model: Any, measured: bool) -> None:
    pair: Any = Student(model)
    conv, norm = pair.teacher[0], pair.teacher[1]
    with torch.no_grad():
        conv.weight *= 1.4
    if measured:
        norm.running_mean *= 1.4
        norm.running_var *= 1.96
    before = {key: value.clone() for key, value in pair.state_dict().items()}
    diagnosis = diagnose(pair, batches())
    found = diagnosis.of("copied-statistics-mismatch")
    assert [(each.layer, each.severity) for each in found] == ([] if measured else [("teacher.1", WARNING)])
    assert all(torch.equal(value, before[key]) for key, value in pair.state_dict().items())
    assert diagnosis.unread == ()


@pytest.mark.parametrize(("by", "found"), [(0.2, [("teacher.4", WARNING)]), (0.05, [])])
def test_statistics_of_a_copy_with_equal_weights_are_to_be_equal_too(model: Any, by: float, found: list[Any]) -> None:
    pair: Any = Student(model)
    pair.teacher[4].running_mean += by * pair.teacher[4].running_var.sqrt()
    diagnosis = diagnose(pair, batches())
    assert [(each.layer, each.severity) for each in diagnosis.of("copied-statistics-mismatch")] == found


def test_a_copy_that_is_off_as_its_original_is_was_copied_with_its_statistics(model: Any) -> None:
    pair: Any = Student(model)
    for part in (pair.teacher, pair.student):
        part[4].running_mean += 0.5 * part[4].running_var.sqrt()
    assert diagnose(pair, batches()).of("copied-statistics-mismatch") == ()


def test_a_copy_that_cannot_be_run_on_these_inputs_is_told(model: Any) -> None:
    class Other(nn.Sequential):
        def forward(self, x: Any) -> Any:
            if self.training or torch.is_grad_enabled():
                return super().forward(x)
            raise RuntimeError("only in training")

    pair: Any = Student(model)
    pair.teacher = Other(*pair.teacher)
    (line,) = diagnose(pair, batches()).unread
    assert line == "teacher, on what student is given: RuntimeError: only in training"


def test_norms_of_their_own_over_shared_weights_are_no_copy(model: Any) -> None:
    pair = Pair(model)
    for own, shared in ((pair.target[at], pair.online[at]) for at in (0, 3, 8)):
        own.weight = shared.weight
    pair.online[4].running_mean += 3
    assert diagnose(pair).of("copied-statistics-mismatch") == ()


@pytest.mark.parametrize("buffers", [False, True])
def test_averaged_weights_with_the_last_statistics_are_noted(model: Any, buffers: bool) -> None:
    averaged = AveragedModel(model, use_buffers=buffers)
    found = diagnose(averaged).of("copied-statistics-mismatch")
    assert [(each.layer, each.severity) for each in found] == ([] if buffers else [("", NOTE)])


def vectors(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8, bias=False), norm, nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("size", "norm", "options", "severity"),
    [
        (8, nn.BatchNorm1d(8), {"accumulation": 8}, WARNING),
        (8, nn.BatchNorm1d(8), {"world_size": 8}, WARNING),
        (64, nn.BatchNorm1d(8), {"accumulation": 8}, NOTE),
        (2, nn.BatchNorm1d(8), {"accumulation": 2}, NOTE),
        (8, SyncBatchNorm(8), {"accumulation": 8}, WARNING),
        (8, SyncBatchNorm(8), {"world_size": 8}, None),
        (8, SyncBatchNorm(8), {"world_size": 8, "accumulation": 8}, NOTE),
        (8, nn.BatchNorm1d(8), {"accumulation": 1}, None),
        (8, nn.BatchNorm1d(8).eval(), {"accumulation": 8}, None),
    ],
)
def test_what_a_step_takes_together_and_no_layer_does(
    size: int, norm: nn.Module, options: dict[str, int], severity: Severity | None
) -> None:
    x = torch.randn(4 * size, 6, generator=torch.Generator().manual_seed(0))
    found = diagnose(vectors(norm), list(x.split(size)), **options).of("effective-batch")  # type: ignore[arg-type]
    assert [each.severity for each in found] == ([] if severity is None else [severity])
    for each in found:
        samples = size * (options.get("world_size", 1) if "Sync" in each.what else 1)
        assert each.numbers["independent"] == pytest.approx(samples, rel=0.6)
        assert each.numbers["of_step"] / each.numbers["independent"] == pytest.approx(  # type: ignore[operator]
            options.get("accumulation", 1) * (1 if "Sync" in each.what else options.get("world_size", 1))
        )


def test_measuring_the_statistics_of_an_average_is_the_remedy_of_its_note(model: Any) -> None:
    averaged = AveragedModel(model)
    (found,) = diagnose(averaged).of("copied-statistics-mismatch")
    assert found.remedy.treatment == "recalibrate"
    assert recalibrate_(averaged.module, batches()).changed
