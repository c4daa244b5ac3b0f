import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import steadynorm
from steadynorm import layers
from steadynorm.layers import NormAddActivation
from steadynorm.layers.kinds import BATCH_NORMS
from steadynorm.surgery import convert_
from tests.support.layers import drawn, make_native, randomize_
from tests.support.surgery import MIXED_INPUT, assert_state_equal, mixed, refusals, snapshot

OPTIONS = {"ghost_batch_norm": {"ghost_batch_size": 64}}
ALIKE = [name for name, kind in BATCH_NORMS.items() if kind.evaluates_as_batch_norm and name != "masked_batch_norm"]
STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
each_kind = pytest.mark.parametrize("to", ALIKE)


def to_kind(model, to, **arguments):
    return convert_(model, to, **OPTIONS.get(to, {}), **arguments)


@each_kind
def test_evaluation_and_state_stay_the_same(to):
    model = mixed()
    y, state = model(MIXED_INPUT), model.state_dict()
    change = to_kind(model, to)
    assert not change.refused
    torch.testing.assert_close(model(MIXED_INPUT), y, rtol=1e-12, atol=1e-12)
    now = model.state_dict()
    assert list(now) == list(state)
    assert all(now[key].data_ptr() == state[key].data_ptr() for key in state)


@pytest.mark.parametrize("to", [*BATCH_NORMS, "group_norm", "layer_norm"])
def test_undo_is_bit_for_bit(to):
    model = mixed()
    before, y = snapshot(model), model(MIXED_INPUT)
    change = to_kind(model, to)
    assert change.changed
    assert change.undo() is model
    assert_state_equal(model, before)
    assert torch.equal(model(MIXED_INPUT), y)


@each_kind
def test_every_layer_keeps_its_dimensions_and_arguments(to):
    model = mixed()
    to_kind(model, to)
    for place, channels, eps, momentum in ((1, 32, 1e-5, 0.1), (8, 7, 1e-3, None)):
        layer = model[place]
        cls = BATCH_NORMS[to].class_for(2 if place == 1 else 1)
        assert type(layer) is cls
        assert (layer.num_features, layer.eps, layer.momentum) == (channels, eps, momentum)


@pytest.mark.parametrize("cls", [layers.GhostBatchNorm2d, layers.GhostBatchNorm1d])
def test_a_class_stands_for_its_family(cls):
    model = mixed()
    convert_(model, cls, ghost_batch_size=2)
    assert [type(model[place]).__name__ for place in (1, 4, 8)] == [
        "GhostBatchNorm2d",
        "GhostBatchNorm2d",
        "GhostBatchNorm1d",
    ]


@each_kind
@pytest.mark.parametrize(
    "arguments",
    [{"affine": False}, {"bias": False}, {"track_running_stats": False}, {"momentum": None}],
    ids=lambda arguments: next(iter(arguments)),
)
def test_what_is_missing_stays_missing(to, arguments):
    model = randomize_(nn.Sequential(make_native(nn.BatchNorm2d, 4, **arguments)).double()).eval()
    if BATCH_NORMS[to].needs_statistics and "track_running_stats" in arguments:
        assert "needs running statistics" in refusals(convert_, model, to)[0].why
        return
    x = drawn(6, 4, 3, 3)
    y, keys = model(x), list(model.state_dict())
    to_kind(model, to)
    torch.testing.assert_close(model(x), y, rtol=1e-12, atol=1e-12)
    assert list(model.state_dict()) == keys
    assert model[0].momentum == arguments.get("momentum", 0.1)


def test_a_training_step_after_conversion_is_the_one_without_it():
    plain, other = mixed().train(), mixed().train()
    for model in (plain, other):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(3):
            if model is other and step == 1:
                convert_(model, "batch_norm")
            if model is other and step == 2:
                convert_(model, "torch_batch_norm")
            optimizer.zero_grad()
            model(MIXED_INPUT + step).backward(drawn(5, 7, seed=step))
            optimizer.step()
    for (name, a), b in zip(plain.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=name)


