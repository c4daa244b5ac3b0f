"""Verbs on whole models: they work in place, say what they did, and can be undone."""

from steadynorm.surgery.change import Change, Changed, Refused
from steadynorm.surgery.convert import convert_, from_sync_, to_torch_
from steadynorm.surgery.fold import fold_
from steadynorm.surgery.freeze import freeze_, unfreeze_
from steadynorm.surgery.param_groups import param_groups
from steadynorm.surgery.strip_bias import strip_bias_

__all__ = [
    "Change",
    "Changed",
    "Refused",
    "convert_",
    "fold_",
    "freeze_",
    "from_sync_",
    "param_groups",
    "strip_bias_",
    "to_torch_",
    "unfreeze_",
]
