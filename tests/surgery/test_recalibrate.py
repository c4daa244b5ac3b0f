"""Running statistics measured again; the oracle is NumPy on what each layer gets in evaluation afterwards."""

import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from steadynorm import layers
from steadynorm.layers.norm_add_activation import NormAddActivation
from steadynorm.surgery.batches import feed
from steadynorm.surgery.recalibrate import recalibrate_
from tests.support.layers import drawn, randomize_
from tests.support.surgery import Activated, refusals

RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def inputs_of(model, batches, run=feed):
    """What every batch norm with running statistics gets in evaluation, of shape (values, C), by name."""
    found, hooks, modes = {}, [], {module: module.training for module in model.modules()}
    for name, module in model.named_modules():
        if getattr(module, "running_mean", None) is not None:
            kept = found.setdefault(name, [])
            hooks.append(module.register_forward_pre_hook(lambda _, x, kept=kept: kept.append(x[0].detach().clone())))
    model.eval()
    with torch.no_grad():
        for batch in batches:
            run(model, batch)
    for hook in hooks:
        hook.remove()
    for module, mode in modes.items():
        module.training = mode
    return {
        name: np.concatenate([x.double().numpy().swapaxes(0, 1).reshape(x.shape[1], -1).T for x in kept])
        for name, kept in found.items()
        if kept
    }


def assert_consistent(model, batches, run=feed, rtol=1e-6, names=None):
    found = inputs_of(model, batches, run)
    assert set(found) == set(names or found)
    for name, x in found.items():
        norm = model.get_submodule(name)
        np.testing.assert_allclose(norm.running_mean.numpy(), x.mean(0), rtol=rtol, atol=rtol, err_msg=name)
        np.testing.assert_allclose(norm.running_var.numpy(), x.var(0, ddof=1), rtol=rtol, err_msg=name)


class Residual(nn.Module):
    def __init__(self, norm, channels):
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)
        self.norm, self.last = norm(channels), norm(channels)

    def forward(self, x):
        return torch.relu(x + self.last(self.second(torch.relu(self.norm(self.first(x))))))


def network(norm=nn.BatchNorm2d, channels=3):
    torch.manual_seed(0)
    blocks = [Residual(norm, channels) for _ in range(2)]
    model = nn.Sequential(nn.Conv2d(2, channels, 3), norm(channels), nn.ReLU(), nn.Dropout(0.5), *blocks)
    return randomize_(model.double())


def images(*sizes, seed=0):
    """Batches of such sizes, each with a brightness of its own."""
    return [drawn(size, 2, 6, 5, seed=seed + at) * (1 + at % 3) + at for at, size in enumerate(sizes)]


