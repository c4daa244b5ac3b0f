"""Operations on whole models: each works in place, returns what it changed, and can be undone."""

from steadynorm.surgery.adapters.registry import register
from steadynorm.surgery.change import Change, Changed, NothingDoneError, Refused
from steadynorm.surgery.contexts import no_statistics_update, use_batch_statistics, use_running_statistics
from steadynorm.surgery.convert import convert_, from_sync_, to_torch_
from steadynorm.surgery.fold import fold_
from steadynorm.surgery.freeze import freeze_, unfreeze_
from steadynorm.surgery.param_groups import param_groups
from steadynorm.surgery.readings import readings_during, readings_of
from steadynorm.surgery.recalibrate import recalibrate_
from steadynorm.surgery.reconcile import reconcile_statistics_
from steadynorm.surgery.repair import repair_statistics_
from steadynorm.surgery.statistics import copy_statistics_, load_statistics_, merge_statistics, statistics_of
from steadynorm.surgery.strip_bias import strip_bias_

__all__ = [
    "Change",
    "Changed",
    "NothingDoneError",
    "Refused",
    "convert_",
    "copy_statistics_",
    "fold_",
    "freeze_",
    "from_sync_",
    "load_statistics_",
    "merge_statistics",
    "no_statistics_update",
    "param_groups",
    "readings_during",
    "readings_of",
    "recalibrate_",
    "reconcile_statistics_",
    "register",
    "repair_statistics_",
    "statistics_of",
    "strip_bias_",
    "to_torch_",
    "unfreeze_",
    "use_batch_statistics",
    "use_running_statistics",
]
