"""Which pairs of layer and batch norm belong together, and why the others do not."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import steadynorm
from steadynorm.surgery.fold import fold_
from tests.support.layers import drawn, randomize_
from tests.support.surgery import Activated, refusals

X = drawn(2, 4, 5, 5)


class Block(nn.Module):
    """A convolution and a batch norm, used as a function of both says."""

    def __init__(self, use, conv=None, norm=None):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1) if conv is None else conv
        self.norm = nn.BatchNorm2d(4) if norm is None else norm
        self.use = use

    def forward(self, x):
        return self.use(self, x)


def straight(block, x):
    return block.norm(block.conv(x))


def refusal(model, x=X, **options):
    """The only refusal there is, in a model left as it was."""
    model = model if isinstance(model, nn.Sequential) else randomize_(model).double()
    expected = copy.deepcopy(model.state_dict())
    (refused,) = refusals(fold_, model.eval(), x, **options)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    return refused.why


def also(look):
    """A block in which something else looks at the convolution's output too."""

    def use(block, x):
        y = block.conv(x)
        return look(block, y)

    return use


@pytest.mark.parametrize(
    ("use", "why"),
    [
        (also(lambda b, y: b.norm(y) + y), "'conv' is also used by aten.add"),
        (also(lambda b, y: b.norm(y.relu_())), "'conv' is also used by aten.relu_"),
        (also(lambda b, y: b.norm(y) * y[:1, 0, 0, 0]), "'conv' is also used by aten.mul"),
        (also(lambda b, y: (b.norm(y), y.detach())), r"'conv' is also used by the output\[1\]"),
        (also(lambda b, y: {"h": [y], "o": b.norm(y)}), r"'conv' is also used by the output\['h'\]\[0\]"),
        (also(lambda b, y: b.norm(y.contiguous(memory_format=torch.channels_last)) + y), "also used by aten.add"),
        (also(lambda b, y: [setattr(b, "kept", y), b.norm(y)][1]), "also used by the attribute 'kept'"),
        (lambda b, x: b.norm(b.conv(x)) + b.conv(x), "'conv' is called 2 times"),
        (lambda b, x: b.norm(b.norm(b.conv(x))), "it is called 2 times"),
        (lambda b, x: b.norm(b.conv(x).relu()), "before: no convolution or linear layer feeds it"),
        (lambda b, x: b.norm(x), "before: no convolution or linear layer feeds it"),
        (lambda b, x: b.conv(x), "not reached by the example"),
        (lambda b, x: b.norm(b.conv(x).mT.mT.transpose(1, 3)[:, :4, :, :4]), "its channels are not those of 'conv'"),
        (lambda b, x: b.norm(b.conv(x)) + b.norm.running_mean.mean(), "are also used by aten.mean"),
        (lambda b, x: b.norm(b.conv(x)) + b.conv.weight.sum(), "the weight of 'conv' is also used by aten.sum"),
        (lambda b, x: b.norm(b.conv(x)) + b.conv.bias.sum(), "the bias of 'conv' is also used by aten.sum"),
    ],
)
def test_a_pair_that_is_not_alone_is_refused(use, why):
    assert re.search(why, refusal(Block(use)))


def test_a_convolution_with_and_without_norm_is_refused():
    class Both(nn.Module):
        """As torch.fx's fuse gets wrong by 7.6."""

        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x)) - self.conv(x.flip(0))

    assert "'conv' is called 2 times" in refusal(Both())


def test_the_same_output_as_residual_is_refused():
    def use(block, x):
        y = block.conv(x)
        return block.norm(y, residual=y)

    assert "the output of 'conv' is also its residual" in refusal(Block(use, norm=steadynorm.BatchNorm2d(4)))


def test_another_axis_of_the_same_size_is_refused():
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)).double()
    assert "its channels are not those of '0'" in refusal(randomize_(model), drawn(2, 5, 5))


def test_channels_that_do_not_reach_the_norm_are_refused():
    model = Block(lambda b, x: b.norm(b.conv(x)[:, :3]), norm=nn.BatchNorm2d(3))
    assert "its channels are not those of 'conv'" in refusal(model)


def test_a_tied_weight_is_refused():
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 5)).double()
    model[3].weight = model[0].weight
    assert "the weight of '0' is tied: '0.weight', '3.weight'" in refusal(randomize_(model), drawn(2, 5))