def snapshot(model):
    state = model.state_dict()
    metadata = copy.deepcopy(state._metadata)
    modes = {name: module.training for name, module in model.named_modules()}
    windows = {name: vars(module).get("_window_at") for name, module in model.named_modules()}
    buffers = {name: each.clone() for name, each in model.named_buffers()}
    hooks = [(len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.modules()]
    return copy.deepcopy(dict(state)), metadata, modes, windows, buffers, hooks


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert list(one) == list(other) if isinstance(one, dict) else one == other
        if isinstance(one, dict):
            for key, value in one.items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(value.nan_to_num(7e77), other[key].nan_to_num(7e77)), key
                elif key and isinstance(value, dict) and "steadynorm" in value:
                    assert_same([value.pop("steadynorm")], [other[key].pop("steadynorm")])
                else:
                    assert value == other[key], key


FAMILY = {
    "torch": nn.BatchNorm2d,
    "torch cumulative": lambda channels: nn.BatchNorm2d(channels, momentum=None),
    "ours": layers.BatchNorm2d,
    "activated": lambda channels: layers.BatchNorm2d(channels, activation="silu"),
    "window": lambda channels: layers.BatchNorm2d(channels, update_every=3),
    "self-tuned": lambda channels: layers.BatchNorm2d(channels, running="self_tuned"),
    "renorm": lambda channels: layers.BatchRenorm2d(channels, warmup_steps=1, ramp_steps=1),
    "gated": layers.GatedBatchNorm2d,
    "ghost": lambda channels: layers.GhostBatchNorm2d(channels, ghost_batch_size=2),
    "sync": layers.SyncBatchNorm,
    "torch sync": nn.SyncBatchNorm,
}
each_kind = pytest.mark.parametrize("kind", FAMILY)


@each_kind
def test_afterwards_the_input_of_each_layer_has_its_running_statistics(kind):
    model, batches = network(FAMILY[kind]), images(5, 1, 3)
    change = recalibrate_(model, batches, settled=0)
    assert_consistent(model, batches, rtol=1e-9)
    assert [each.name for each in change.changed] == ["1", "4.norm", "4.last", "5.norm", "5.last"]
    assert not change.refused


@each_kind
def test_undo_puts_back_every_bit(kind):
    model = network(FAMILY[kind])
    if kind != "torch sync":
        for batch in images(4, 4):
            model(batch)
    before = snapshot(model)
    change = recalibrate_(model, images(5, 1, 3))
    assert not torch.equal(model[1].running_mean, before[0]["1.running_mean"])
    change.undo()
    assert_same(snapshot(model), before)


def test_undo_is_possible_after_further_training():
    model = network(FAMILY["window"])
    before = model[1].running_mean.clone()
    change = recalibrate_(model, images(5, 3))
    for batch in images(4, 4):
        model(batch)
    change.undo()
    assert torch.equal(model[1].running_mean, before)


def test_a_variance_of_large_values_does_not_cancel():
    norm = nn.BatchNorm1d(1)
    x = drawn(4000, 1, dtype=torch.float32) + 3000
    recalibrate_(norm, x.split(100))
    assert norm.running_var.item() == pytest.approx(x.double().var().item(), rel=1e-4)
    assert norm.running_mean.item() == pytest.approx(x.double().mean().item(), abs=2.5e-4)


def test_values_are_weighed_and_not_batches():
    norm = nn.BatchNorm1d(1)
    batches = [torch.zeros(32, 1), torch.full((2, 1), 10.0)]
    change = recalibrate_(norm, batches)
    assert norm.running_mean.item() == pytest.approx(20 / 34)
    assert norm.running_var.item() == pytest.approx(torch.cat(batches).var().item())
    assert change.measured["samples"] == 34
    assert change.measured["batches"] == 2


def test_one_value_per_channel_in_a_batch_is_enough():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    batches = [drawn(1, 3, seed=seed) for seed in range(9)]
    recalibrate_(model, batches, settled=0)
    assert_consistent(model, batches, rtol=1e-9)


def test_one_value_per_channel_in_all_is_refused():
    with pytest.raises(ValueError, match=r"more than 1 value per channel.* got 1 in all batches.*BatchNorm1d\(3\)"):
        recalibrate_(nn.BatchNorm1d(3), [drawn(1, 3, dtype=torch.float32)])


def test_a_layer_that_is_not_reached_stays_and_is_named():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(3), randomize_(nn.BatchNorm1d(3))

        def forward(self, x):
            return self.used(x)

    model = Unused()
    before = copy.deepcopy(model.unused.state_dict())
    change = recalibrate_(model, [torch.randn(4, 3)])
    assert [(each.name, each.why) for each in change.refused] == [("unused", "not reached by the batches.")]
    assert_same([dict(model.unused.state_dict())], [dict(before)])


def test_a_deep_network_settles_without_growing():
    """Normalizing by what the pass before has measured, as it is, moves this one by 1e4 on the way."""
    torch.manual_seed(0)
    chain = [layer for _ in range(20) for layer in (nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())]
    model = nn.Sequential(*chain).double()
    batches = [drawn(8, 4, seed=seed) * (1 + seed % 4) for seed in range(12)]
    for most in (4, 7):
        assert recalibrate_(copy.deepcopy(model), batches, passes=most).measured["moved"] < 1
    change = recalibrate_(model, batches, settled=0)
    assert change.measured["passes"] <= 21
    assert_consistent(model, batches, rtol=1e-8)


def test_a_layer_called_several_times_gets_all_its_inputs_together():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(self.norm(x) * 3 + 1)

    model, batches = Twice().double(), [drawn(5, 3, seed=seed) + seed for seed in range(3)]
    change = recalibrate_(model, batches, settled=1e-9, passes=200)
    assert change.measured["moved"] <= 1e-9
    assert_consistent(model, batches, rtol=1e-7)
    assert change.measured["samples"] == 15


def test_what_does_not_settle_says_so():
    model = network()
    change = recalibrate_(model, images(5, 1, 3), passes=2)
    assert change.measured["passes"] == 2
    assert change.measured["moved"] > 1e-4
    assert any("not settled after 2 passes" in note for each in change.changed for note in each.notes)


def test_only_valid_positions_of_a_masked_layer_count():
    class Sequences(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = layers.MaskedBatchNorm1d(3)

        def forward(self, x, lengths=None, mask=None, by_name=False):
            if by_name:
                return self.norm(lengths=lengths, input=x)
            return self.norm(x, lengths=lengths) if mask is None else self.norm(x, mask)

    x, lengths = drawn(4, 3, 6), torch.tensor([6, 0, 2, 5])
    mask = torch.arange(6) < lengths[:, None]
    valid = x.movedim(1, -1)[mask]
    x = torch.where(mask[:, None], x, torch.nan)
    by_lengths = {"x": x, "lengths": lengths}
    for batch in (by_lengths, by_lengths | {"by_name": True}, {"x": x, "mask": mask}):
        model = Sequences().double()
        recalibrate_(model, [batch])
        torch.testing.assert_close(model.norm.running_mean, valid.mean(0))
        torch.testing.assert_close(model.norm.running_var, valid.var(0))


def test_a_norm_within_add_and_activation_is_reached():
    model = nn.Sequential(NormAddActivation(nn.BatchNorm1d(3), "relu")).double()
    change = recalibrate_(model, [drawn(5, 3)])
    torch.testing.assert_close(model[0].norm.running_mean, drawn(5, 3).mean(0))
    assert [each.name for each in change.changed] == ["0"]


@pytest.mark.parametrize(
    ("norm", "why"),
    [
        (lambda: layers.FrozenBatchNorm1d(3), "frozen"),
        (lambda: nn.BatchNorm1d(3, track_running_stats=False), "no running statistics"),
        (lambda: nn.BatchNorm1d(3).eval(), "evaluation mode while the model trains"),
        (lambda: Activated(3), "subclass"),
    ],
)
def test_what_is_left_alone_is_named(norm, why):
    model = nn.Sequential(nn.BatchNorm1d(3), norm())
    before = {name: each.clone() for name, each in model[1].named_buffers()}
    change = recalibrate_(model, [torch.randn(6, 3) + 5])
    assert [each.name for each in change.changed] == ["0"]
    assert [each.name for each in change.refused] == ["1"]
    assert why in change.refused[0].why
    assert_same([dict(model[1].named_buffers())], [before])


def test_a_live_layer_whose_tracking_was_switched_off_is_left_alone():
    norm = nn.BatchNorm1d(3)
    norm.track_running_stats = False
    assert "track_running_stats" in refusals(recalibrate_, norm, [torch.randn(6, 3)])[0].why
    assert norm.running_mean.abs().max() == 0


def test_where_chooses_a_layer_that_evaluates_even_so():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3).eval())
    change = recalibrate_(model, [torch.randn(6, 3) + 5], where=lambda name, module: name == "1")
    assert [each.name for each in change.changed] == ["1"]
    assert model[0].running_mean.abs().max() == 0
    assert not model[1].training


