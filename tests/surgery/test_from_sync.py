import pytest
import torch
from torch import nn

import steadynorm
from steadynorm.surgery import convert_, freeze_, from_sync_
from tests.support.layers import drawn, randomize_
from tests.support.surgery import MIXED_INPUT, mixed, refusals

DIMENSIONS = {1: (nn.Conv1d, (4,)), 2: (nn.Conv2d, (4, 4)), 3: (nn.Conv3d, (4, 4, 4))}


def torchs(model):
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


@pytest.mark.parametrize("sync", ["sync_batch_norm", "torch_sync_batch_norm"])
def test_there_and_back_gives_the_same_classes_and_numbers(sync):
    model = mixed()
    y = model(MIXED_INPUT)
    convert_(model, "torch_batch_norm")
    classes = [type(module) for module in model.modules()]
    convert_(model, sync)
    change = from_sync_(model)
    assert [each.notes for each in change.changed] == [()] * 3  # what it is for needs no note
    if sync == "torch_sync_batch_norm":
        assert [type(module) for module in model.modules()] == classes
    assert [type(model[place]).__name__ for place in (1, 8)] == ["BatchNorm2d", "BatchNorm1d"]
    torch.testing.assert_close(model(MIXED_INPUT), y)


@pytest.mark.parametrize("dimensions", DIMENSIONS)
def test_the_convolution_before_tells_the_dimensions(dimensions):
    conv, size = DIMENSIONS[dimensions]
    model = torchs(randomize_(nn.Sequential(conv(2, 5, 1), getattr(nn, f"BatchNorm{dimensions}d")(5)).double())).eval()
    x = drawn(2, 2, *size)
    y = model(x)
    from_sync_(model)
    assert type(model[1]) is getattr(nn, f"BatchNorm{dimensions}d")
    assert torch.equal(model(x), y)


def test_a_norm_before_a_convolution_is_told_by_that():
    model = torchs(nn.Sequential(nn.BatchNorm3d(5), nn.Conv3d(5, 2, 1)))
    from_sync_(model)
    assert type(model[0]) is nn.BatchNorm3d


class PointNet(nn.Module):
    """Norms of one size for 1d and 2d input, registered apart from what feeds them."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 1), nn.Linear(6, 6)
        self.bn1, self.bn2 = nn.SyncBatchNorm(6), nn.SyncBatchNorm(6)

    def forward(self, x):
        return self.bn2(self.fc(self.bn1(self.conv(x)).mean((2, 3))))


def test_what_the_structure_leaves_open_is_refused():
    model = PointNet()
    refused = refusals(from_sync_, model)
    assert [each.name for each in refused] == ["bn1", "bn2"]
    assert "Give an example" in refused[0].why


@pytest.mark.parametrize("sync", ["sync_batch_norm", "torch_sync_batch_norm"])
def test_what_surgery_has_synchronised_tells_it_by_itself(sync):
    model = nn.Sequential(nn.BatchNorm3d(5))
    convert_(model, sync)
    from_sync_(model)
    assert type(model[0]).__name__ == "BatchNorm3d"


def test_an_example_tells_what_the_structure_leaves_open():
    model = PointNet().train()
    counter = int(model.bn1.num_batches_tracked)
    change = from_sync_(model, example=torch.randn(1, 3, 2, 2))  # one value per channel: too few to train
    assert (type(model.bn1), type(model.bn2)) == (nn.BatchNorm2d, nn.BatchNorm1d)
    assert not change.refused
    assert int(model.bn1.num_batches_tracked) == counter
    assert model.bn1.training
    assert not model.bn1._forward_pre_hooks


def test_plain_layers_are_left_alone():
    model = mixed()
    change = from_sync_(model)
    assert (change.changed, change.refused) == ((), ())


def test_ours_keep_activation_and_options():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), steadynorm.SyncBatchNorm(4, activation="silu", nonfinite="skip"))
    from_sync_(model)
    assert type(model[1]) is steadynorm.BatchNorm2d
    assert (model[1].activation, model[1].nonfinite) == ("silu", "skip")


class BesideLinear(nn.Module):
    """A linear layer over the last dimension of 4-d input; a neck after pooling, between convolution and linear."""

    def __init__(self):
        super().__init__()
        self.conv, self.first = nn.Conv2d(3, 5, 1), nn.SyncBatchNorm(5)
        self.mix, self.norm = nn.Linear(4, 4), nn.SyncBatchNorm(6)
        self.widen, self.neck = nn.Conv2d(6, 7, 1), nn.SyncBatchNorm(7)
        self.project, self.head = nn.Conv2d(5, 6, 1), nn.Linear(7, 2)
        self.square, self.linear = nn.SyncBatchNorm(4), nn.Linear(2, 4)

    def forward(self, x):
        x = self.norm(self.mix(self.project(self.first(self.conv(x)))))
        self.square(x.transpose(1, 2))
        return self.head(self.neck(self.widen(x).mean((2, 3))))


VERBS = {
    "from_sync_": from_sync_,
    "freeze_": lambda model, **arguments: freeze_(model, affine=False, **arguments),
    "convert_": lambda model, **arguments: convert_(model, "batch_norm", **arguments),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_linear_layer_does_not_tell_dimensions(verb):
    model = BesideLinear()
    change = VERBS[verb](model)
    assert {each.name for each in change.changed} == {"first", "norm"}
    assert {each.name for each in change.refused} == {"neck", "square"}
    assert all("Give an example to run the model on" in each.why for each in change.refused)


@pytest.mark.parametrize("verb", VERBS)
def test_a_run_tells_dimensions_beside_a_linear_layer(verb):
    model = BesideLinear().eval()
    x = torch.randn(2, 3, 4, 4)
    before = model(x)
    change = VERBS[verb](model, example=x)
    assert not change.refused
    classes = [type(getattr(model, name)).__name__[-2:] for name in ("first", "norm", "square", "neck")]
    assert classes == ["2d", "2d", "2d", "1d"]
    torch.testing.assert_close(model(x), before)