def test_flags_and_modes_go_along():
    model = mixed().train()
    model[1].eval()
    model[1].weight.requires_grad_(False)
    convert_(model, "batch_renorm")
    assert [model[place].training for place in (1, 4, 8)] == [False, True, True]
    assert [model[1].weight.requires_grad, model[1].bias.requires_grad] == [False, True]


def test_hooks_fire_and_can_still_be_removed():
    model, seen = mixed(), []
    handles = [
        model[1].register_forward_hook(lambda module, x, y: seen.append(("forward", y.min()))),
        model[4].register_forward_hook(lambda module, x, y: seen.append(("after", y.min()))),
        model[4].register_forward_pre_hook(lambda module, x: seen.append(("before", type(module)))),
        model[8].register_full_backward_hook(lambda module, dx, dy: seen.append(("backward", dy[0].shape))),
    ]
    convert_(model, "torch_batch_norm")
    convert_(model, "group_norm")
    model(MIXED_INPUT).sum().backward()
    assert [what for what, _ in seen] == ["forward", "before", "after", "backward"]
    assert seen[2][1] >= 0  # after the activation, where the hook was before
    for handle in handles:
        handle.remove()
    seen.clear()
    model(MIXED_INPUT)
    assert seen == []


def test_attributes_that_somebody_set_go_along():
    model = mixed()
    model[1].qconfig = "theirs"
    convert_(model, "batch_renorm")
    assert model[1].qconfig == "theirs"
    convert_(model, "torch_batch_norm")
    assert model[1].qconfig == "theirs"
    assert not hasattr(model[1], "r_max")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.inner = nn.ModuleDict({"norm": self.norm, "other": nn.BatchNorm1d(4)})
        self.inner["other"].weight = self.norm.weight

    def forward(self, x):
        return self.inner["other"](self.inner["norm"](self.norm(x)))


def test_a_shared_module_is_converted_once_and_everywhere():
    model = randomize_(Tied().double()).eval()
    y = model(drawn(5, 4))
    change = convert_(model, "batch_norm")
    assert type(model.norm) is steadynorm.BatchNorm1d
    assert model.inner["norm"] is model.norm
    assert model.inner["other"].weight is model.norm.weight
    assert [each.name for each in change.changed] == ["norm", "inner.other"]
    assert torch.equal(model(drawn(5, 4)), y)


@pytest.mark.parametrize("name", ["norm", "inner.norm"])
def test_where_may_name_a_shared_module_by_any_of_its_names(name):
    model = Tied()
    convert_(model, "batch_norm", where=lambda each, module: each == name)
    assert type(model.inner["norm"]) is steadynorm.BatchNorm1d
    assert type(model.inner["other"]) is nn.BatchNorm1d


def test_a_root_that_is_a_norm_is_given_back_as_another():
    root = nn.BatchNorm3d(3)
    change = convert_(root, "ghost_batch_norm", ghost_batch_size=4)
    assert type(change.model) is steadynorm.GhostBatchNorm3d
    assert change.model.weight is root.weight


def test_options_of_ours_are_carried_to_ours():
    model = mixed(nonfinite="skip", update_every=3)
    convert_(model, "batch_renorm")
    assert (model[4].nonfinite, model[4].update_every) == ("skip", 3)
    convert_(model, "ghost_batch_norm", ghost_batch_size=2, update_every=5)
    assert (model[4].nonfinite, model[4].update_every, model[1].update_every) == ("skip", 5, 5)


def test_self_tuned_state_goes_on_in_another_layer():
    model = nn.Sequential(steadynorm.BatchNorm2d(3, running="self_tuned"))
    model(drawn(4, 3, 2, 2).float())
    bank = model[0]._bank_experts.clone()
    convert_(model, "ghost_batch_norm", ghost_batch_size=2)
    assert torch.equal(model[0]._bank_experts, bank)


def test_what_is_of_this_kind_already_is_left_alone():
    model = mixed()
    layer = model[4]
    change = convert_(model, "batch_norm")
    assert model[4] is layer
    assert [each.name for each in change.changed] == ["1", "8"]


