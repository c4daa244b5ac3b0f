"""The first batches of a loader leave a training that uses the same loader as it would be without them."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from steadynorm.integrations.batches import FirstBatches
from tests.support.fitting import loader_of


def firsts(batches):
    return [batch[0].tolist() for batch in batches]


def test_they_are_the_loaders_first():
    assert firsts(FirstBatches(loader_of(), 2, caller="me")) == firsts(loader_of())[:2]


def test_none_takes_all():
    assert firsts(FirstBatches(loader_of(), None, caller="me")) == firsts(loader_of())


def test_a_loader_with_a_generator_gives_the_same_each_time_and_goes_on_as_it_would():
    loader, other = (loader_of(shuffle=True, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    first = FirstBatches(loader, 2, caller="me")
    with first.kept():
        assert firsts(first) == firsts(first)
    assert firsts(loader) == firsts(other)


def test_a_sampler_within_a_batch_sampler_goes_on_as_it_would():
    def build():
        data = loader_of().dataset
        sampler = torch.utils.data.RandomSampler(data, generator=torch.Generator().manual_seed(3))
        return DataLoader(data, batch_sampler=torch.utils.data.BatchSampler(sampler, 8, drop_last=True))

    loader = build()
    first = FirstBatches(loader, 6, caller="me")
    with first.kept():
        assert firsts(first) == firsts(first)
    assert firsts(loader) == firsts(build())


class ByEpoch(torch.utils.data.Sampler):
    """Another order in each epoch, which it counts itself, as accelerate's does."""

    def __init__(self):
        self.epoch = 0

    def __len__(self):
        return 48

    def __iter__(self):
        yield from torch.randperm(48, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        self.epoch += 1


def test_a_sampler_that_counts_epochs_goes_on_as_it_would():
    loader, other = (DataLoader(loader_of().dataset, batch_size=8, sampler=ByEpoch()) for _ in range(2))
    assert firsts(loader) == firsts(other)
    first = FirstBatches(loader, None, caller="me")
    with first.kept():
        assert firsts(first) == firsts(first)
    assert firsts(loader) == firsts(other)


def test_the_random_numbers_of_transforms_are_put_back():
    first = FirstBatches([[torch.ones(1)]], None, caller="me")
    before = random.getstate(), np.random.get_state()[1].tolist()
    with first.kept():
        random.random(), np.random.rand()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_persistent_workers_go_on_with_their_epoch():
    loader = loader_of(num_workers=1, persistent_workers=True)
    training = iter(loader)
    seen = [next(training)[0].tolist()]
    assert len(firsts(FirstBatches(loader, 2, caller="me"))) == 2
    seen += [batch[0].tolist() for batch in training]
    assert seen == firsts(loader_of())


class Stream(IterableDataset):
    def __iter__(self):
        return self

    def __next__(self):
        return torch.ones(1)


@pytest.mark.parametrize(
    ("batches", "number", "error", "message"),
    [
        (iter([1]), 2, TypeError, "several times, got list_iterator"),
        (torch.ones(2), 2, TypeError, "several times, got Tensor"),
        (3, 2, TypeError, "several times, got int"),
        ([1], 0, ValueError, "number must be at least 1, got 0"),
        (DataLoader(Stream()), 2, ValueError, "start again in each loop, got Stream"),
    ],
)
def test_what_cannot_be_taken_is_refused(batches, number, error, message):
    with pytest.raises(error, match=f"^me: .*{message}"):
        FirstBatches(batches, number, caller="me")
