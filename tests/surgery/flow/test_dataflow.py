"""What a run of an example shows of which module reads what, and that nothing of the run remains."""

import contextlib
import copy

import pytest
import torch
from torch import nn

from steadynorm.surgery.flow.dataflow import trace
from tests.support.layers import drawn, randomize_


class Between(nn.Module):
    """A convolution, a function between, a batch norm."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.norm, self.function = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), function

    def forward(self, x):
        return self.norm(self.function(self.conv(x)))


X = drawn(2, 3, 6, 6)


def flow_of(function):
    model = randomize_(Between(function)).double().eval()
    return trace(model, X), model


def reads(flow, model):
    (norm,) = flow.calls_of(model.norm)
    (conv,) = flow.calls_of(model.conv)
    return [str(use) for use in flow.value_of(conv.output).used_outside(norm)]


def test_reading_within_a_call_is_part_of_it():
    flow, model = flow_of(lambda y: y)
    assert reads(flow, model) == []
    (conv,) = flow.calls_of(model.conv)
    assert len(flow.value_of(conv.output).uses) == 1


@pytest.mark.parametrize(
    "view",
    [
        lambda y: y.view(2, 4, -1)[..., 1:].unflatten(-1, (3, -1)),
        lambda y: y.permute(0, 2, 1, 3).transpose(1, 2),
        lambda y: y.detach().chunk(2, 2)[1],
        lambda y: torch.ops.aten._unsafe_view(y, [2, 4, 8, 2]),
        lambda y: [y, torch.zeros_like(y), y.new_ones(3)][0],
    ],
)
def test_a_view_reads_nothing_and_is_the_value(view):
    flow, model = flow_of(view)
    assert reads(flow, model) == []
    (norm,), (conv,) = flow.calls_of(model.norm), flow.calls_of(model.conv)
    assert flow.value_of(norm.input) is flow.value_of(conv.output)


@pytest.mark.parametrize("arrange", [lambda y: y.mT.contiguous(), lambda y: y.to(memory_format=torch.channels_last)])
def test_a_copy_that_only_rearranges_is_the_value(arrange):
    flow, model = flow_of(arrange)
    (norm,), (conv,) = flow.calls_of(model.norm), flow.calls_of(model.conv)
    assert reads(flow, model) == []
    assert flow.value_of(norm.input) is flow.value_of(conv.output)


@pytest.mark.parametrize(
    ("convert", "name"),
    [
        (lambda y: y.float().double(), "aten._to_copy"),
        (lambda y: y.view(torch.int64).clone().view(torch.float64), "aten.clone"),
    ],
)
def test_a_copy_in_another_dtype_is_a_use(convert, name):
    flow, model = flow_of(convert)
    assert reads(flow, model) == [name]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda y: y.relu_(), "aten.relu_"),
        (lambda y: y + y.sum(), "aten.sum"),
        (lambda y: (y, y[0, 0, 0, 0].item())[0], "aten._local_scalar_dense"),
        (lambda y: y.clone().mul_(2), "aten.mul_"),
    ],
)
def test_an_operation_on_any_part_is_a_use_named_by_it(function, name):
    flow, model = flow_of(function)
    assert reads(flow, model)[0] == name


def test_a_use_names_the_innermost_module_that_it_is_in():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU())).double().eval()
    flow = trace(model, drawn(2, 3))
    (linear,) = flow.calls_of(model[0])
    assert [str(use) for use in flow.value_of(linear.output).uses] == ["aten.relu in '1.0'"]


def test_a_call_that_failed_is_not_under_way_any_more():
    class Trying(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.right = nn.Linear(9, 9), nn.Linear(3, 4)

        def forward(self, x):
            with contextlib.suppress(RuntimeError):
                self.wide(x)
            return self.right(x).relu()

    model = Trying().double()
    flow = trace(model, drawn(2, 3))
    (call,) = flow.calls_of(model.right)
    assert [str(use) for use in flow.value_of(call.output).uses] == ["aten.relu"]


def test_a_weight_used_as_a_tensor_is_seen():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode = nn.Linear(3, 4)

        def forward(self, x):
            return self.encode(x) @ self.encode.weight

    model = Tied().double()
    flow = trace(model, drawn(2, 3))
    (call,) = flow.calls_of(model.encode)
    assert [use.what for use in flow.value_of(model.encode.weight).used_outside(call)] == ["aten.mm"]
    assert not flow.value_of(model.encode.bias).used_outside(call)


def test_parameters_in_one_memory_are_known_by_their_names():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).double()
    model[1].weight = model[0].weight
    flow = trace(model, drawn(2, 3))
    assert flow.owners_of(model[0].weight) == ["0.weight", "1.weight"]
    assert flow.owners_of(model[0].bias) == ["0.bias"]


def test_memory_given_free_is_not_taken_for_what_was_there_before():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.linears = nn.ModuleList(nn.Linear(64, 64) for _ in range(20))

        def forward(self, x):
            for linear in self.linears:
                x = (linear(x).relu() + 1).tanh()  # temporaries, whose memory comes back
            return x

    model = Deep()
    flow = trace(model, torch.randn(64, 64))
    for linear in model.linears:
        (call,) = flow.calls_of(linear)
        assert [use.what for use in flow.value_of(call.output).uses] == ["aten.relu"]


def test_what_is_given_back_or_kept_is_used():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.kept = []

        def forward(self, x):
            self.kept.append(self.first(x)[0])
            return {"logits": [self.second(x).T]}

    model = Keeping().double()
    flow = trace(model, drawn(2, 3))
    what = [[str(use) for use in flow.value_of(flow.calls_of(each)[0].output).uses] for each in model.children()]
    assert what == [["the attribute 'kept' of ''"], ["the output['logits'][0]"]]


def test_what_a_hook_sees_is_used():
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 4)), nn.ReLU()).double()
    model[0].register_forward_hook(lambda *_: None)
    flow = trace(model, drawn(2, 3))
    (call,) = flow.calls_of(model[0][0])
    assert "a hook on '0'" in [str(use) for use in flow.value_of(call.output).uses]


class Messy(nn.Module):
    """Changes its input, draws random numbers, moves and rebinds buffers."""

    def __init__(self, fails=False):
        super().__init__()
        self.norm, self.fails = nn.BatchNorm1d(3), fails
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))

    def forward(self, x):
        x.add_(torch.rand(()))
        self.seen.add_(1)
        self.last = x.sum()
        self.norm.eval() if self.norm.training else self.norm.train()
        if self.fails:
            raise RuntimeError("as it goes")
        return self.norm(x)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_run_leaves_no_trace(fails, training):
    model, x = Messy(fails).train(training), torch.randn(4, 3)
    before = copy.deepcopy(model.state_dict()), x.clone(), torch.get_rng_state()
    buffers = dict(model.named_buffers())
    if fails:
        with pytest.raises(RuntimeError, match="as it goes"):
            trace(model, x)
    else:
        trace(model, x)
    assert all(torch.equal(value, before[0][name]) for name, value in model.state_dict().items())
    assert all(value is buffers[name] for name, value in model.named_buffers())
    assert torch.equal(x, before[1]) and torch.equal(torch.get_rng_state(), before[2])
    assert [module.training for module in model.modules()] == [training] * 2
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(module._forward_hooks_always_called for module in model.modules())