def test_options_change_a_layer_of_the_same_kind():
    model = nn.Sequential(steadynorm.GhostBatchNorm2d(3, ghost_batch_size=8, nonfinite="skip"))
    convert_(model, "ghost_batch_norm", ghost_batch_size=4)
    assert (model[0].ghost_batch_size, model[0].nonfinite) == (4, "skip")


def test_an_activation_that_stood_behind_is_fused_again():
    model = mixed()
    y = model(MIXED_INPUT)
    convert_(model, "torch_batch_norm")
    assert isinstance(model[4], NormAddActivation)
    convert_(model, "batch_norm")
    assert type(model[4]) is steadynorm.BatchNorm2d
    assert model[4].activation == "relu"
    torch.testing.assert_close(model(MIXED_INPUT), y)


class Residual(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.norm = steadynorm.BatchNorm2d(3, activation=activation)

    def forward(self, x):
        return self.norm(x, residual=x)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("to", ["torch_batch_norm", "group_norm"])
def test_a_residual_is_still_added(activation, to):
    model, x = randomize_(Residual(activation).double()).eval(), drawn(4, 3, 2, 2)
    norm = copy.deepcopy(model.norm)
    change = convert_(model, to, example=x)
    inner = nn.GroupNorm(1, 3).double() if to == "group_norm" else norm
    inner.load_state_dict(model.norm.state_dict(), strict=False)
    inner.activation = None
    wanted = inner(x) + x
    torch.testing.assert_close(model(x), F.relu(wanted) if activation else wanted)
    assert [each.name for each in change.changed] == ["norm"]


class Louder(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Homemade(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))


def replaced_forward():
    norm = nn.BatchNorm2d(3)
    norm.forward = lambda x: x
    return norm


def with_module():
    norm = nn.BatchNorm2d(3)
    norm.more = nn.ReLU()
    return norm


def with_parameter():
    norm = nn.BatchNorm2d(3)
    norm.more = nn.Parameter(torch.zeros(1))
    return norm


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Louder(3), "subclass of batch norm"),
        (Homemade, "no batch norm of torch's or ours"),
        (replaced_forward, "forward has been replaced"),
        (nn.LazyBatchNorm2d, "not seen its first batch"),
        (with_module, "modules of its own: more"),
        (with_parameter, "parameters or buffers of its own: more"),
    ],
    ids=["subclass", "homemade", "forward", "lazy", "module", "parameter"],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_nobody_knows_is_refused_by_name(make, why):
    model = nn.Sequential(nn.Sequential(make()), nn.BatchNorm2d(3))
    odd = model[0][0]
    change = convert_(model, "batch_norm")
    assert model[0][0] is odd
    assert [each.name for each in change.changed] == ["1"]
    assert change.refused[0].name == "0.0"
    assert why in change.refused[0].why
    assert type(odd).__name__ in change.refused[0].what


def test_instance_norm_with_statistics_is_named_and_without_them_it_is_not():
    model = nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True))
    assert "it is an instance norm" in refusals(convert_, model, "batch_norm")[0].why
    model = nn.Sequential(nn.InstanceNorm2d(3))
    assert not convert_(model, "batch_norm").refused


@pytest.mark.parametrize("to", ["batchnorm", nn.BatchNorm2d(3), 3])
def test_an_unknown_target_is_refused(to):
    with pytest.raises(ValueError, match="to must be a layer's class"):
        convert_(mixed(), to)


def test_an_unknown_option_leaves_the_model_alone():
    model = mixed()
    before = snapshot(model)
    with pytest.raises(TypeError, match=r"batch_renorm has no option 'ghost_size'\. It has eps, momentum, .*r_max, .*"):
        convert_(model, "batch_renorm", ghost_size=3)
    with pytest.raises(TypeError, match=r"group_norm has no option 'groups'\. It has num_groups, eps\."):
        convert_(model, "group_norm", groups=4)
    assert_state_equal(model, before)


