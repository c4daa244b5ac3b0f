"""A subclass of a layer is folded into where its output follows its weights, and refused where it does not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadynorm.surgery.fold import fold_
from tests.support.layers import drawn, randomize_
from tests.support.surgery import refusals

X = drawn(2, 4, 6, 6)


class SamePadding(nn.Conv2d):
    """Pads by the input's size before it convolves, as TensorFlow does."""

    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Standardized(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.flatten(1).std(1).view(-1, 1, 1, 1)
        return F.conv2d(x, weight, self.bias)


class Branched(nn.Conv2d):
    """A low-rank update beside the weights."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.update = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return super().forward(x) + self.update(x)


class Activated(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).relu()


class Called(nn.Conv2d):
    def __call__(self, x):
        return super().__call__(x) * 2


def model_of(conv):
    return randomize_(nn.Sequential(conv, nn.BatchNorm2d(4))).double().eval()


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_that_pads_by_itself_is_folded_into(bias):
    model = model_of(SamePadding(4, 4, 3, bias=bias))
    expected = model(X)
    assert len(fold_(model, X).changed) == 1
    torch.testing.assert_close(model(X), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cls", [Standardized, Branched, Activated, Called])
def test_one_that_does_more_is_refused(cls):
    model = model_of(cls(4, 4, 1))
    expected = model(X)
    why = "no convolution or linear layer feeds it" if cls is Called else "has a forward of its own"
    assert why in refusals(fold_, model, X)[0].why
    assert torch.equal(model(X), expected)


def test_none_is_folded_into_from_before():
    model = randomize_(nn.Sequential(nn.BatchNorm2d(4), SamePadding(4, 4, 3))).double().eval()
    assert "has a forward of its own" in refusals(fold_, model, X)[0].why
