"""torch.fx, torch.export, torch.jit.trace and dynamic shapes: each layer works, or is refused by name."""

import copy

import pytest
import torch
from torch import nn

import steadynorm
from steadynorm import surgery
from steadynorm.layers import NormAddActivation
from tests.support.backends import as_chosen
from tests.support.family import MEMBERS, build, each_batch_norm_in_evaluation, each_member
from tests.support.layers import drawn

X, LONGER = drawn(6, 3, 2, 3), drawn(9, 3, 2, 3, seed=1)
DYNAMIC = ({0: torch.export.Dim.DYNAMIC},)
FREE = [name for name in MEMBERS if name != "GhostBatchNorm"]


@each_batch_norm_in_evaluation
@pytest.mark.parametrize("activation", [None, "silu"])
def test_fx_traces_a_layer_itself_with_and_without_a_residual(name, activation):
    layer = build(name, activation=activation).eval()
    traced = torch.fx.symbolic_trace(layer)
    torch.testing.assert_close(traced(X), layer(X))
    torch.testing.assert_close(traced(X, 2 * X), layer(X, 2 * X))


@each_batch_norm_in_evaluation
def test_fx_traces_a_model_that_holds_a_layer(name):
    model = nn.Sequential(build(name)).eval()
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(X), model(X))


@each_member
@pytest.mark.parametrize("training", [True, False])
def test_fx_is_refused_by_name_where_a_layer_looks_at_its_batch(name, training):
    if training or name == "GatedBatchNorm":
        with pytest.raises(TypeError, match=rf"{name}2d: torch.fx.symbolic_trace must not .* is_leaf_module"):
            torch.fx.symbolic_trace(build(name).train(training))


@pytest.mark.parametrize("training", [True, False])
def test_fx_is_refused_by_name_where_a_masked_layer_itself_is_traced(training):
    message = r"MaskedBatchNorm1d: torch.fx.symbolic_trace must not .* leave out mask and lengths, .* is_leaf_module"
    with pytest.raises(TypeError, match=message):
        torch.fx.symbolic_trace(steadynorm.MaskedBatchNorm1d(3).train(training))


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_an_export_leaves_the_batch_size_free(name, training):
    layer = build(name).train(training)
    if name == "BatchRenorm":
        layer.num_batches_tracked.fill_(5)
    eager = copy.deepcopy(layer)
    exported = torch.export.export(layer, (X,), dynamic_shapes=DYNAMIC, strict=False).module()
    torch.testing.assert_close(exported(LONGER), eager(LONGER))
    for buffer, expected in eager.named_buffers():
        torch.testing.assert_close(exported.get_buffer(buffer), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@as_chosen
def test_two_gated_layers_compile_with_dynamic_shapes():
    model = nn.Sequential(build("GatedBatchNorm"), build("GatedBatchNorm"))
    eager = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, dynamic=True, backend="aot_eager", fullgraph=True)
    for x in (X, LONGER):
        torch.testing.assert_close(compiled(x), eager(x))
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit.trace:DeprecationWarning")
@each_member
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_torchscript_traces_every_layer(name, training):
    layer = build(name, activation="silu").train(training)
    if name == "BatchRenorm":
        layer.num_batches_tracked.fill_(5)
    traced = torch.jit.trace(copy.deepcopy(layer), X, check_trace=False)
    layer(X)  # as the traced one has done
    torch.testing.assert_close(traced(2 * X), layer(2 * X))


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "silu"])
def test_what_stands_in_for_a_fused_layer_can_be_scripted(activation):
    norm = NormAddActivation(nn.BatchNorm2d(3).double(), activation).eval()
    scripted = torch.jit.script(norm)
    torch.testing.assert_close(scripted(X), norm(X))
    torch.testing.assert_close(scripted(X, 2 * X), norm(X, 2 * X))


@each_batch_norm_in_evaluation
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "silu"])
def test_a_layer_can_be_scripted_in_evaluation(name, activation):
    layer = build(name, activation=activation).eval()
    scripted = torch.jit.script(nn.Sequential(layer))
    torch.testing.assert_close(scripted(X), layer(X))
    scripted = torch.jit.script(layer)
    torch.testing.assert_close(scripted(X, 2 * X), layer(X, 2 * X))


def test_a_scripted_layer_of_half_precision_evaluates_as_the_layer():
    layer, x = build("BatchNorm", activation="relu").bfloat16().eval(), X.bfloat16()
    torch.testing.assert_close(torch.jit.script(layer)(x), layer(x))


def test_a_scripted_layer_has_its_own_eps():
    layer = build("BatchNorm", eps=0.5).eval()
    torch.testing.assert_close(torch.jit.script(layer)(X), layer(X))


def test_synchronized_batch_norm_can_be_scripted_in_evaluation():
    layer = steadynorm.SyncBatchNorm(3).double().eval()
    torch.testing.assert_close(torch.jit.script(layer)(X), layer(X))


@each_batch_norm_in_evaluation
def test_a_scripted_layer_refuses_to_train_where_that_is_not_evaluation(name):
    layer = build(name).train()
    scripted = torch.jit.script(nn.Sequential(layer))
    if name == "FrozenBatchNorm":
        torch.testing.assert_close(scripted(X), layer(X))
        return
    with pytest.raises(torch.jit.Error, match=r"scripted layer of steadynorm must be in evaluation.*Call .eval\(\)"):
        scripted(X)
    torch.testing.assert_close(scripted.eval()(X), layer.eval()(X))


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (steadynorm.GatedBatchNorm2d(3), "must find a layer that evaluates as batch norm"),
        (steadynorm.MaskedBatchNorm1d(3), "must find a layer that evaluates as batch norm"),
        (steadynorm.BatchNorm2d(3, track_running_stats=False), "must find running statistics"),
    ],
)
def test_a_layer_that_cannot_be_scripted_is_refused_by_name(layer, why):
    model = nn.Sequential(layer).eval()
    with pytest.raises(TypeError, match=rf"{type(layer).__name__}: torch.jit.script {why}.* torch.export"):
        torch.jit.script(model)
    assert model[0] is layer


def test_a_scripted_layer_refuses_a_residual_of_another_shape():
    with pytest.raises(torch.jit.Error, match=r"batch_norm: residual must have the input's shape .*\[6, 3, 2, 3\]"):
        torch.jit.script(build("BatchNorm").eval())(X, X[:1])


def test_what_to_torch_makes_of_a_fused_layer_can_be_scripted():
    model = nn.Sequential(build("BatchNorm", activation="silu"), build("GhostBatchNorm")).eval()
    expected = model(X)
    surgery.to_torch_(model)
    torch.testing.assert_close(torch.jit.script(model)(X), expected)
