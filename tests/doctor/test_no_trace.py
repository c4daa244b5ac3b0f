"""Observing leaves no trace, bit for bit, on models that are hard to put back."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations

from steadynorm.doctor import diagnose, observe
from steadynorm.doctor.untouched import uncompiled
from tests.support.doctor import batches


def bits(each: Tensor | None) -> bytes | None:
    return None if each is None else each.detach().clone().numpy().tobytes()


def trace_of(model: nn.Module) -> list[Any]:
    """All that observing must leave alone."""
    modules, parameters = list(model.modules()), list(model.parameters())
    tensors = [*parameters, *model.buffers()]
    return [
        [(id(each), bits(each), each.requires_grad) for each in tensors],
        [(id(each.grad), bits(each.grad)) for each in parameters],
        [(id(module), module.training, type(module)) for module in modules],
        [{name: id(each) for name, each in vars(module).items() if name != "training"} for module in modules],
        [{name: id(each) for name, each in module._buffers.items()} for module in modules],
        [[list(vars(module)[name]) for name in vars(module) if "hooks" in name] for module in modules],
        [torch.get_rng_state().numpy().tobytes(), random.getstate(), *map(str, np.random.get_state())],
        [torch.is_grad_enabled(), torch.get_default_dtype(), torch.compiler.is_compiling()],
    ]


class Uncopyable(nn.Sequential):
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("no copies")

    def __getstate__(self) -> Any:
        raise RuntimeError("no copies")


class Noisy(nn.Module):
    """Draws from Python's and NumPy's random numbers, as augmentations do."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-3 * random.random() + 1e-3 * float(np.random.rand())


def compiled(model: Any) -> nn.Module:
    model[3] = torch.compile(model[3], backend="eager")
    return model  # type: ignore[no-any-return]


def parametrized(model: Any) -> nn.Module:
    parametrizations.spectral_norm(model[0])
    parametrizations.weight_norm(model[3])
    return model.train()  # type: ignore[no-any-return]


def reparametrized(model: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model[3])
    return model.train()  # type: ignore[no-any-return]


def shared(model: Any) -> nn.Module:
    model[4] = model[1]
    return model  # type: ignore[no-any-return]


def uncopyable(model: Any) -> nn.Module:
    return Uncopyable(*model)


def noisy(model: Any) -> nn.Module:
    return nn.Sequential(Noisy(), model, Noisy())


def scripted(model: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model[5] = torch.jit.script(nn.Sequential(model[5], nn.InstanceNorm2d(8, track_running_stats=True)))
    return model  # type: ignore[no-any-return]


HARD: list[Callable[[Any], nn.Module]] = [
    compiled,
    parametrized,
    reparametrized,
    shared,
    uncopyable,
    noisy,
    scripted,
    lambda model: model.double().requires_grad_(False).train(),
]


def converted(model: nn.Module) -> list[Any]:
    dtype = next(model.parameters()).dtype
    return [(x.to(dtype), y) for x, y in batches(2, 8)]


class Stop(Exception):
    pass


def stopping(after: int) -> tuple[Callable[[nn.Module, Any], Any], list[int]]:
    """A forward that raises when it has run so often, and how often it has."""
    calls = [0]

    def forward(model: nn.Module, batch: Any) -> Any:
        calls[0] += 1
        output = model(batch[0])
        if calls[0] > after:
            raise Stop
        return output

    return forward, calls


@pytest.mark.parametrize(
    "build", HARD, ids=["compiled", "parametrized", "weight_norm", "shared", "uncopyable", "rng", "scripted", "f64"]
)
def test_a_hard_model_is_put_back_after_success_and_after_any_exception(
    healthy: nn.Sequential, build: Callable[[Any], nn.Module]
) -> None:
    model = build(copy.deepcopy(healthy))
    given = converted(model)
    if next(model.parameters()).requires_grad:
        with uncompiled():
            loss = functional.cross_entropy(model(given[0][0]), given[0][1])
        loss.backward()
    before = trace_of(model)
    forward, calls = stopping(10**6)
    observe(model, given, reference=given[:1], forward=forward)
    assert trace_of(model) == before
    for after in range(0, calls[0], 3):
        with pytest.raises(Stop):
            observe(model, given, reference=given[:1], forward=stopping(after)[0])
        assert trace_of(model) == before, after


def test_a_batch_has_the_gradients_that_it_had(model: Any) -> None:
    given = [(x.requires_grad_(), y) for x, y in batches(2, 8)]
    gradient = torch.ones_like(given[1][0])
    given[1][0].grad = gradient
    for order in (given, given[::-1]):
        diagnose(model, order)
        assert given[0][0].grad is None and given[1][0].grad is gradient and bool((gradient == 1).all())


@contextmanager
def one_rank(folder: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_a_wrapped_model_is_put_back_and_trains_on(model: Any, tmp_path: Path) -> None:
    x, y = batches(1)[0]
    with one_rank(tmp_path):
        wrapped = DistributedDataParallel(model.train())
        functional.cross_entropy(wrapped(x), y).backward()
        before = trace_of(wrapped)
        diagnosis = diagnose(wrapped, batches(4))
        assert "effective-batch" in diagnosis.checks
        assert trace_of(wrapped) == before
        wrapped.zero_grad()
        functional.cross_entropy(wrapped(x), y).backward()
        assert all(each.grad is not None and each.grad.isfinite().all() for each in model.parameters())


def test_a_lazy_model_is_looked_at_without_batches_and_refused_with_them() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU())
    kinds = [type(each) for each in model.modules()]
    assert "has not seen its first batch" in diagnose(model).findings[0].problem
    with pytest.raises(ValueError, match=r"^diagnose: the model must hold numbers to be run"):
        diagnose(model, batches(1))
    assert [type(each) for each in model.modules()] == kinds
    assert all(nn.parameter.is_lazy(each) for each in model.parameters())


def test_an_optimizer_in_the_backward_takes_no_step(model: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[0].weight.register_post_accumulate_grad_hook(lambda each: optimizer.step())
    before = trace_of(model.train())
    (line,) = diagnose(model, batches(2)).unread
    assert line.startswith("a step of training, for double updates: a backward would run the hooks")
    assert trace_of(model) == before