def test_a_model_that_evaluates_is_recalibrated():
    model = network().eval()
    assert len(recalibrate_(model, images(5, 3)).changed) == 5
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(("momentum", "before", "after"), [(0.1, 0, 3), (0.1, 7, 7), (None, 7, 3)])
def test_the_counter_stays_where_schedules_count_by_it(momentum, before, after):
    norm = nn.BatchNorm1d(3, momentum=momentum)
    norm.num_batches_tracked.fill_(before)
    recalibrate_(norm, [torch.randn(4, 3) for _ in range(3)])
    assert int(norm.num_batches_tracked) == after


def test_a_self_tuned_layer_and_a_window_start_again():
    model = nn.Sequential(layers.BatchNorm1d(3, running="self_tuned"), layers.BatchNorm1d(3, update_every=3)).double()
    for seed in range(4):
        model(drawn(5, 3, seed=seed))
    change = recalibrate_(model, [drawn(5, 3, seed=9)])
    fresh = layers.BatchNorm1d(3, running="self_tuned", dtype=torch.float64)
    for name, tensor in fresh.batch_memory().bank.items():
        assert torch.equal(model[0].get_buffer(name), tensor)
    assert (model[1].batch_memory().position, model[1].batch_memory().window) == (0, ())
    assert any("restarts" in note for note in change.changed[0].notes)


