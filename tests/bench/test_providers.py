import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadynorm.bench import providers
from steadynorm.bench.providers import (
    build_network,
    copy,
    draw_images,
    forward_backward,
    inference,
    make_inputs,
    our_module,
    prepared,
    torch_module,
    train_step,
)
from steadynorm.lab.configuration import prepared as compares
from steadynorm.lab.experiments.compare import CompareConfig
from steadynorm.layers import BatchNorm2d
from tests.support.bench import SMALL_CASE

CPU = torch.device("cpu")


def test_inputs_have_the_shape_dtype_and_layout_of_the_case() -> None:
    case = replace(SMALL_CASE, op="norm_relu_residual", dtype="bfloat16", layout="channels_last")
    (inputs,) = make_inputs(case, CPU)
    for tensor in (inputs.x, inputs.dy, inputs.residual, inputs.spare):
        assert tensor is not None
        assert (tensor.shape, tensor.dtype) == (case.shape, torch.bfloat16)
        assert tensor.stride() == (8192, 1, 1024, 128)


def test_contiguous_inputs_are_contiguous() -> None:
    (inputs,) = make_inputs(SMALL_CASE, CPU)
    assert all(tensor.is_contiguous() for tensor in (inputs.x, inputs.dy, inputs.spare))


def test_every_set_is_the_same_numbers_in_other_memory() -> None:
    case = replace(SMALL_CASE, op="norm_relu_residual")
    sets = make_inputs(case, CPU, cache_bytes=2 * case.x_bytes)
    tensors = [tensor for one in sets for tensor in (one.x, one.dy, one.residual, one.spare) if tensor is not None]
    assert len({tensor.data_ptr() for tensor in tensors}) == 12
    assert all(torch.equal(one.x, sets[0].x) and torch.equal(one.dy, sets[0].dy) for one in sets)


def test_the_input_is_neither_centred_nor_of_unit_spread() -> None:
    (inputs,) = make_inputs(SMALL_CASE, CPU)
    assert inputs.x.mean().item() == pytest.approx(0.3, abs=0.1)
    assert inputs.x.std().item() == pytest.approx(2.0, abs=0.1)


def test_the_gradient_that_goes_in_is_random_and_its_sums_do_not_cancel() -> None:
    (inputs,) = make_inputs(SMALL_CASE, CPU)
    x_hat = F.batch_norm(inputs.x.detach(), None, None, training=True)
    assert inputs.dy.std(dim=(0, 2, 3)).min() > 0.5
    assert inputs.dy.sum().item() > 0.3 * inputs.dy.numel()
    assert (inputs.dy * x_hat).sum().item() > 0.3 * inputs.dy.numel()


def test_only_what_is_given_to_a_module_wants_a_gradient() -> None:
    (inputs,) = make_inputs(replace(SMALL_CASE, op="norm_relu_residual"), CPU)
    assert inputs.residual is not None
    assert inputs.given == (inputs.x, inputs.residual)
    assert [t.requires_grad for t in (inputs.x, inputs.residual, inputs.dy, inputs.spare)] == [True, True, False, False]


def test_without_a_residual_a_module_is_given_x_alone() -> None:
    (inputs,) = make_inputs(SMALL_CASE, CPU)
    assert inputs.residual is None
    assert inputs.given == (inputs.x,)


@pytest.mark.parametrize("op", ["norm", "norm_relu", "norm_relu_residual"])
def test_torchs_module_computes_what_people_write(op: str) -> None:
    case = replace(SMALL_CASE, op=op)  # type: ignore[arg-type]
    (inputs,) = make_inputs(case, CPU)
    module = prepared(torch_module(case), CPU)
    weight, bias = module.parameters()
    expected = F.batch_norm(inputs.x, None, None, weight, bias, training=True)
    expected = expected if inputs.residual is None else expected + inputs.residual
    expected = expected if op == "norm" else expected.relu()
    assert torch.equal(module(*inputs.given), expected)


@pytest.mark.parametrize(("op", "activation"), [("norm", None), ("norm_relu", "relu"), ("norm_relu_residual", "relu")])
def test_our_module_is_the_layer_with_its_activation(op: str, activation: str | None) -> None:
    module = our_module(replace(SMALL_CASE, op=op))  # type: ignore[arg-type]
    assert type(module) is BatchNorm2d
    assert module.activation == activation


def test_all_modules_train_and_have_the_same_random_parameters_in_float32() -> None:
    case = replace(SMALL_CASE, dtype="bfloat16")
    modules = [prepared(make(case), CPU) for make in (torch_module, our_module)]
    assert all(module.training for module in modules)
    first, second = ([*module.parameters()] for module in modules)
    assert first[0].std() > 0.1
    assert not torch.equal(first[0], first[1])
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(first, second, strict=True))
    assert modules[1].running_mean.eq(0).all()  # type: ignore[union-attr, operator]


