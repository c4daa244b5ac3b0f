"""The moments of batches are read off the running statistics; their distances are held to plain formulas."""

import math

import pytest
import torch
from torch import nn

from steadynorm import BatchNorm1d, BatchRenorm1d, GatedBatchNorm1d
from steadynorm.doctor.watch.levels import Levels, _median, levels_of
from steadynorm.doctor.watch.recorder import Layout, Rows
from steadynorm.surgery.named_modules import batch_norms_of


def recorded(model, batches):
    """Give the rows of some forwards, and the momenta."""
    (layout,) = Layout.of(batch_norms_of(model))
    rows, momenta = Rows(layout, len(batches)), []
    for at, x in enumerate(batches):
        rows.read(at, after=False)
        model(x)
        rows.read(at, after=True)
        momenta.append(tuple(each.module.momentum for each in layout.layers))
    return rows, momenta


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, BatchNorm1d, BatchRenorm1d, GatedBatchNorm1d])
@pytest.mark.parametrize("momentum", [0.1, 0.01, 1.0])
def test_the_batches_are_read_off_the_estimates(kind, momentum):
    torch.manual_seed(0)
    batches = [torch.randn(20, 3) * 2 + 1 for _ in range(4)]
    rows, momenta = recorded(nn.Sequential(kind(3, momentum=momentum)), batches)
    found = rows.batches(momenta)
    wanted = torch.stack([torch.stack((x.mean(0), x.var(0))) for x in batches])
    torch.testing.assert_close(found, wanted, rtol=1e-6 / momentum * 10, atol=1e-6 / momentum)


def test_no_variance_is_negative_by_rounding():
    model = nn.Sequential(nn.BatchNorm1d(1000))
    model[0].running_var.copy_(torch.linspace(0.1, 1e6, 1000))
    rows, momenta = recorded(model, [torch.zeros(4, 1000)])
    before, after = rows.values[0, :, 1]
    assert (before + (after - before) / 0.1 < 0).any()  # as it would be read
    assert (rows.batches(momenta)[0, 1] >= 0).all()


def test_a_layer_without_momentum_tells_nothing():
    rows, momenta = recorded(nn.Sequential(nn.BatchNorm1d(3, momentum=None)), [torch.randn(20, 3)])
    assert rows.batches(momenta).isnan().all()


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, BatchNorm1d])
def test_of_a_layer_that_is_called_twice_the_average_of_both_batches_is_read(kind):
    torch.manual_seed(0)
    layer = kind(3, momentum=0.2)
    batches = [torch.randn(20, 3) * 2 + 1 for _ in range(6)]
    rows, momenta = recorded(nn.Sequential(layer, nn.ReLU(), layer), batches)
    found = rows.batches(momenta)
    for x, read in zip(batches, found, strict=True):
        y = nn.functional.batch_norm(x, None, None, training=True).relu()
        once, again = (torch.stack((each.mean(0), each.var(0))) for each in (x, y))
        torch.testing.assert_close(read, (0.8 * once + again) / 1.8, rtol=1e-3, atol=1e-3)


def test_a_layer_whose_estimates_have_not_moved_tells_nothing():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3).eval())
    rows, momenta = recorded(model, [torch.randn(20, 3), torch.randn(20, 3)])
    found = rows.batches(momenta)
    assert found[..., :3].isfinite().all()
    assert found[..., 3:].isnan().all()
    levels = levels_of(rows, 2, momenta)
    assert levels.dead.isnan().tolist() == [False, True]
    assert levels.finite.all()


def test_the_median_is_torchs():
    values = torch.randn(9, 40, generator=torch.Generator().manual_seed(0))
    values[torch.rand(9, 40, generator=torch.Generator().manual_seed(1)) < 0.4] = torch.nan
    values[:, 3] = torch.nan
    torch.testing.assert_close(_median(values), values.nanmedian(0).values, rtol=0, atol=0, equal_nan=True)


