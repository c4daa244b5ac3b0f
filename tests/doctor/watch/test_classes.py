"""The classes of a batch, read off the gradient of its logits, are those of its labels."""

from types import SimpleNamespace

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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_may_be_of_any_precision(dtype):
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 5, dtype=dtype, requires_grad=True), torch.randint(5, (40,))
    counts = counted(lambda x, y: functional.cross_entropy(x.float(), y), logits, labels)
    assert torch.equal(counts.values[0].long(), torch.bincount(labels, minlength=5))
    assert not counts.unread.any()


def test_samples_that_are_ignored_do_not_count():
    logits, labels = torch.randn(20, 5, requires_grad=True), torch.tensor([1, 2]).repeat(10)
    labels[5] = -100
    assert counted(functional.cross_entropy, logits, labels).values[0].tolist() == [0, 10, 9, 0, 0]


@pytest.mark.parametrize("loss", [functional.binary_cross_entropy_with_logits, functional.mse_loss])
def test_another_loss_is_not_read(loss):
    torch.manual_seed(0)
    logits = torch.randn(40, 5, requires_grad=True)
    counts = counted(loss, logits, torch.rand(40, 5).round())
    assert counts.unread.all()


def test_a_smoothed_label_shows_where_the_model_is_more_certain_than_it():
    labels = torch.tensor([1, 1, 3, 0])
    logits = (12.0 * functional.one_hot(labels, 5) + torch.randn(4, 5)).requires_grad_()
    counts = counted(lambda x, y: functional.cross_entropy(x, y, label_smoothing=0.1), logits, labels)
    assert counts.values[0].tolist() == [1, 2, 0, 1, 0]


def test_actions_show_whether_they_are_rewarded_or_punished():
    torch.manual_seed(0)
    logits, actions, advantage = torch.randn(40, 5, requires_grad=True), torch.randint(5, (40,)), torch.randn(40)
    counts = counted(
        lambda x, y: (advantage * functional.cross_entropy(x, y, reduction="none")).mean(), logits, actions
    )
    assert torch.equal(counts.values[0].long(), torch.bincount(actions, minlength=5))


@pytest.mark.parametrize("seed", range(20))
def test_two_classes_are_not_mixed_up_by_rounding(seed):
    torch.manual_seed(seed)
    logits, labels = 2 * torch.randn(500, 2), torch.randint(2, (500,))
    counts = counted(functional.cross_entropy, logits.requires_grad_(), labels, classes=2)
    assert torch.equal(counts.values[0].long(), torch.bincount(labels, minlength=2))


def test_a_second_backward_does_not_count_the_batch_again():
    counts, logits = ClassCounts(1, 5, torch.device("cpu")), torch.randn(2, 5, requires_grad=True)
    counts.listen(0, logits)
    for _ in range(2):
        functional.cross_entropy(logits, torch.tensor([1, 3])).backward(retain_graph=True)
    assert counts.values[0].tolist() == [0, 1, 0, 1, 0]


def test_a_backward_that_comes_after_the_stretch_does_not_count_for_the_next():
    counts, logits = ClassCounts(1, 5, torch.device("cpu")), torch.randn(2, 5, requires_grad=True)
    counts.listen(0, logits)
    loss = functional.cross_entropy(logits, torch.tensor([1, 3]))
    counts.clear()
    loss.backward()
    assert not counts.values.any()


def test_a_batch_counts_as_empty_where_the_most_certain_samples_have_no_gradient():
    margins = torch.tensor([200.0, 200, 1, 1])
    logits = (margins[:, None] * functional.one_hot(torch.tensor([0, 1, 2, 2]), 4)).requires_grad_()
    counts = counted(functional.cross_entropy, logits, torch.tensor([0, 1, 2, 2]), classes=4)
    assert counts.values[0].tolist() == [0, 0, 0, 0]
    assert not counts.unread.any()


def test_a_million_classes_take_no_more_than_some_thousand_counters():
    counts = ClassCounts(32, 1_000_000, torch.device("cpu"))
    assert counts.values.numel() < 32 * 5_000
    gradient = torch.full((2, 1_000_000), 1e-6)
    gradient[0, 999_999], gradient[1, 4] = -1.0, -1.0
    counts.add(3, gradient)
    assert counts.values[3].nonzero().flatten().tolist() == sorted((4, 999_999 % counts.values.shape[1]))
    assert not counts.unread.any()


def test_many_gradients_at_once_are_not_read():
    counts, logits = ClassCounts(1, 5, torch.device("cpu")), torch.randn(2, 5, requires_grad=True).clone()
    counts.listen(0, logits)
    torch.autograd.grad(logits * 2, logits, torch.randn(3, 2, 5), is_grads_batched=True)
    x = torch.randn(2, 5, requires_grad=True)
    inner = x * 1
    counts.listen(0, inner)
    torch.autograd.grad(inner * 2, x, torch.randn(3, 2, 5), is_grads_batched=True)
    assert not counts.values.any()


def test_logits_are_found_in_what_models_give():
    x = torch.randn(2, 3, requires_grad=True)
    assert logits_of(x) is x
    assert logits_of((x, None)) is x
    assert logits_of({"loss": x.sum(), "logits": x}) is x
    assert logits_of(SimpleNamespace(loss=None, logits=x)) is x
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
