"""A comparison small enough for a test: 96 training images of a tenth-second network."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from steadynorm.lab import experiment
from steadynorm.lab.data import Dataset, Images
from steadynorm.lab.experiments.compare import CompareConfig
from steadynorm.lab.settings import Settings
from steadynorm.ops.dispatch import backend
from steadynorm.reporting.records import Cell

TINY = CompareConfig(epochs=4, batch_size=16, depth=2, widths=(4, 8), milestones=(2, 3), precision="fp32", lr=0.05)
TINY_SETTINGS = Settings(
    network="cnn",
    depth=2,
    widths=(4, 8),
    batch_size=16,
    accumulate=1,
    momentum=0.9,
    weight_decay=5e-4,
    milestones=(2, 3),
    augment="none",
    device=torch.device("cpu"),
    precision="fp32",
)
TIMES = ("images_per_second", "seconds")  # what no two runs share


def tiny_dataset(seed: int = 5) -> Dataset:
    """Ten classes that differ in brightness, so that something can be learned."""
    generator = torch.Generator().manual_seed(seed)

    def split(count: int) -> Images:
        labels = torch.arange(count) % 10
        noise = torch.randint(0, 60, (count, 3, 32, 32), generator=generator)
        pixels = (labels.view(-1, 1, 1, 1) * 19 + noise).to(torch.uint8).contiguous(memory_format=torch.channels_last)
        return Images(pixels=pixels, labels=labels)

    return Dataset(
        name="tiny",
        train=split(96),
        validation=split(30),
        classes=tuple("abcdefghij"),
        mean=(0.4, 0.4, 0.4),
        std=(0.25, 0.25, 0.25),
    )


class Recorder:
    """A display that remembers, and can fail at the state after an epoch."""

    def __init__(self, *, fail_after_epoch: int | None = None, error: BaseException | None = None) -> None:
        self.messages: list[str] = []
        self.begun: list[str] = []
        self.left: list[int | None] = []
        self.ended: list[str] = []
        self.shares: list[float] = []
        self.steps: dict[str, int] = {}
        """Of each piece, how many it told."""
        self.texts: list[str] = []
        """Of what does not last."""
        self.lines: list[str] = []
        """Of what does."""
        self.fail_after_epoch = fail_after_epoch
        self.error = error or RuntimeError("stopped on purpose")

    def message(self, text: str) -> None:
        self.messages.append(text)

    def begin(
        self, name: str, *, number: int, of: int, left: int | None = None, share: float = 0.0, text: str = ""
    ) -> None:
        self.begun.append(f"{number}/{of} {name}{text}")
        self.left.append(left)

    def advance(self, name: str, share: float, text: str = "", *, lasting: bool = False) -> None:
        if lasting:
            self.lines.append(text)
            if text.startswith(f"epoch {self.fail_after_epoch}/"):
                raise self.error
        else:
            self.shares.append(share)
            self.steps[name] = self.steps.get(name, 0) + 1
            self.texts += [text] if text else []

    def end(self, name: str, text: str = "") -> None:
        self.ended.append(name)


def without_times(cell: Cell) -> Cell:
    """The cell with its wall-clock times set to zero: what must be the same in every repetition."""
    rows = tuple(replace(row, value=0.0) if row.quantity in TIMES else row for row in cell.measurements)
    return replace(cell, seconds=0.0, measurements=rows)


@contextlib.contextmanager
def on_tiny_data() -> Iterator[None]:
    """Let experiments find the tiny data set in place of the embedded one, and not wait for kernels to be compiled."""
    with mock.patch.object(experiment, "load_dataset", lambda name, **_: tiny_dataset()), backend("torch"):
        yield


def kill(worker: Callable[..., None], *arguments: object, after: float = 0.0) -> None:
    """Run a function of a test module as a process of its own, and kill it by SIGKILL.

    Args:
        worker: gets ``arguments`` as text; prints "begun", and must not end.
        after: seconds from "begun" to the kill.
    """
    name = worker.__name__
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sys; from {worker.__module__} import {name}; {name}(*sys.argv[1:])",
            *map(str, arguments),
        ],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n", process.communicate()
    time.sleep(after)
    assert process.poll() is None
    process.kill()
    process.communicate()