def test_distances_are_those_of_their_formulas():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4, momentum=0.2), nn.BatchNorm1d(4, momentum=0.3)).double()
    batches = [torch.randn(30, 4, dtype=torch.double) for _ in range(5)]
    rows, momenta = recorded(model, batches)
    levels = levels_of(rows, 5, momenta)
    means, variances = (torch.stack([getattr(x, name)(0) for x in batches]) for name in ("mean", "var"))
    center_mean, center_var = means.median(0).values, variances.median(0).values
    d = ((means - center_mean) ** 2 / (center_var + 1e-5)).log1p().mean(1).expm1()
    q = ((variances + 1e-5) / (center_var + 1e-5)).log().mean(1)
    torch.testing.assert_close(levels.mean[:, 0], d)
    torch.testing.assert_close(levels.var[:, 0], q)
    running_mean, running_var = torch.zeros(4).double(), torch.ones(4).double()
    before_mean, before_var = [], []
    for mean, var in zip(means, variances, strict=True):
        before_mean.append(running_mean)
        before_var.append(running_var)
        running_mean, running_var = 0.8 * running_mean + 0.2 * mean, 0.8 * running_var + 0.2 * var
    before_mean, before_var = torch.stack(before_mean), torch.stack(before_var)
    d = ((means - before_mean) ** 2 / (before_var + 1e-5)).log1p().mean(1).expm1()
    torch.testing.assert_close(levels.running_mean[:, 0], d)
    lag = ((means.mean(0) - before_mean.mean(0)) ** 2 / (before_var.mean(0) + 1e-5)).log1p().mean().expm1()
    torch.testing.assert_close(levels.lag_mean[0], lag)
    q = ((variances.mean(0) + 1e-5) / (before_var.mean(0) + 1e-5)).log().mean()
    torch.testing.assert_close(levels.lag_var[0], q)
    steps = ((means[1:] - means[:-1]) ** 2 / (variances[:-1] + 1e-5)).log1p().mean(1).expm1()
    torch.testing.assert_close(levels.step_mean[1:, 0], steps)
    assert levels.step_mean[0].isnan().all()
    assert levels.finite.all()
    assert (levels.dead == 0).all()


def test_channels_without_variance_are_counted():
    model = nn.Sequential(nn.BatchNorm1d(4))
    x = torch.randn(30, 4)
    x[:, 1:] = 2.0
    rows, momenta = recorded(model, [x] * 80)
    assert levels_of(rows, 80, momenta).dead.tolist() == [0.75]


def test_what_is_not_finite_is_told_by_layer_and_forward():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    bad = torch.tensor([[math.inf, 0.0], [1.0, 2.0]])
    rows, momenta = recorded(model, [torch.randn(5, 2), bad])
    assert levels_of(rows, 2, momenta).finite.tolist() == [[1, 1], [0, 0]]


def test_all_of_it_is_transferred_in_its_shapes():
    rows, momenta = recorded(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)), [torch.randn(5, 2)] * 3)
    levels = levels_of(rows, 3, momenta)
    moved = levels.cpu()
    torch.testing.assert_close(moved.var, levels.var.double())
    torch.testing.assert_close(moved.lag_var, levels.lag_var.double())
    joined = Levels.join([levels, levels])
    assert joined.mean.shape == (3, 4)
    assert joined.dead.shape == (4,)


def test_moved_numbers_are_told_bit_by_bit():
    (layout,) = Layout.of(batch_norms_of(nn.Sequential(nn.BatchNorm1d(2))))
    rows = Rows(layout, 1)
    rows.spare.fill_(torch.nan)
    rows.note_moved()
    assert not rows.moved.any()
    rows.spare[1, 0, 1] = 0.0
    rows.note_moved()
    assert rows.moved.tolist() == [[False, True], [False, False]]


def test_what_is_written_is_read_again():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(3))
    (layout,) = Layout.of(batch_norms_of(model))
    row = torch.arange(10.0).view(2, 5)
    layout.write(row)
    torch.testing.assert_close(model[1].running_mean, torch.tensor([2.0, 3.0, 4.0]))
    torch.testing.assert_close(model[0].running_var, torch.tensor([5.0, 6.0]))
    found = torch.empty(2, 5)
    layout.read(found)
    assert torch.equal(found, row)
