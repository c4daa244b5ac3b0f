"""A norm with the modules that another package's norm had after it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from torch import nn

from steadynorm.functional import Activation
from steadynorm.layers.norm_add_activation import ACTIVATION_MODULES, name_state_as_the_norms

__all__ = ["NormThen", "fused_activation", "tail_of"]


class NormThen(nn.Sequential):
    """tail( norm(x) ), with the state keys that the foreign norm had: the norm's without a prefix, the tail's by name.

    Args:
        norm: any module of one argument.
        tail: modules that run after it, in this order; none is called ``norm``.

    >>> norm = NormThen(nn.BatchNorm2d(8), {"act": nn.PReLU()})
    >>> sorted(norm.state_dict())
    ['act.weight', 'bias', 'num_batches_tracked', 'running_mean', 'running_var', 'weight']
    """

    def __init__(self, norm: nn.Module, tail: Mapping[str, nn.Module]) -> None:
        super().__init__(OrderedDict({"norm": norm, **tail}))
        name_state_as_the_norms(self)


def tail_of(module: NormThen) -> dict[str, nn.Module]:
    """Return the modules after the norm, by name."""
    return {name: each for name, each in module.named_children() if name != "norm"}


def fused_activation(tail: Iterable[nn.Module]) -> tuple[bool, Activation | None]:
    """Tell whether our layers can fuse these modules, and give the activation to fuse."""
    left = [module for module in tail if type(module) is not nn.Identity]
    if not left:
        return True, None
    names = {cls: name for name, cls in ACTIVATION_MODULES.items()}
    module = left[0]
    name = names.get(type(module))
    hooked = any(getattr(module, table) for table in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"))
    other_slope = isinstance(module, nn.LeakyReLU) and module.negative_slope != nn.LeakyReLU().negative_slope
    fits = len(left) == 1 and name is not None and not hooked and not other_slope
    return fits, name if fits else None
