import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from steadynorm.bench.sides import build_modules, copy_input, forward_backward, make_inputs
from steadynorm.layers import BatchNorm2d
from tests.support.bench import SMALL_CASE

CPU = torch.device("cpu")


def test_inputs_have_the_shape_dtype_and_layout_of_the_case() -> None:
    case = replace(SMALL_CASE, op="norm_relu_residual", dtype="bfloat16", layout="channels_last")
    (inputs,) = make_inputs(case, CPU, sets=1)
    for tensor in (inputs.x, inputs.dy, inputs.residual, inputs.spare):
        assert tensor is not None
        assert (tensor.shape, tensor.dtype) == (case.shape, torch.bfloat16)
        assert tensor.stride() == (8192, 1, 1024, 128)


def test_contiguous_inputs_are_contiguous() -> None:
    (inputs,) = make_inputs(SMALL_CASE, CPU, sets=1)
    assert all(tensor.is_contiguous() for tensor in (inputs.x, inputs.dy, inputs.spare))


def test_every_set_is_the_same_numbers_in_other_memory() -> None:
    case = replace(SMALL_CASE, op="norm_relu_residual")
    sets = make_inputs(case, CPU, sets=3)
    tensors = [tensor for one in sets for tensor in (one.x, one.dy, one.residual, one.spare) if tensor is not None]
    assert len({tensor.data_ptr() for tensor in tensors}) == 12
    assert all(torch.equal(one.x, sets[0].x) and torch.equal(one.dy, sets[0].dy) for one in sets)


def test_the_input_is_neither_centred_nor_of_unit_spread() -> None:
    (inputs,) = make_inputs(SMALL_CASE, CPU, sets=1)
    assert inputs.x.mean().item() == pytest.approx(0.3, abs=0.1)
    assert inputs.x.std().item() == pytest.approx(2.0, abs=0.1)


def test_the_gradient_that_goes_in_is_random_and_its_sums_do_not_cancel() -> None:
    (inputs,) = make_inputs(SMALL_CASE, CPU, sets=1)
    x_hat = F.batch_norm(inputs.x.detach(), None, None, training=True)
    assert inputs.dy.std(dim=(0, 2, 3)).min() > 0.5
    assert inputs.dy.sum().item() > 0.3 * inputs.dy.numel()
    assert (inputs.dy * x_hat).sum().item() > 0.3 * inputs.dy.numel()


def test_only_what_is_given_to_a_module_wants_a_gradient() -> None:
    (inputs,) = make_inputs(replace(SMALL_CASE, op="norm_relu_residual"), CPU, sets=1)
    assert inputs.residual is not None
    assert inputs.given == (inputs.x, inputs.residual)
    assert [t.requires_grad for t in (inputs.x, inputs.residual, inputs.dy, inputs.spare)] == [True, True, False, False]


def test_without_a_residual_a_module_is_given_x_alone() -> None:
    (inputs,) = make_inputs(SMALL_CASE, CPU, sets=1)
    assert inputs.residual is None
    assert inputs.given == (inputs.x,)


@pytest.mark.parametrize("op", ["norm", "norm_relu", "norm_relu_residual"])
def test_torchs_side_computes_what_people_write(op: str) -> None:
    case = replace(SMALL_CASE, op=op)  # type: ignore[arg-type]
    (inputs,) = make_inputs(case, CPU, sets=1)
    module = build_modules(case, CPU, compiled=False)["torch"]
    weight, bias = module.parameters()
    expected = F.batch_norm(inputs.x, None, None, weight, bias, training=True)
    expected = expected if inputs.residual is None else expected + inputs.residual
    expected = expected if op == "norm" else expected.relu()
    assert torch.equal(module(*inputs.given), expected)


@pytest.mark.parametrize(("op", "activation"), [("norm", None), ("norm_relu", "relu"), ("norm_relu_residual", "relu")])
def test_our_side_is_the_layer_with_its_activation(op: str, activation: str | None) -> None:
    module = build_modules(replace(SMALL_CASE, op=op), CPU, compiled=False)["ours"]  # type: ignore[arg-type]
    assert type(module) is BatchNorm2d
    assert module.activation == activation
    assert module.training


def test_all_sides_have_the_same_random_parameters() -> None:
    modules = build_modules(SMALL_CASE, CPU, compiled=True)
    assert list(modules) == ["torch", "compile", "ours"]
    first, *others = ([*module.parameters()] for module in modules.values())
    assert first[0].std() > 0.1
    assert not torch.equal(first[0], first[1])
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_only_the_compiled_side_is_compiled() -> None:
    modules = build_modules(SMALL_CASE, CPU, compiled=True)
    assert [name for name, module in modules.items() if module._compiled_call_impl is not None] == ["compile"]


def test_code_is_compiled_for_the_shape_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, bool]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **given: asked.append(given))
    build_modules(SMALL_CASE, CPU, compiled=True)
    assert asked == [{"dynamic": False}]


def test_parameters_stay_in_float32() -> None:
    for module in build_modules(replace(SMALL_CASE, dtype="bfloat16"), CPU, compiled=False).values():
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_forward_and_backward_lie_between_marks_and_leave_no_gradient() -> None:
    (inputs,) = make_inputs(SMALL_CASE, CPU, sets=1)
    module = build_modules(SMALL_CASE, CPU, compiled=False)["torch"]
    gradients = []
    forward_backward(module, inputs, lambda: gradients.append(inputs.x.grad))
    assert [gradient is None for gradient in gradients] == [True, True, False]
    assert all(tensor.grad is None for tensor in (inputs.x, *module.parameters()))


def test_the_backward_is_of_the_given_gradient() -> None:
    (inputs,) = make_inputs(SMALL_CASE, CPU, sets=1)
    module = build_modules(SMALL_CASE, CPU, compiled=False)["torch"]
    (expected,) = torch.autograd.grad(module(inputs.x), [inputs.x], inputs.dy)
    seen = []
    forward_backward(module, inputs, lambda: seen.append(inputs.x.grad))
    assert torch.equal(seen[-1], expected)


def test_a_copy_reads_x_and_writes_the_spare_memory() -> None:
    (inputs,) = make_inputs(SMALL_CASE, CPU, sets=1)
    marks = itertools.count()
    copy_input(inputs, lambda: next(marks))
    assert next(marks) == 2
    assert torch.equal(inputs.spare, inputs.x)
    assert not inputs.spare.requires_grad
