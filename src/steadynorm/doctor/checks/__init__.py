"""The checks, a file each; to add one, write its file and name it here."""

from steadynorm.doctor.check import Check
from steadynorm.doctor.checks import (
    dead_channel,
    decayed_affine,
    degenerate_group_norm,
    dropout_before_norm,
    fp16_unsafe_variance,
    frozen_affine_live_statistics,
    hidden_module,
    lossy_subclass,
    low_precision_statistics,
    mixed_eps,
    mixed_modes,
    momentum_convention,
    near_zero_variance,
    negative_variance,
    nonfinite_statistics,
    norm_near_output,
    redundant_bias,
    statistics_at_init,
    statistics_horizon,
    sync_in_inference,
    sync_with_checkpoint,
    track_flag_inconsistent,
    transform_unsafe,
)

__all__ = ["CHECKS"]

CHECKS: dict[str, Check] = {
    check.name: check
    for check in map(
        Check.of,
        (
            nonfinite_statistics,
            negative_variance,
            statistics_at_init,
            statistics_horizon,
            mixed_modes,
            frozen_affine_live_statistics,
            hidden_module,
            momentum_convention,
            track_flag_inconsistent,
            low_precision_statistics,
            mixed_eps,
            dropout_before_norm,
            degenerate_group_norm,
            transform_unsafe,
            sync_with_checkpoint,
            sync_in_inference,
            lossy_subclass,
            dead_channel,
            near_zero_variance,
            fp16_unsafe_variance,
            norm_near_output,
            decayed_affine,
            redundant_bias,
        ),
    )
}
"""By name, in the order in which a diagnosis lists what is equally bad."""
