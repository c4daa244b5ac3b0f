"""Networks and normalizations as a user may bring them: small, and named on the command line in tests."""

import torch
from torch import nn

from steadynorm.layers import BatchNorm2d

HERE = "tests.support.given_networks"


def make(classes, channels):
    """Build two convolutions with batch norm, whose weights draw random numbers."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16, eps=1e-3, momentum=0.2),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, classes),
    )


def positional(a, b):
    return make(a, b)


def one(number):
    return make(number, 3)


def named(*, image_size, in_chans=3, num_classes=1000, width=32):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * image_size**2, num_classes))


def with_rest(*, weights=None, **options):
    return make(options.get("num_classes", 1000), 3)


def without_arguments():
    return make(10, 3)


def needs_more(classes, path):
    return make(classes, path)


def needs_three(a, b, c):
    return make(a, b)


def fails(classes):
    raise KeyError("no such width\nand more")


def no_module(classes):
    return [classes]


def plain(classes, channels):
    """Build what has no batch norm."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, classes))


class Odd(nn.BatchNorm2d):
    """A batch norm that nobody knows."""

    def forward(self, input):
        return super().forward(input) * 2


def partly_odd(classes, channels):
    model = make(classes, channels)
    model[5] = Odd(32)
    return model


def all_odd(classes, channels):
    model = partly_odd(classes, channels)
    model[1] = Odd(16)
    return model


def ours(classes, channels):
    """Build what has a layer of ours with an activation."""
    model = make(classes, channels)
    model[1] = BatchNorm2d(16, activation="relu")
    model[2] = nn.Identity()
    return model


class Lazy(nn.Module):
    """Knows its inputs when it has seen some, and gives an object with logits."""

    def __init__(self, classes, channels):
        super().__init__()
        self.body = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(classes))

    def forward(self, x):
        return type("Output", (), {"logits": self.body(x)})()


class Looks(nn.Module):
    """Looks at numbers while it is built, so that the meta device has none for it."""

    def __init__(self, classes, channels):
        super().__init__()
        self.body = make(classes, channels)
        self.scale = float(self.body[0].weight.detach().abs().max())

    def forward(self, x):
        return self.body(x) * self.scale


class Scale(nn.Module):
    """Divides each channel by a power of its mean magnitude."""

    def __init__(self, num_features, power=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.power = power

    def forward(self, input):
        size = input.abs().mean((0, *range(2, input.dim())), keepdim=True) + 1e-3
        return input / size**self.power * self.weight.view(1, -1, *[1] * (input.dim() - 2))


class FailsLater(nn.Module):
    """Normalizes nothing, and fails at batches of more than two images."""

    def __init__(self, num_features):
        super().__init__()

    def forward(self, input):
        if len(input) > 2:
            raise RuntimeError("too many")
        return input


class Raises(FailsLater):
    """Fails at every batch."""

    def forward(self, input):
        raise RuntimeError("no")


class Halves(FailsLater):
    """Gives the upper half of its input."""

    def forward(self, input):
        return input[:, :, : input.shape[2] // 2]


NO_CLASS = 3
