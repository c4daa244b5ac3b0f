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
    needs_recalibration,
    negative_variance,
    nonfinite_statistics,
    norm_near_output,
    outlier_statistics,
    redundant_bias,
    reused_norm,
    statistics_at_init,
    statistics_horizon,
    statistics_noise,
    sync_in_inference,
    sync_with_checkpoint,
    track_flag_inconsistent,
    train_eval_gap,
    transform_unsafe,
    values_per_channel,
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
            train_eval_gap,
            needs_recalibration,
            outlier_statistics,
            values_per_channel,
            mixed_modes,
            frozen_affine_live_statistics,
            hidden_module,
            reused_norm,
            statistics_noise,
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
