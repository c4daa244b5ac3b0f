"""Stateless functions with the signatures of ``torch.nn.functional``; our own arguments are keyword-only."""

from steadynorm.functional.batch_norm import batch_norm, batch_norm_with_moments
from steadynorm.functional.batch_renorm import batch_renorm
from steadynorm.functional.checks import check_activation
from steadynorm.functional.frozen_batch_norm import frozen_batch_norm
from steadynorm.functional.gated_batch_norm import gated_batch_norm
from steadynorm.functional.ghost_batch_norm import ghost_batch_norm
from steadynorm.functional.masked_batch_norm import masked_batch_norm, valid_positions
from steadynorm.functional.sync_batch_norm import sync_batch_norm
from steadynorm.ops.reference import Activation

__all__ = [
    "Activation",
    "batch_norm",
    "batch_norm_with_moments",
    "batch_renorm",
    "check_activation",
    "frozen_batch_norm",
    "gated_batch_norm",
    "ghost_batch_norm",
    "masked_batch_norm",
    "sync_batch_norm",
    "valid_positions",
]
