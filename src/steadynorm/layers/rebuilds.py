"""Refuse tools that rebuild a batch norm from its attributes and would drop a fused activation."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["CheckedAffine"]

_REBUILDERS = {
    "convert_sync_batchnorm": "surgery.convert_(model, 'sync_batch_norm')",  # torch, timm, Lightning
    "convert_syncbn_model": "surgery.convert_(model, 'sync_batch_norm')",  # apex
    "freeze_batch_norm_2d": "surgery.freeze_(model)",  # timm
    "_batchnorm_to_groupnorm": "surgery.convert_(model, 'group_norm')",  # opacus
}
"""Name of the function -> our replacement, which keeps the activation."""


class CheckedAffine:
    """The attribute ``affine``, which these tools read; reading it raises if the layer fuses an activation.

    For any other caller it is a plain attribute. No forward reads it.
    """

    def __get__(self, layer: Any, owner: type) -> Any:  # noqa: ANN401 (a layer, or None for the class)
        if layer is None:
            return self
        caller = sys._getframe(1).f_code.co_name
        activation = vars(layer).get("activation")
        if caller in _REBUILDERS and activation is not None:
            raise TypeError(
                f"{owner.__name__}: a layer rebuilt by {caller} must fuse no activation, which would be dropped, got "
                f"activation={activation!r}. Use steadynorm.{_REBUILDERS[caller]}, or surgery.to_torch_(model) before."
            )
        if "affine" not in vars(layer):
            raise AttributeError(f"{owner.__name__!r} object has no attribute 'affine'")
        return vars(layer)["affine"]

    def __set__(self, layer: Any, value: bool) -> None:  # noqa: ANN401 (as above)
        vars(layer)["affine"] = value
