"""Types of the Trainer's callback arguments, and its position in the training."""

from __future__ import annotations

import math
from typing import Any

from transformers.trainer_callback import TrainerCallback
from transformers.trainer_callback import TrainerControl as Control
from transformers.trainer_callback import TrainerState as State
from transformers.training_args import TrainingArguments as Arguments

__all__ = ["Arguments", "Control", "Part", "State", "TrainerCallback", "epoch_of", "trained"]

Part = Any
"""Arguments from the Trainer, by name: model, train_dataloader, and more."""


def trained(state: State) -> float:
    """Return the number of trained epochs, fractional within an epoch."""
    return round(float(state.epoch or 0), 6)


def epoch_of(state: State) -> int:
    """Return the number of the current or just finished epoch, from 1."""
    return math.ceil(trained(state))
