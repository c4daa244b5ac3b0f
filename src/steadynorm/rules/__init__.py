"""Rules: what turns a batch's moments into center, scale and shift; one file each."""

from steadynorm.rules.batch_norm import BatchNormRule
from steadynorm.rules.batch_renorm import BatchRenormRule, renorm_bounds
from steadynorm.rules.gated_batch_norm import GatedBatchNormRule
from steadynorm.rules.ghost_batch_norm import chunk_count, cut, ghost_in_compiled_calls
from steadynorm.rules.normalize import normalize
from steadynorm.rules.one_call import batch_norm_in_one_call, takes_one_call
from steadynorm.rules.rule import Affine, Rule

__all__ = [
    "Affine",
    "BatchNormRule",
    "BatchRenormRule",
    "GatedBatchNormRule",
    "Rule",
    "batch_norm_in_one_call",
    "chunk_count",
    "cut",
    "ghost_in_compiled_calls",
    "normalize",
    "renorm_bounds",
    "takes_one_call",
]
