"""Rules, one file each: they turn a batch's moments into center, scale and shift."""

from steadynorm.rules.batch_norm import BatchNormRule
from steadynorm.rules.batch_renorm import BatchRenormRule, renorm_bounds, renorm_corrections
from steadynorm.rules.formulas import activated, moments_with_graph, transformed
from steadynorm.rules.fused import normalize_fused
from steadynorm.rules.gated_batch_norm import GatedBatchNormRule, gate
from steadynorm.rules.ghost_batch_norm import chunk_count, cut, normalize_chunks_of_any_number
from steadynorm.rules.normalize import normalize
from steadynorm.rules.overflow import instead_of_overflow, is_looked_at
from steadynorm.rules.rule import CenterScaleShift, FusedRule, Rule

__all__ = [
    "BatchNormRule",
    "BatchRenormRule",
    "CenterScaleShift",
    "FusedRule",
    "GatedBatchNormRule",
    "Rule",
    "activated",
    "chunk_count",
    "cut",
    "gate",
    "instead_of_overflow",
    "is_looked_at",
    "moments_with_graph",
    "normalize",
    "normalize_chunks_of_any_number",
    "normalize_fused",
    "renorm_bounds",
    "renorm_corrections",
    "transformed",
]