def test_running_estimates_are_random_where_they_are_asked_for() -> None:
    module = prepared(BatchNorm2d(16), CPU, estimates=True)
    for key in ("weight", "bias", "running_mean", "running_var"):
        assert getattr(module, key).unique().numel() == 16


def test_forward_and_backward_lie_between_marks_and_leave_no_gradient() -> None:
    (inputs,) = make_inputs(SMALL_CASE, CPU)
    module = torch_module(SMALL_CASE)
    gradients = []
    forward_backward(module, itertools.repeat(inputs))(lambda: gradients.append(inputs.x.grad))
    assert [gradient is None for gradient in gradients] == [True, True, False]
    assert all(tensor.grad is None for tensor in (inputs.x, *module.parameters()))


def test_the_backward_is_of_the_given_gradient() -> None:
    (inputs,) = make_inputs(SMALL_CASE, CPU)
    module = torch_module(SMALL_CASE)
    (expected,) = torch.autograd.grad(module(inputs.x), [inputs.x], inputs.dy)
    seen = []
    forward_backward(module, itertools.repeat(inputs))(lambda: seen.append(inputs.x.grad))
    assert torch.equal(seen[-1], expected)


def test_a_copy_reads_x_and_writes_the_spare_memory() -> None:
    (inputs,) = make_inputs(SMALL_CASE, CPU)
    marks = itertools.count()
    copy(itertools.repeat(inputs))(lambda: next(marks))
    assert next(marks) == 2
    assert torch.equal(inputs.spare, inputs.x)
    assert not inputs.spare.requires_grad


def test_each_call_takes_the_next_inputs() -> None:
    sets = make_inputs(SMALL_CASE, CPU, cache_bytes=2 * SMALL_CASE.x_bytes)
    feed = itertools.cycle(sets)
    copies, calls = copy(feed), forward_backward(torch_module(SMALL_CASE), feed)
    copies(lambda: None)
    calls(lambda: None)
    copies(lambda: None)
    assert [one.spare.any().item() for one in sets] == [True, False, True]


def test_a_step_is_forward_loss_backward_and_update_between_two_marks() -> None:
    x, labels = draw_images(2, CPU)
    model, twin = (build_network("resnet20", "none", CPU) for _ in range(2))
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    marks: list[None] = []
    step = train_step(model, x, labels, "fp32")
    for _ in range(2):
        step(lambda: marks.append(None))
        optimizer.zero_grad()
        F.cross_entropy(twin(x), labels).backward()
        optimizer.step()
    assert len(marks) == 4
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_gradients_can_be_changed_before_the_optimizer_uses_them() -> None:
    model = build_network("resnet20", "none", CPU)
    seen: list[bool] = []
    before = [parameter.clone() for parameter in model.parameters()]

    def look(given: nn.Module) -> None:
        parameters = list(given.parameters())
        seen.append(all(torch.equal(a, b) and b.grad is not None for a, b in zip(before, parameters, strict=True)))

    train_step(model, *draw_images(2, CPU), "fp32", look)(lambda: None)
    assert seen == [True]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("trains", [True, False])
def test_networks_compute_in_the_precision_that_is_asked_for(precision: Any, dtype: torch.dtype, trains: bool) -> None:
    model = build_network("resnet20", "none", CPU)
    seen = []
    model.conv.register_forward_hook(lambda _, inputs, y: seen.append((y.dtype, y.stride()[1], y.requires_grad)))  # type: ignore[union-attr]
    x, labels = draw_images(2, CPU)
    (train_step(model, x, labels, precision) if trains else inference(model, x, precision))(lambda: None)
    assert seen == [(dtype, 1, trains)]  # channels-last


def test_images_are_as_many_as_asked_for_and_channels_last() -> None:
    x, labels = draw_images(5, CPU)
    assert x.shape == (5, 3, 32, 32)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert labels.shape == (5,)


def test_networks_start_from_the_same_weights_in_training_mode() -> None:
    ours, native = (build_network("resnet20", norm, CPU) for norm in ("batch_norm", "torch_batch_norm"))
    assert torch.equal(ours.conv.weight, native.conv.weight)  # type: ignore[union-attr, arg-type]
    assert ours.training


def test_the_networks_are_those_of_compare() -> None:
    config = compares(CompareConfig(data="cifar10"), {})
    assert (config.depth, config.widths) == (providers.DEPTH, providers.WIDTHS)
    assert (config.momentum, config.weight_decay) == (providers.MOMENTUM, providers.WEIGHT_DECAY)
