"""What the Change of a conversion says that its user may not expect."""

import copy
import re

import pytest
import torch
from torch import nn

import steadynorm
from steadynorm.surgery import convert_
from tests.support.layers import drawn


def notes_of(model, to, **options):
    return convert_(model, to, **options).changed[0].notes


@pytest.mark.parametrize(
    ("seen", "options", "note"),
    [
        (0, {}, "plain batch norm for 5,000 more training steps, then bounds that grow to r_max and d_max over 35,000"),
        (4_000, {}, "plain batch norm for 1,000 more training steps, then bounds .* over 35,000 after them"),
        (
            15_000,
            {},
            r"^bounds that grow to r_max and d_max over 25,000 more; set it by convert_\(\.\.\., warmup_steps=",
        ),
        (3, {"warmup_steps": 10, "ramp_steps": 0}, r"^plain batch norm for 7 more training steps; set it by convert_"),
    ],
)
def test_renorm_tells_how_long_it_is_batch_norm(seen, options, note):
    norm = nn.BatchNorm2d(3)
    norm.num_batches_tracked.fill_(seen)
    (found,) = notes_of(norm, "batch_renorm", **options)
    assert re.search(note, found)


@pytest.mark.parametrize("options", [{"warmup_steps": 0, "ramp_steps": 0}, {"warmup_steps": 40_000, "ramp_steps": 9}])
def test_renorm_past_its_ramp_says_nothing(options):
    norm = nn.BatchNorm2d(3)
    norm.num_batches_tracked.fill_(40_009)
    assert notes_of(norm, "batch_renorm", **options) == ()


def test_the_steps_that_are_told_are_those_of_the_layer():
    norm = convert_(nn.BatchNorm1d(2), "batch_renorm", warmup_steps=3, ramp_steps=0).model
    plain = nn.BatchNorm1d(2)
    agrees = []
    for step in range(5):
        x = drawn(6, 2, seed=step, dtype=torch.float32) * 3 + 7
        agrees.append(torch.allclose(norm(x), plain(x), atol=1e-5))
    assert agrees == [True] * 3 + [False] * 2


def test_a_renorm_on_meta_tells_its_whole_schedule():
    assert "for 5,000 more" in notes_of(nn.BatchNorm2d(3, device="meta"), "batch_renorm")[0]


@pytest.mark.parametrize(
    ("norm", "to", "options", "by"),
    [
        (nn.BatchNorm2d, "ghost_batch_norm", {"ghost_batch_size": 2}, "chunks of at most 2 samples"),
        (
            lambda channels, **named: steadynorm.GhostBatchNorm2d(channels, ghost_batch_size=2, **named),
            "batch_norm",
            {},
            "the whole batch",
        ),
    ],
)
def test_ghost_without_running_statistics_says_that_evaluation_changes(norm, to, options, by):
    model = nn.Sequential(norm(3, track_running_stats=False)).eval()
    x = drawn(6, 3, 2, 2, dtype=torch.float32)
    before = model(x)
    note = f"it has no running statistics, so evaluation changes too: it normalizes by {by}"
    assert notes_of(model, to, **options)[-1] == note
    assert not torch.allclose(model(x), before, atol=1e-2)


def test_ghost_with_running_statistics_evaluates_as_before_and_says_nothing():
    assert notes_of(nn.BatchNorm2d(3), "ghost_batch_norm", ghost_batch_size=2) == ()


def test_masked_says_what_it_is_without_a_mask():
    assert notes_of(nn.BatchNorm1d(3), "masked_batch_norm") == (
        "plain batch norm wherever it is called without mask and lengths",
    )


PER_PROCESS = "in training each process normalizes by its own batch"
WITHOUT_MASK = "plain batch norm wherever it is called without mask and lengths"


@pytest.mark.parametrize(
    ("norm", "to", "options", "notes"),
    [
        (steadynorm.FrozenBatchNorm1d(3), "frozen_batch_norm", {"activation": "relu"}, []),
        (steadynorm.FrozenBatchNorm1d(3), "batch_norm", {}, ["no longer frozen"]),
        (steadynorm.GatedBatchNorm1d(3), "batch_norm", {}, ["evaluation no longer depends on the batch"]),
        (steadynorm.MaskedBatchNorm1d(3), "batch_norm", {}, ["no longer takes a mask"]),
        (steadynorm.SyncBatchNorm(3), "batch_norm", {}, [PER_PROCESS]),
        (nn.SyncBatchNorm(3), "batch_norm", {}, [PER_PROCESS]),
        (steadynorm.SyncBatchNorm(3), "torch_sync_batch_norm", {}, []),
        (nn.SyncBatchNorm(3), "sync_batch_norm", {}, []),
        (steadynorm.SyncBatchNorm(3), "masked_batch_norm", {}, [WITHOUT_MASK]),
    ],
)
def test_what_is_lost_is_said_and_what_stays_is_not(norm, to, options, notes):
    model = nn.Sequential(copy.deepcopy(norm).eval())
    found = notes_of(model, to, example=drawn(4, 3, 5, dtype=torch.float32), **options)
    assert [note.partition(":")[0] for note in found] == notes