def test_modes_hooks_randomness_and_versions_of_parameters_stay():
    model, batches = network(), images(5, 3)
    model[4].eval()
    before, state = snapshot(model), torch.get_rng_state()
    recalibrate_(model, batches)
    after = snapshot(model)
    assert_same(after[2:4] + after[5:6], before[2:4] + before[5:6])
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_is_off():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)).double()
    recalibrate_(model, [drawn(50, 3)])
    torch.testing.assert_close(model[1].running_mean, drawn(50, 3).mean(0))


def broken_loader():
    yield drawn(5, 2, 6, 5)
    raise OSError("no such file")


@each_kind
@pytest.mark.parametrize("at", ["loader", "batch"])
def test_what_raises_leaves_everything_as_it_was(kind, at):
    model = network(FAMILY[kind])
    if kind != "torch sync":
        model(images(4)[0])
    before = snapshot(model)
    state = torch.get_rng_state()
    bad = images(5, 3)
    bad[1][2, 0, 3, 3] = torch.inf
    with pytest.raises(OSError if at == "loader" else ValueError):
        recalibrate_(model, broken_loader() if at == "loader" else bad)
    assert_same(snapshot(model), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_that_is_not_finite_is_named():
    bad = images(5, 3)
    bad[1][0, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match=r"must be finite .*torch.nn.BatchNorm2d\(3\) '1' in batch 2, counted from 1"):
        recalibrate_(network(), bad)


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="at least one batch, got none"):
        recalibrate_(network(), [])


@pytest.mark.parametrize("batches", [torch.randn(4, 3), {"x": torch.randn(4, 3)}, 5])
def test_a_single_batch_is_not_taken_apart(batches):
    with pytest.raises(TypeError, match="batches must be an iterable of batches, got"):
        recalibrate_(nn.BatchNorm1d(3), batches)


@pytest.mark.parametrize(
    "named", [{"prior": -1}, {"tolerance": torch.nan}, {"settled": -1e-3}, {"passes": 0}, {"prior": torch.inf}]
)
def test_arguments_out_of_range_are_refused(named):
    with pytest.raises(ValueError, match=f"recalibrate_: {next(iter(named))} must be at least"):
        recalibrate_(nn.BatchNorm1d(3), [torch.randn(4, 3)], **named)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, values):
        return self.norm(values)


