"""Room in memory and in files that are mapped."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from steadynorm.lab.data import hold_out, storage
from steadynorm.lab.data.storage import fits, gathered, memory_limit, room


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setattr(storage, "memory_limit", lambda: 99)


def test_a_part_of_the_free_memory_may_be_taken() -> None:
    assert 2**20 < memory_limit() < 2**50
    assert fits((10, 10, 10, 3))
    assert not fits((2**20, 2**20, 2**10))


def test_a_containers_limit_counts(monkeypatch) -> None:
    monkeypatch.setattr(storage, "_left_in_group", lambda: 1000.0)
    assert memory_limit() == 500
    monkeypatch.setattr(storage, "_left_in_group", lambda: math.inf)
    assert memory_limit() > 2**20


def test_room_that_does_not_fit_is_a_file_without_a_name(small, tmp_path: Path) -> None:
    made = room((10, 10), tmp_path)
    made[:] = 7
    assert (made.dtype, made.sum().item()) == (torch.uint8, 700)
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) in Path("/proc/self/maps").read_text()


def test_rows_are_gathered_into_a_file_where_they_do_not_fit(small, monkeypatch) -> None:
    monkeypatch.setattr(storage, "_CHUNK", 3)
    rows = torch.arange(400).to(torch.uint8).reshape(20, 20)
    chosen = torch.tensor([19, 3, 3, 0, 7, 11, 2])
    asked = []
    monkeypatch.setattr(storage, "room", lambda shape: asked.append(shape) or room(shape))
    assert torch.equal(gathered(rows, chosen), rows[chosen])
    assert asked == [(7, 20)]


def test_a_split_of_what_does_not_fit_is_the_same(monkeypatch, random_images) -> None:
    images = random_images(20)
    expected = hold_out(images, fraction=0.25, seed=0)
    monkeypatch.setattr(storage, "memory_limit", lambda: 99)
    for found, one in zip(hold_out(images, fraction=0.25, seed=0), expected, strict=True):
        assert torch.equal(found.pixels, one.pixels)
        assert torch.equal(found.labels, one.labels)
