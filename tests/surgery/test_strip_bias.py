"""Redundant biases taken away, against the model that has them, in training and evaluation."""

import copy

import pytest
import torch
from torch import nn

import steadynorm
from steadynorm.surgery.strip_bias import strip_bias_
from tests.support.layers import drawn, randomize_
from tests.support.surgery import refusals


def sequence(*modules):
    return randomize_(nn.Sequential(*modules)).double()


def step(model, x, upstream):
    """Outputs and gradients by name of a step in training."""
    y = model.train()(x)
    names, parameters = zip(*model.named_parameters(), strict=True)
    return y, dict(zip(names, torch.autograd.grad(y, parameters, upstream), strict=True))


def check_stripped(model, x, *, biases=("0.bias",)):
    """Strip, and compare with the model that has its biases: in evaluation, in training, and after it."""
    torch.manual_seed(0)
    oracle = copy.deepcopy(model)
    change = strip_bias_(model, x)
    assert [f"{each.name}.bias" for each in change.changed] == list(biases)
    assert change.measured["largest_relative_error"] < 1e-12
    upstream = drawn(*model.eval()(x).shape, seed=9)
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(model(x), oracle.eval()(x), **close)
    (y, gradients), (expected, expected_gradients) = (step(each, x, upstream) for each in (model, oracle))
    torch.testing.assert_close(y, expected, **close)
    for bias in biases:
        gradient = expected_gradients.pop(bias)
        assert gradient.abs().max() < 1e-10 or isinstance(model[1], steadynorm.GatedBatchNorm2d)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], **close)
    torch.testing.assert_close(model.eval()(x), oracle.eval()(x), **close)
    return change


PAIRS = [
    (nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d, (3, 4, 7)),
    (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d, (3, 4, 7, 5)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d, (3, 4, 3, 3)),
    (nn.Conv3d(4, 6, 2), nn.BatchNorm3d, (3, 4, 3, 4, 5)),
    (nn.Linear(4, 6), nn.BatchNorm1d, (5, 4)),
]


@pytest.mark.parametrize(("layer", "norm", "shape"), PAIRS, ids=lambda each: getattr(each, "__name__", None))
@pytest.mark.parametrize("training", [True, False])
def test_the_bias_before_a_norm_is_redundant(layer, norm, shape, training):
    model = sequence(copy.deepcopy(layer), norm(6), nn.Tanh()).train(training)
    check_stripped(model, drawn(*shape))
    assert model[0].bias is None
    assert "0.bias" not in model.state_dict()


OURS = [
    steadynorm.BatchNorm2d(6, activation="relu"),
    steadynorm.BatchRenorm2d(6, warmup_steps=0, ramp_steps=1),
    steadynorm.GatedBatchNorm2d(6),
    steadynorm.GhostBatchNorm2d(6, ghost_batch_size=2),
    steadynorm.SyncBatchNorm(6),
    steadynorm.BatchNorm2d(6, track_running_stats=False),
    nn.BatchNorm2d(6, affine=False),
]


@pytest.mark.parametrize("norm", OURS, ids=lambda norm: type(norm).__name__)
def test_it_is_redundant_before_every_kind_of_norm(norm):
    model = sequence(nn.Conv2d(4, 6, 3), copy.deepcopy(norm), nn.Conv2d(6, 2, 1))
    check_stripped(model, drawn(4, 4, 5, 5))


def test_biases_of_shuffled_channels_move_to_their_own():
    shuffle = nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Identity(), nn.Flatten())
    shuffle[1].forward = lambda x: x.transpose(1, 2)
    check_stripped(sequence(nn.Linear(4, 6), shuffle, nn.BatchNorm1d(6)), drawn(5, 4))


def test_a_gate_is_said_to_let_the_bias_act():
    model = sequence(nn.Conv2d(4, 6, 3), steadynorm.GatedBatchNorm2d(6))
    assert "so the bias had a gradient" in str(strip_bias_(model, drawn(4, 4, 5, 5)))


def test_it_is_redundant_before_a_masked_batch_norm_called_without_mask():
    check_stripped(sequence(nn.Conv1d(4, 6, 3), steadynorm.MaskedBatchNorm1d(6)), drawn(4, 4, 5))


def test_what_a_norm_remembers_beyond_its_running_mean_moves_too():
    norm = steadynorm.BatchNorm2d(6, running="self_tuned", update_every=3)
    model = sequence(nn.Conv2d(4, 6, 3), norm)
    for seed in range(4):  # one window is full, the next has begun
        model.train()(drawn(4, 4, 5, 5, seed=seed))
    oracle = copy.deepcopy(model)
    strip_bias_(model, drawn(4, 4, 5, 5))
    for each in (model, oracle):
        for seed in range(2):
            each.train()(drawn(4, 4, 5, 5, seed=9 + seed))
    x = drawn(4, 4, 5, 5, seed=20)
    torch.testing.assert_close(model.eval()(x), oracle.eval()(x), rtol=1e-10, atol=1e-10)