@pytest.mark.parametrize(
    "batch",
    [drawn(5, 3), (drawn(5, 3), torch.zeros(5)), [drawn(5, 3), torch.zeros(5)], OrderedDict(values=drawn(5, 3))],
    ids=["tensor", "tuple", "list", "mapping"],
)
def test_batches_of_every_usual_form_are_fed(batch):
    model = Named().double()
    recalibrate_(model, [batch])
    torch.testing.assert_close(model.norm.running_mean, drawn(5, 3).mean(0))


def test_another_form_is_refused_and_a_forward_of_ones_own_takes_it():
    model, batch = Named().double(), type("Batch", (), {"x": drawn(5, 3)})()
    with pytest.raises(TypeError, match="forward=lambda model, batch"):
        recalibrate_(model, [batch])
    recalibrate_(model, [batch], forward=lambda model, batch: model(batch.x))
    torch.testing.assert_close(model.norm.running_mean, drawn(5, 3).mean(0))


def test_a_generator_is_kept_for_the_passes():
    model, batches = network(), images(5, 1, 3)
    recalibrate_(model, (batch for batch in batches), settled=0)
    assert_consistent(model, batches, rtol=1e-9)


def test_what_cannot_be_gone_through_again_is_refused():
    class Once:
        def __init__(self, batches):
            self.batches = iter(batches)

        def __iter__(self):
            return self.batches

    model = network()
    before = snapshot(model)
    with pytest.raises(ValueError, match="second pass must give as many batches, got 0 after 2"):
        recalibrate_(model, Once(images(5, 3)))
    assert_same(snapshot(model), before)


@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_a_shuffling_loader_gives_the_same_batches_in_each_pass(generator):
    seen = []
    data = TensorDataset(torch.cat(images(7, 6, 8)))
    loader = DataLoader(data, batch_size=4, shuffle=True, drop_last=True, generator=generator)

    def run(model, batch):
        seen.append(batch[0].sum().item())
        return model(batch[0])

    before = None if generator is None else generator.get_state()
    change = recalibrate_(network(), loader, forward=run)
    number = len(loader)
    assert len(seen) == number * change.measured["passes"] > number
    assert all(seen[at] == seen[at % number] for at in range(len(seen)))
    assert before is None or torch.equal(generator.get_state(), before)


def test_enough_batches_are_enough():
    torch.manual_seed(0)
    norm, taken = nn.BatchNorm1d(4).double(), []

    def batches():
        for seed in range(4000):
            taken.append(seed)
            yield drawn(16, 4, seed=seed) * 3 + 2

    change = recalibrate_(norm, batches(), tolerance=0.03)
    assert change.measured["standard_error"] <= 0.03
    # SE of a variance is sqrt(2/n) of itself for normal values, so that 2/0.0009 of them are enough.
    assert 1500 < change.measured["samples"] < 5000
    assert change.measured["batches"] == len(taken) == change.measured["samples"] / 16
    assert (norm.running_mean - 2).abs().max() < 3 * 4 * 0.03


def test_a_few_batches_are_taken_whatever_they_say():
    change = recalibrate_(nn.BatchNorm1d(3), [torch.ones(4, 3)] * 30, tolerance=0.5)
    assert change.measured["batches"] == 8


def test_values_that_come_together_count_as_one():
    """Each batch is one value 16 times over, so that only batches tell of the error."""
    batches = [drawn(1, 2, seed=seed).expand(16, 2) for seed in range(40)]
    norm = nn.BatchNorm1d(2).double()
    change = recalibrate_(norm, batches)
    means = torch.cat([batch[:1] for batch in batches])
    var = torch.cat(batches).var(0, correction=0) + norm.eps
    square = (means - means.mean(0)).square()
    of_mean = means.std(0) / 40**0.5 / var.sqrt()
    of_var = square.std(0) / 40**0.5 / var
    expected = torch.stack((of_mean, of_var)).max().item()
    assert change.measured["standard_error"] == pytest.approx(expected, rel=1e-9)


