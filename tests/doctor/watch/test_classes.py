"""The classes of a batch, read off the gradient of its logits, are those of its labels."""

import pytest
import torch
from torch.nn import functional

from steadynorm.doctor.watch.classes import ClassCounts, alike, logits_of


def counted(loss, logits, labels, classes=5):
    counts = ClassCounts(1, classes, logits.device)
    logits.register_hook(lambda gradient: counts.add(0, gradient))
    loss(logits, labels).backward()
    return counts


@pytest.mark.parametrize(
    "loss",
    [
        functional.cross_entropy,
        lambda logits, labels: 65536 * functional.cross_entropy(logits, labels, reduction="sum"),
        lambda logits, labels: functional.cross_entropy(logits, labels, label_smoothing=0.1),
        lambda logits, labels: functional.cross_entropy(logits, labels, weight=torch.tensor([1.0, 2, 3, 4, 5])),
        lambda logits, labels: functional.nll_loss(logits.log_softmax(1), labels),
    ],
)
def test_cross_entropy_tells_the_labels(loss):
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 5, requires_grad=True), torch.randint(5, (40,))
    counts = counted(loss, logits, labels)
    assert torch.equal(counts.values[0].long(), torch.bincount(labels, minlength=5))
    assert not counts.unread.any()


def test_samples_that_are_ignored_do_not_count():
    logits = torch.randn(4, 5, requires_grad=True)
    counts = counted(functional.cross_entropy, logits, torch.tensor([1, -100, 1, 2]))
    assert counts.values[0].tolist() == [0, 2, 1, 0, 0]


@pytest.mark.parametrize("loss", [functional.binary_cross_entropy_with_logits, functional.mse_loss])
def test_another_loss_is_not_read(loss):
    torch.manual_seed(0)
    logits = torch.randn(40, 5, requires_grad=True)
    counts = counted(loss, logits, torch.rand(40, 5).round())
    assert counts.unread.all()


def test_logits_are_found_in_what_models_give():
    x = torch.randn(2, 3, requires_grad=True)
    assert logits_of(x) is x
    assert logits_of((x, None)) is x
    assert logits_of({"loss": x.sum(), "logits": x}) is x
    for none in (None, (), {"loss": x}, x.detach(), x[None], x[:, :1], x.long()):
        assert logits_of(none) is None


def test_pairs_of_one_class_are_counted():
    torch.testing.assert_close(
        alike(torch.tensor([[4.0, 0], [2, 2], [1, 0]])), torch.tensor([1, 1 / 3, torch.nan]), equal_nan=True
    )
    labels = torch.randint(3, (20,))
    pairs = [labels[i] == labels[j] for i in range(20) for j in range(20) if i != j]
    share = alike(torch.bincount(labels, minlength=3).double())
    assert float(share) == pytest.approx(sum(pairs) / len(pairs))


def test_of_independent_draws_it_is_on_average_the_sum_of_squared_shares():
    shares = torch.tensor([0.7, 0.2, 0.1])
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(shares, 4 * 20_000, replacement=True, generator=generator).view(-1, 4)
    counts = functional.one_hot(labels, 3).sum(1).double()
    assert float(alike(counts).mean()) == pytest.approx(float(shares.square().sum()), abs=0.005)
