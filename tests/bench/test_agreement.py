import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadynorm.bench import agreement
from steadynorm.bench.agreement import Agreement, check_agreement, difference_to_float64, relative_difference
from steadynorm.bench.cases import Case
from steadynorm.bench.providers import Inputs, make_inputs, our_module, prepared, torch_module
from steadynorm.ops import reference
from tests.support.bench import SMALL_CASE, let_kernels_be

CPU = torch.device("cpu")
RESIDUAL_CASE = replace(SMALL_CASE, op="norm_relu_residual")


def check(case: Case = RESIDUAL_CASE) -> Agreement:
    return check_agreement(*compared(case), None if case.op == "norm" else "relu")


def compared(case: Case = SMALL_CASE) -> tuple[nn.Module, nn.Module, Inputs]:
    """Ours, torch's and inputs."""
    (inputs,) = make_inputs(case, CPU)
    return prepared(our_module(case), CPU), prepared(torch_module(case), CPU), inputs


@pytest.fixture(autouse=True)
def our_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors would be left to torch."""
    let_kernels_be(monkeypatch)


@pytest.mark.parametrize("op", ["norm", "norm_relu", "norm_relu_residual"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_our_layer_agrees(op: Any, dtype: Any, layout: Any) -> None:
    assert check(replace(SMALL_CASE, op=op, dtype=dtype, layout=layout)).agrees


def test_the_channels_are_looked_at_in_chunks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = check()
    monkeypatch.setattr(agreement, "CHUNK", 1000)  # 15 channels of 64 values, and at the end 8
    assert check().error == pytest.approx(whole.error, rel=1e-12)


def off(kernel: Callable[..., Any], which: int | None, channel: int) -> Callable[..., Any]:
    """Make a kernel one percent wrong in one channel."""

    def wrong(*arguments: Any) -> Any:
        results = kernel(*arguments)
        target: Tensor = results if which is None else results[which]
        (target[channel:] if target.dim() == 1 else target[:, channel])[:1].mul_(1.01)
        return results

    return wrong


@pytest.mark.parametrize("channel", [0, -1])
@pytest.mark.parametrize("chunk", [1000, 1 << 23])
@pytest.mark.parametrize(
    ("kernel", "which", "found"),
    [
        ("moments", 0, {"running_mean", "y", "dweight", "dx"}),
        ("moments", 1, {"running_var", "y", "dweight", "dx"}),
        ("transform", None, {"y"}),
        ("transform_sums", 0, {"dbias", "dx"}),
        ("transform_sums", 1, {"dweight", "dx"}),
        ("transform_grad", 0, {"dx"}),
        ("transform_grad", 1, {"d_residual"}),
    ],
)
def test_a_wrong_kernel_is_found(
    kernel: str, which: int | None, found: set[str], chunk: int, channel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "CHUNK", chunk)
    let_kernels_be(monkeypatch, **{kernel: off(getattr(reference, kernel), which, channel)})
    wrong = check()
    assert not wrong.agrees
    assert wrong.what in found


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_a_wrong_running_statistic_is_found(name: str) -> None:
    ours, native, inputs = compared()
    ours.register_forward_hook(lambda module, *_: [getattr(module, name).mul_(1.01), None][1])
    found = check_agreement(ours, native, inputs, "relu")
    assert (found.agrees, found.what) == (False, name)


def test_nan_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    let_kernels_be(monkeypatch, transform=lambda *arguments: reference.transform(*arguments).fill_(float("nan")))
    found = check()
    assert (found.agrees, found.what) == (False, "y")
    assert math.isnan(found.error)


@pytest.mark.parametrize(
    "change",
    [lambda y: y.double(), lambda y: y.contiguous(memory_format=torch.channels_last)],
    ids=["dtype", "strides"],
)
def test_another_dtype_or_layout_is_not_agreement(change: Callable[[Tensor], Tensor]) -> None:
    ours, native, inputs = compared()
    ours.register_forward_hook(lambda module, given, y: change(y))
    found = check_agreement(ours, native, replace(inputs, dy=change(inputs.dy)), "relu")
    assert (found.agrees, found.what, found.error) == (False, "y", math.inf)


def test_any_stride_of_a_dimension_of_size_one_is_agreement() -> None:
    ours, native, inputs = compared()
    ours.register_forward_hook(lambda module, given, y: y.as_strided(y.shape, (7, *y.stride()[1:])))
    assert check_agreement(ours, native, inputs, "relu").agrees


def test_the_inputs_are_left_as_they_are() -> None:
    (ours, native, inputs), (_, _, untouched) = (compared(RESIDUAL_CASE) for _ in range(2))
    check_agreement(ours, native, inputs, "relu")
    for name in ("x", "dy", "residual"):
        assert torch.equal(getattr(inputs, name), getattr(untouched, name))
    assert [tensor.grad for tensor in (*inputs.given, *ours.parameters())] == [None] * 4


@pytest.mark.parametrize("activation", [None, "relu"])
def test_what_is_expected_is_what_autograd_gives_in_float64(activation: Any) -> None:
    (inputs,) = make_inputs(RESIDUAL_CASE, CPU)
    assert inputs.residual is not None
    x, residual = (tensor.detach().double().requires_grad_() for tensor in inputs.given)
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(128, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mean, var = torch.zeros(128, dtype=torch.float64), torch.ones(128, dtype=torch.float64)
    y = F.batch_norm(x, mean, var, weight, bias, training=True) + residual
    y = y if activation is None else y.relu()
    gradients = torch.autograd.grad(y, [x, residual, weight, bias], inputs.dy.double())
    names = ("dx", "d_residual", "dweight", "dbias")
    truth = dict(zip(names, gradients, strict=True)) | {"y": y, "running_mean": mean, "running_var": var}
    problem = agreement._Problem(inputs.dy, x, residual, weight, bias).of(slice(None))
    expected = agreement._expected(problem, activation)
    assert expected.keys() == truth.keys()
    for name, (result, _) in expected.items():
        torch.testing.assert_close(result, truth[name], rtol=1e-10, atol=1e-10)


def test_the_rounding_of_the_mean_is_a_share_of_what_is_summed() -> None:
    x = torch.tensor([3.0, -4.0, 0.0, 1.0]).view(4, 1, 1, 1)
    one = torch.ones(1)
    expected = agreement._expected(agreement._Problem(x, x, None, one, one).of(slice(None)), None)
    mean, size = expected["running_mean"]
    assert (mean.item(), size.item()) == (0.0, pytest.approx(0.1 * 6.5**0.5))
    assert all(result is size for name, (result, size) in expected.items() if name != "running_mean")


def test_few_gradients_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[float] = []
    right = agreement._one_step
    monkeypatch.setattr(
        agreement, "_one_step", lambda m, i: (kept.append(i.dy.ne(0).double().mean().item()), right(m, i))[1]
    )
    check()
    assert all(0.9 < share < 0.99 for share in kept)
    assert len(kept) == 2


def test_a_slope_that_hangs_on_rounding_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours rectifies at 0.04 in place of 0: where y lies in between, only the gradient goes another way."""

    def moved(*arguments: Any) -> Any:
        dy, x, center, scale, shift, residual, activation, *numbers = arguments
        return reference.transform_grad(dy, x, center, scale, shift - 0.04, residual, activation, *numbers)

    let_kernels_be(monkeypatch, transform_grad=moved)
    assert check(SMALL_CASE).agrees
    monkeypatch.setattr(agreement, "KINK_MARGIN", 0.0)
    assert not check(SMALL_CASE).agrees


