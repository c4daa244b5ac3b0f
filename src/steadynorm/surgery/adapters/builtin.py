"""Built-in adapters of foreign norms, registered by name, so that their packages are not imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from steadynorm.surgery.adapters.registry import register_name

__all__ = ["register_builtin"]


def register_builtin() -> None:
    """Register the built-in adapters.

    Source: timm 1.0 (``layers/norm_act.py``, ``layers/inplace_abn.py``), torchvision 0.29 (``ops/misc.py``),
    detectron2 0.6 (``layers/batch_norm.py``), transformers 5 (``modeling_detr.py`` and its copies), inplace_abn 1.1.
    """
    after = ("drop", "act")
    register_name("timm.layers.norm_act.BatchNormAct2d", tail=after)
    register_name("timm.layers.norm_act.SyncBatchNormAct", like="sync_batch_norm", dimensions=0, tail=after)
    register_name("timm.layers.norm_act.FrozenBatchNormAct2d", like="frozen_batch_norm", tail=after)
    register_name("timm.layers.inplace_abn.InplaceAbn", tail=_named_activation, absolute_weight=True)
    register_name("inplace_abn.abn.ABN", dimensions=0, tail=_named_activation)
    register_name("inplace_abn.abn.InPlaceABN", dimensions=0, tail=_named_activation, absolute_weight=True)
    register_name(
        "inplace_abn.abn.InPlaceABNSync",
        like="sync_batch_norm",
        dimensions=0,
        tail=_named_activation,
        absolute_weight=True,
    )
    register_name("transformers.models.*FrozenBatchNorm2d", like="frozen_batch_norm", eps=1e-5)
    register_name("*.FrozenBatchNorm2d", like="frozen_batch_norm")  # torchvision's, detectron2's, and copies of them


def _named_activation(module: Any) -> Mapping[str, nn.Module]:  # noqa: ANN401 (a norm with attributes of its own)
    """Build the activation that a module of InPlace-ABN's kind names in an attribute."""
    name = getattr(module, "act_name", getattr(module, "activation", "identity"))
    parameter = getattr(module, "act_param", getattr(module, "activation_param", 0.01))
    made: dict[str, nn.Module] = {
        "relu": nn.ReLU(),
        "leaky_relu": nn.LeakyReLU(parameter),
        "elu": nn.ELU(parameter),
        "identity": nn.Identity(),
    }
    return {"act": made[name]}