@each_kind
def test_given_eps_and_momentum_take_the_place_of_the_old_ones(to):
    model = mixed()
    to_kind(model, to, eps=0.5, momentum=0.25)
    assert {(model[place].eps, model[place].momentum) for place in (1, 8)} == {(0.5, 0.25)}


def test_group_norm_takes_a_given_eps():
    model = mixed()
    convert_(model, "group_norm", eps=0.5)
    assert model[1].eps == model[8].eps == 0.5


@pytest.mark.parametrize(
    "option", [{"affine": False}, {"device": "cpu"}, {"dtype": torch.float64}, {"num_features": 3}, {"bias": False}]
)
@pytest.mark.parametrize("to", ["frozen_batch_norm", "group_norm"])
def test_what_the_old_layers_decide_is_no_option(to, option):
    model = mixed()
    before = snapshot(model)
    (name,) = option
    with pytest.raises(TypeError, match=rf"convert_: the converted layer determines {name}"):
        convert_(model, to, **option)
    assert_state_equal(model, before)


def test_batches_are_for_group_norm():
    with pytest.raises(ValueError, match="recalibrate_"):
        convert_(mixed(), "batch_norm", batches=[MIXED_INPUT])


def sharded():
    """A sharded part, as fully_shard makes one: the same module, of a class that it has put before the old one."""
    from torch.distributed.fsdp import FSDPModule

    model = mixed()
    model[1].__class__ = type("FSDPBatchNorm2d", (FSDPModule, nn.BatchNorm2d), {})
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        torch.nn.DataParallel,
        torch.compile,
        lambda model: torch.jit.trace(model, MIXED_INPUT),
        lambda model: sharded(),
    ],
    ids=["data parallel", "compiled", "script", "sharded"],
)
def test_a_wrapped_model_is_refused(wrap):
    with pytest.raises(TypeError, match="Change the plain model, then wrap it"):
        convert_(wrap(mixed()), "batch_norm")


def test_half_precision_parameters_stay_and_statistics_widen():
    model = nn.Sequential(nn.BatchNorm2d(3)).bfloat16()
    convert_(model, "batch_norm")
    assert (model[0].weight.dtype, model[0].running_var.dtype) == (torch.bfloat16, torch.float32)
    change = convert_(model, "torch_batch_norm")
    assert model[0].running_var.dtype == torch.bfloat16
    assert "rounded" in change.changed[0].notes[0]
    assert model(torch.randn(2, 3, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_converted_model_can_be_copied_and_pickled():
    model = mixed()
    convert_(model, "batch_renorm")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(MIXED_INPUT), model(MIXED_INPUT))


def test_a_model_on_meta_is_converted_there():
    with torch.device("meta"):
        model = nn.Sequential(nn.BatchNorm2d(3))
    convert_(model, "batch_renorm")
    assert {each.device.type for each in model.state_dict().values()} == {"meta"}


def test_a_norm_in_a_graph_is_converted():
    model = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval())
    x = drawn(2, 3, 4, 4).float()
    y = model(x)
    convert_(model, "batch_renorm")
    assert type(model.get_submodule("1")) is steadynorm.BatchRenorm2d
    assert torch.equal(model(x), y)


def test_flipped_tracking_stays_flipped():
    model = randomize_(nn.Sequential(nn.BatchNorm2d(3)).double()).eval()
    model[0].track_running_stats = False  # which leaves the buffers in use in evaluation
    x = drawn(4, 3, 2, 2)
    y = model(x)
    convert_(model, "batch_norm")
    assert torch.equal(model(x), y)
    mean = model[0].running_mean.clone()
    model.train()(x)
    assert torch.equal(model[0].running_mean, mean)


def test_gated_says_that_evaluation_changes():
    change = convert_(mixed(), "gated_batch_norm")
    assert [each.notes[0].split(",")[0] for each in change.changed] == ["evaluation depends on the batch"] * 3


def test_an_empty_model_is_not_changed():
    change = convert_(nn.Sequential(nn.Linear(1, 1)), "batch_norm")
    assert (change.changed, change.refused) == ((), ())
