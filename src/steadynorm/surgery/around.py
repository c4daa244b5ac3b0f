"""The modules and activation after a batch norm, and how a layer that replaces it applies them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import nn

from steadynorm.functional import Activation
from steadynorm.layers.kinds import Kind
from steadynorm.layers.norm_add_activation import NormAddActivation
from steadynorm.surgery.adapters.norm_then import NormThen, fused_activation, tail_of
from steadynorm.surgery.kinds import kind_of, label
from steadynorm.surgery.named_modules import NamedModule
from steadynorm.surgery.rebuild import activation_of, has_hooks, share_hooks, with_activation, wrapped

__all__ = ["Around"]


@dataclass(frozen=True, kw_only=True)
class Around:
    """The computation after a norm, and how the new layer applies it.

    Args:
        activation: the activation that the new layer fuses, or that follows it.
        tail: modules that follow it, by name.
        absorbed: a module around the old norm that the new layer replaces too; None if it stays.
    """

    activation: Activation | None
    tail: dict[str, nn.Module]
    absorbed: nn.Module | None

    @classmethod
    def of(cls, named: NamedModule, form: nn.Module, tail: dict[str, nn.Module], kind: Kind) -> Self:
        """Find the computation after a norm.

        Args:
            named: the norm.
            form: the norm, in a known form.
            tail: modules that a foreign norm runs after itself.
            kind: of the new layer.
        """
        holder = named.holder if kind.ours and not has_hooks(named.module) else None
        if isinstance(holder, NormAddActivation):
            return cls(activation=activation_of(holder), tail={}, absorbed=holder)
        inside = tail_of(holder) if isinstance(holder, NormThen) else tail
        fits, activation = fused_activation(inside.values())
        if fits and kind.ours and (inside or holder):
            return cls(activation=activation, tail={}, absorbed=holder)
        fused = getattr(form, "activation", None) if kind_of(form)[0].ours else None
        left = {} if fits and activation is None else tail
        return cls(activation=fused, tail=left, absorbed=None)

    def put(self, new: nn.Module, kind: Kind, *, adds_residual: bool) -> nn.Module:
        """Return the module that replaces the old norm: the new layer, or a module around it."""
        if self.absorbed is not None:
            share_hooks(self.absorbed, new)
        elif self.tail:
            return wrapped(new, NormThen(new, self.tail))
        elif not kind.ours and (self.activation is not None or adds_residual):
            return with_activation(new, self.activation)
        return new

    def after(self, new: nn.Module, placed: nn.Module) -> str:
        """Name the modules after the new layer."""
        if isinstance(placed, NormThen):
            return "".join(f" + {label(each)}" for each in self.tail.values() if type(each) is not nn.Identity)
        return f" + {self.activation}" if placed is not new and self.activation else ""
