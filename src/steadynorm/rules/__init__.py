"""Rules: what turns a batch's moments into center, scale and shift; one file each."""

from steadynorm.rules.batch_norm import BatchNormRule
from steadynorm.rules.normalize import normalize
from steadynorm.rules.one_call import batch_norm_in_one_call, takes_one_call
from steadynorm.rules.rule import Affine, Rule

__all__ = ["Affine", "BatchNormRule", "Rule", "batch_norm_in_one_call", "normalize", "takes_one_call"]
