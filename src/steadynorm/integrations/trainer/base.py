"""What the Trainer hands to its callbacks, and where in the training it is."""

from __future__ import annotations

import math
from typing import Any

from transformers.trainer_callback import TrainerCallback
from transformers.trainer_callback import TrainerControl as Control
from transformers.trainer_callback import TrainerState as State
from transformers.training_args import TrainingArguments as Arguments

__all__ = ["Arguments", "Control", "Part", "State", "TrainerCallback", "epoch_of", "trained"]

Part = Any
"""Of the Trainer, by name: model, train_dataloader, and more."""


def trained(state: State) -> float:
    """Give the epochs that have been trained, with their decimals, which come of a division."""
    return round(float(state.epoch or 0), 6)


def epoch_of(state: State) -> int:
    """Give the number of the epoch that is being trained or has just been, from 1."""
    return math.ceil(trained(state))
