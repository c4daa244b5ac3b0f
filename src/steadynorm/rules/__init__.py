"""Rules: what turns a batch's moments into center, scale and shift; one file each."""

from steadynorm.rules.batch_norm import BatchNormRule
from steadynorm.rules.batch_renorm import BatchRenormRule, renorm_bounds
from steadynorm.rules.formulas import activated, is_transformed, moments_with_graph, transformed
from steadynorm.rules.gated_batch_norm import GatedBatchNormRule
from steadynorm.rules.ghost_batch_norm import chunk_count, cut, normalize_chunks_of_any_number
from steadynorm.rules.normalize import normalize
from steadynorm.rules.one_call import normalize_in_one_call, takes_one_call
from steadynorm.rules.overflow import instead_of_overflow, is_looked_at
from steadynorm.rules.rule import Affine, Rule

__all__ = [
    "Affine",
    "BatchNormRule",
    "BatchRenormRule",
    "GatedBatchNormRule",
    "Rule",
    "activated",
    "chunk_count",
    "cut",
    "instead_of_overflow",
    "is_looked_at",
    "is_transformed",
    "moments_with_graph",
    "normalize",
    "normalize_chunks_of_any_number",
    "normalize_in_one_call",
    "renorm_bounds",
    "takes_one_call",
    "transformed",
]