def test_twice_torchs_error_and_eight_units_in_the_last_place_are_allowed() -> None:
    eps = torch.finfo(torch.float32).eps
    sizes = torch.tensor([1.0, 0.25, 3.0], dtype=torch.float64)
    found = agreement._judge("y", torch.zeros(2), torch.zeros(2), sizes)
    assert (found.error, found.allowed) == (1.0, 0.5 + 8 * eps * 3.0)


@pytest.mark.parametrize(
    ("error", "allowed", "agrees", "excess"),
    [(1.0, 2.0, True, 0.5), (2.0, 2.0, True, 1.0), (4.0, 2.0, False, 2.0), (0.0, 0.0, True, 0.0)],
)
def test_an_error_is_judged_by_what_is_allowed(error: float, allowed: float, agrees: bool, excess: float) -> None:
    found = Agreement(what="y", error=error, allowed=allowed)
    assert (found.agrees, found.excess) == (agrees, excess)


@pytest.mark.parametrize(("error", "allowed"), [(math.nan, 1.0), (1.0, 0.0), (math.inf, 1.0)])
def test_what_cannot_be_measured_is_the_worst(error: float, allowed: float) -> None:
    found = Agreement(what="y", error=error, allowed=allowed)
    assert (found.agrees, found.excess) == (False, math.inf)


def test_a_layer_is_held_to_itself_in_float64_and_left_as_it_is() -> None:
    ours, _, inputs = compared()
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    assert 0 < difference_to_float64(ours, inputs) < 1e-5
    assert all(torch.equal(before[key], value) for key, value in ours.state_dict().items())


@pytest.mark.parametrize("wrong", ["result", "gradient", "number"])
def test_a_layer_that_is_not_what_it_is_in_float64_is_found(wrong: str) -> None:
    ours, _, inputs = compared()

    def change(module: nn.Module, given: tuple[Tensor, ...], y: Tensor) -> Tensor:
        if y.dtype == torch.float64:
            return y
        if wrong == "gradient":
            return y + 0.01 * (given[0] - given[0].detach())
        return y * 1.001 if wrong == "result" else y * torch.nan

    ours.register_forward_hook(change)
    found = difference_to_float64(ours, inputs)
    assert math.isnan(found) if wrong == "number" else found > 5e-4


def test_a_difference_that_is_not_finite_is_infinite() -> None:
    assert relative_difference((1.0, 1.0), (math.nan, 1.0)) == math.inf
    assert relative_difference((1.0, 4.0), (1.1, 5.0)) == pytest.approx(0.25)
