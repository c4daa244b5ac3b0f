"""Norms shaped like those of other packages, under their names: what surgery must know without the packages."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FOREIGN", "FROZEN", "BatchNormAct2d", "chain", "look_like", "randomize_foreign_"]


def look_like(name: str) -> Any:
    """Give a class another qualified name."""

    def rename(cls: type) -> type:
        cls.__module__, _, cls.__qualname__ = name.rpartition(".")
        return cls

    return rename


class _Behind:
    """Submodules drop and act, and a forward that runs them."""

    drop: nn.Module
    act: nn.Module

    def _put_behind(self, act: nn.Module | None, drop: nn.Module | None) -> None:
        self.drop = nn.Identity() if drop is None else drop
        self.act = nn.Identity() if act is None else act


@look_like("timm.layers.norm_act.BatchNormAct2d")
class BatchNormAct2d(nn.BatchNorm2d, _Behind):
    def __init__(self, channels: int, act: nn.Module | None = None, drop: nn.Module | None = None) -> None:
        super().__init__(channels, eps=1e-3)
        self._put_behind(act, drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


@look_like("timm.layers.norm_act.SyncBatchNormAct")
class SyncBatchNormAct(nn.SyncBatchNorm, _Behind):
    def __init__(self, channels: int, act: nn.Module | None = None, drop: nn.Module | None = None) -> None:
        super().__init__(channels)
        self._put_behind(act, drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class _Frozen(nn.Module):
    """An affine map by four buffers; its eps stands in the code unless it is an attribute."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + getattr(self, "eps", 1e-5)).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


@look_like("timm.layers.norm_act.FrozenBatchNormAct2d")
class FrozenBatchNormAct2d(_Frozen, _Behind):
    def __init__(self, channels: int, act: nn.Module | None = None, drop: nn.Module | None = None) -> None:
        super().__init__(channels)
        self.eps = 1e-4
        self._put_behind(act, drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


@look_like("torchvision.ops.misc.FrozenBatchNorm2d")
class TorchvisionFrozen(_Frozen):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.eps = 1e-3


@look_like("detectron2.layers.batch_norm.FrozenBatchNorm2d")
class DetectronFrozen(_Frozen):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.num_features, self.eps = channels, 1e-5
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, eps=self.eps)


@look_like("transformers.models.detr.modeling_detr.DetrFrozenBatchNorm2d")
class DetrFrozen(_Frozen):
    pass


@look_like("inplace_abn.abn.InPlaceABN")
class InPlaceABN(nn.Module):
    """Multiplies by |weight| + eps and names its activation; writes over its input."""

    def __init__(self, channels: int, activation: str = "leaky_relu", activation_param: float = 0.1) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum, self.affine = channels, 1e-4, 0.1, True
        self.activation, self.activation_param = activation, activation_param
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.abs() + self.eps
        stored = self.running_mean, self.running_var
        y = F.batch_norm(x, *stored, weight, self.bias, self.training, self.momentum, self.eps)
        return y if self.activation == "identity" else F.leaky_relu(y, self.activation_param)


FROZEN = {"torchvision": TorchvisionFrozen, "detectron2": DetectronFrozen, "detr": DetrFrozen}
FOREIGN = {
    "timm, relu": lambda c: BatchNormAct2d(c, nn.ReLU(inplace=True)),
    "timm, hard swish": lambda c: BatchNormAct2d(c, nn.Hardswish(inplace=True)),
    "timm, silu and drop": lambda c: BatchNormAct2d(c, nn.SiLU(inplace=True), nn.Dropout2d(0.5)),
    "timm, prelu": lambda c: BatchNormAct2d(c, nn.PReLU(c)),
    "timm, nothing": BatchNormAct2d,
    "timm, synchronised": lambda c: SyncBatchNormAct(c, nn.GELU()),
    "timm, frozen": lambda c: FrozenBatchNormAct2d(c, nn.ReLU()),
    "inplace abn": InPlaceABN,
    **FROZEN,
}
"""By name: channels -> a norm."""


def randomize_foreign_(model: nn.Module) -> nn.Module:
    """Give every norm numbers of its own: weights of either sign, buffers or parameters."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(module, name, None)
            if isinstance(tensor, Tensor) and isinstance(getattr(module, "running_mean", None), Tensor):
                values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                with torch.no_grad():
                    tensor.copy_(values.abs() + 0.3 if name == "running_var" else values)
    return model


def chain(build: Any, channels: int = 6) -> nn.Sequential:
    """Two convolutions, each with a norm after it; in float64 and in evaluation."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, channels, 3), build(channels), nn.Conv2d(channels, channels, 1, bias=False), build(channels)
    )
    return randomize_foreign_(model.double()).eval()