def test_one_batch_tells_nothing_of_its_error():
    assert np.isnan(recalibrate_(nn.BatchNorm1d(3), [torch.randn(4, 3)]).measured["standard_error"])


def test_a_prior_counts_as_so_many_samples():
    norm = randomize_(nn.BatchNorm1d(3).double())
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    x = drawn(6, 3) + 2
    recalibrate_(norm, [x[:4], x[4:]], prior=18)
    new = x.mean(0)
    torch.testing.assert_close(norm.running_mean, 0.75 * mean + 0.25 * new)
    torch.testing.assert_close(norm.running_var, 0.75 * var + 0.25 * x.var(0) + 0.1875 * (new - mean).square())


def test_with_a_prior_layers_are_measured_behind_blended_ones():
    model, batches = network(), images(5, 3)
    old = {name: each.clone() for name, each in model.named_buffers()}
    recalibrate_(model, batches, prior=8, settled=0)
    for name, x in inputs_of(model, batches).items():
        expected = (old[f"{name}.running_mean"].numpy() + x.mean(0)) / 2
        np.testing.assert_allclose(model.get_submodule(name).running_mean.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_a_prior_that_is_not_finite_is_refused_and_no_prior_forgets_it():
    norm = nn.BatchNorm1d(3)
    norm.running_var[1] = torch.nan
    with pytest.raises(ValueError, match="with a prior the running statistics must be finite"):
        recalibrate_(norm, [torch.randn(4, 3)], prior=4)
    recalibrate_(norm, [torch.randn(4, 3)])
    assert norm.running_var.isfinite().all()


def test_statistics_that_their_dtype_cannot_hold_are_refused():
    norm = nn.BatchNorm1d(2).half()
    with pytest.raises(ValueError, match=r"must fit into their dtype, got a variance up to .*torch.float16"):
        recalibrate_(norm, [(torch.randn(64, 2) * 1000).half()])


@pytest.mark.parametrize("at", ["model", "block"])
def test_a_compiled_model_runs_plainly(at):
    model, batches = network(), images(5, 3)
    expected = copy.deepcopy(model)
    recalibrate_(expected, batches)

    def backend(graph, inputs):
        raise AssertionError("compiled after all")

    if at == "block":
        model[4].compile(backend=backend)
    recalibrate_(torch.compile(model, backend=backend) if at == "model" else model, batches)
    torch.testing.assert_close(model.state_dict(), expected.state_dict())


def test_what_was_measured_is_printed():
    text = str(recalibrate_(network(), images(5, 3)))
    assert text.startswith("recalibrate_: 5 changed, 0 refused, batches 2, samples 8, passes ")
    assert "1: mean " in text


def test_a_model_without_batch_norm_is_left_as_it_is():
    assert not recalibrate_(nn.Linear(2, 2), [torch.randn(4, 2)]).changed


class Levels(nn.Module):
    """A batch norm that a large and a small level share."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(x).mean((2, 3)) + self.norm(5 + 2 * x[:, :, ::4, ::4]).mean((2, 3))


def test_calls_of_one_forward_count_alike_whatever_their_sizes():
    model, batches = Levels().eval(), [drawn(4, 3, 8, 8, seed=seed).float() for seed in range(3)]
    recalibrate_(model, batches)
    large, small = torch.cat(batches), torch.cat([5 + 2 * x[:, :, ::4, ::4] for x in batches])
    calls = [each.double().transpose(0, 1).flatten(1) for each in (large, small)]
    mean = sum(each.mean(1) for each in calls) / 2
    var = sum(((each - mean.unsqueeze(1)) ** 2).mean(1) for each in calls) / 2
    count = sum(each.shape[1] for each in calls)
    torch.testing.assert_close(model.norm.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.norm.running_var.double(), var * count / (count - 1), rtol=1e-5, atol=1e-6)