REPARAMETRIZED = {
    "weight norm": (parametrizations.weight_norm, "WeightNorm", "parametrize.remove_parametrizations"),
    "spectral norm": (parametrizations.spectral_norm, "SpectralNorm", "parametrize.remove_parametrizations"),
    "old weight norm": (nn.utils.weight_norm, "WeightNorm", "remove_weight_norm"),
    "old spectral norm": (nn.utils.spectral_norm, "SpectralNorm", "remove_spectral_norm"),
    "pruned": (lambda conv: prune.l1_unstructured(conv, "weight", 0.5), "L1Unstructured", "prune.remove"),
    "bias pruned": (lambda conv: prune.l1_unstructured(conv, "bias", 0.5), "L1Unstructured", "prune.remove"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("way", REPARAMETRIZED)
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_weight_that_is_computed_again_is_refused_with_what_computes_it(way, place):
    change, by, undo = REPARAMETRIZED[way]
    layers = [nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)]
    at = 0 if place == "before" else 1
    model = nn.Sequential(*(reversed(layers) if place == "before" else layers)).double()
    change(model[at])
    kind = "bias" if way == "bias pruned" else "weight"
    assert f"the {kind} of '{at}' is computed again in each forward, by {by}. " in refusal(model, drawn(2, 4, 3, 3))
    assert f"Make it a parameter: torch.nn.utils.{undo}" in refusal(model, drawn(2, 4, 3, 3))


class Doubled(nn.Conv2d):
    def forward(self, input):
        return 2 * super().forward(input)


class Described(nn.Conv2d):
    def extra_repr(self):
        return "mine"


def test_a_convolution_with_a_forward_of_its_own_is_refused():
    assert "has a forward of its own" in refusal(Block(straight, conv=Doubled(4, 4, 1)))


def test_a_forward_replaced_on_the_instance_is_refused():
    model = Block(straight)
    model.conv.forward = model.conv.forward
    assert "has a forward of its own" in refusal(model)


def test_a_subclass_with_torchs_forward_folds():
    model = randomize_(Block(straight, conv=Described(4, 4, 1))).double().eval()
    assert len(fold_(model, X).changed) == 1


@pytest.mark.parametrize("place", ["conv", "norm"])
@pytest.mark.parametrize("hook", ["forward", "forward_pre", "full_backward"])
def test_hooks_are_refused(place, hook):
    model = Block(straight)
    getattr(getattr(model, place), f"register_{hook}_hook")(lambda *_: None)
    assert f"a hook on '{place}'" in refusal(model)


def test_a_hook_on_what_contains_the_convolution_alone_is_refused():
    model = nn.Sequential(nn.Sequential(nn.Linear(5, 5)), nn.BatchNorm1d(5)).double()
    model[0].register_forward_hook(lambda *_: None)
    assert "is also used by a hook on '0'" in refusal(model, drawn(2, 5))


def test_a_hook_on_what_contains_both_is_none_of_ours():
    model = randomize_(nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5))).double().eval()
    model.register_forward_hook(lambda *_: None)
    assert len(fold_(model, drawn(2, 5)).changed) == 1


def test_a_gated_batch_norm_is_refused():
    assert "evaluation depends on the batch" in refusal(Block(straight, norm=steadynorm.GatedBatchNorm2d(4)))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, steadynorm.BatchNorm2d])
def test_a_norm_without_statistics_is_refused(norm):
    assert "no running statistics" in refusal(Block(straight, norm=norm(4, track_running_stats=False)))


@pytest.mark.parametrize("options", [{"lengths": torch.tensor([5, 3])}, {"mask": None}])
def test_a_masked_batch_norm_called_as_one_is_refused(options):
    model = Block(lambda b, x: b.norm(b.conv(x), **options), nn.Conv1d(4, 4, 1), steadynorm.MaskedBatchNorm1d(4))
    assert f"it is called with {next(iter(options))}" in refusal(model, drawn(2, 4, 5))


def test_a_mask_by_place_is_no_residual():
    mask = torch.ones(2, 5, dtype=torch.bool)
    model = Block(lambda b, x: b.norm(b.conv(x), mask), nn.Conv1d(4, 4, 1), steadynorm.MaskedBatchNorm1d(4))
    assert "it is called with argument 2" in refusal(model, drawn(2, 4, 5))


def test_a_subclass_of_batch_norm_is_refused():
    assert "subclass of batch norm that overrides forward" in refusal(Block(straight, norm=Activated(4)))


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_statistics_that_are_no_statistics_are_refused(value):
    model = randomize_(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))).double()
    model[1].running_var[1] = value
    if value == float("inf"):
        model[1].running_mean[1] = value
    assert "not finite, or its variance is negative, in 1 channels" in refusals(fold_, model.eval(), X)[0].why


def test_weights_too_large_for_their_dtype_are_refused():
    model = randomize_(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))).half()
    model[0].weight.data.fill_(1000.0)
    model[1].weight.data.fill_(30000.0)
    assert "too large for torch.float16" in refusals(fold_, model.eval(), X.half() * 1e-6)[0].why