def test_running_mean_is_subtracted_in_float64():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([1.0, -3.0]))
        model[1].running_mean.copy_(torch.tensor([5.0, 7.0]))
    strip_bias_(model, torch.randn(3, 2))
    assert model[1].running_mean.tolist() == [4.0, 10.0]


def test_undo_puts_the_same_parameter_back():
    model = sequence(nn.Linear(4, 6), nn.BatchNorm1d(6))
    bias, before = model[0].bias, copy.deepcopy(model.state_dict())
    change = strip_bias_(model, drawn(3, 4))
    assert "an existing optimizer still holds the bias" in str(change)
    change.undo()
    assert model[0].bias is bias
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_modes_statistics_and_random_numbers_stay():
    model = sequence(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Dropout(), nn.BatchNorm2d(6)).train()
    model[2].eval()
    before, modes, random = (
        copy.deepcopy(model.state_dict()),
        [m.training for m in model.modules()],
        torch.get_rng_state(),
    )
    strip_bias_(model, drawn(2, 4, 5, 5))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def refusal(model, x):
    before = copy.deepcopy(model.state_dict())
    (refused,) = refusals(strip_bias_, model, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return refused.why


class Use(nn.Module):
    """A layer and a norm, used as a function of both says."""

    def __init__(self, use, norm=None):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4) if norm is None else norm
        self.use = use

    def forward(self, x):
        return self.use(self, x)


@pytest.mark.parametrize(
    ("use", "why"),
    [
        (lambda m, x: m.norm(m.conv(x)) + m.conv(x), "'conv' is called 2 times."),
        (
            lambda m, x: m.norm(nn.functional.dropout(m.conv(x), training=m.training)),
            "in training, no convolution or linear layer feeds it.",
        ),
        (
            lambda m, x: [m.norm(y := m.conv(x)), y.sum()] if m.training else [m.norm(m.conv(x))],
            "in training, the output of 'conv' is also used by aten.sum.",
        ),
    ],
)
def test_a_bias_that_anything_else_sees_stays(use, why):
    assert refusal(randomize_(Use(use)).double(), drawn(3, 4, 5)) == why


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (sequence(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)), "the layer before, '0', has no bias."),
        (sequence(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6)), "no convolution or linear layer feeds it."),
    ],
)
def test_no_bias_that_could_go_is_said_and_no_failure(model, why):
    assert [each.why for each in strip_bias_(model, drawn(3, 4)).refused] == [why]


def test_masked_positions_keep_the_bias():
    model = Use(lambda m, x: m.norm(m.conv(x), lengths=torch.tensor([5, 3, 1])), steadynorm.MaskedBatchNorm1d(4))
    assert "masked values pass through it with the bias" in refusal(randomize_(model).double(), drawn(3, 4, 5))


def test_biases_that_differ_within_a_channel_stay():
    model = sequence(nn.Linear(4, 6 * 2), nn.Unflatten(1, (6, 2)), nn.BatchNorm1d(6))
    assert "their biases differ" in refusal(model, drawn(3, 4))


@pytest.mark.parametrize("norm", [steadynorm.FrozenBatchNorm1d(6), nn.BatchNorm1d(6).eval()])
def test_a_bias_before_frozen_statistics_is_learned(norm):
    model = sequence(nn.Linear(4, 6), copy.deepcopy(norm))
    model[0].requires_grad_()
    assert "its statistics are frozen" in refusal(model, drawn(3, 4))


def test_a_frozen_bias_before_frozen_statistics_goes():
    model = sequence(nn.Linear(4, 6), steadynorm.FrozenBatchNorm1d(6))
    model[0].bias.requires_grad_(False)
    oracle, x = copy.deepcopy(model), drawn(3, 4)
    assert len(strip_bias_(model, x).changed) == 1
    torch.testing.assert_close(model(x), oracle(x), rtol=1e-12, atol=1e-12)


def test_statistics_shared_with_a_norm_that_does_not_run_stay():
    model = randomize_(Use(lambda m, x: m.norm(m.conv(x)))).double()
    model.other = nn.BatchNorm1d(4).double()
    model.other.running_mean = model.norm.running_mean
    assert "its statistics are shared by" in refusals(strip_bias_, model, drawn(3, 4, 5))[0].why
