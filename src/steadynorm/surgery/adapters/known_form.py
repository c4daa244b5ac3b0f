"""Represent a foreign norm by one of torch's or ours with the same state, and the modules after it."""

from __future__ import annotations

from torch import Tensor, nn

from steadynorm.layers.kinds import BATCH_NORMS
from steadynorm.surgery.kinds import adapter_of, kind_of
from steadynorm.surgery.rebuild import fresh_like, move_attributes, share_hooks

__all__ = ["known_form"]

_STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_OF_MODULES = frozenset(vars(nn.Module()))
_OF_ADAPTERS = frozenset(("act_name", "act_param", "activation", "activation_param"))


def known_form(module: nn.Module) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Return a layer of torch's or ours that holds the state of a foreign norm, and the modules after the norm.

    Args:
        module: a batch norm of any kind.

    Returns:
        the layer, with the same Parameter and buffer objects, flags, hooks and attributes (buffers that torch's layer
        has as parameters become parameters in the same memory, which require no gradient), and the tail by name. For
            torch's and ours, the module itself and an empty tail.
    """
    adapter = adapter_of(module)
    if adapter is None:
        return module, {}
    # The layer only holds the state; it never runs.
    cls = BATCH_NORMS[kind_of(module)[0].name].class_for(adapter.dimensions or 2)
    assert cls is not None
    new = fresh_like(module, cls)
    _share_state(module, new)
    if adapter.like != "frozen_batch_norm":
        new.track_running_stats = getattr(module, "track_running_stats", new.track_running_stats)
    new.training = module.training
    share_hooks(module, new)
    move_attributes(module, new, _OF_MODULES | _OF_ADAPTERS)
    return new, dict(adapter.tail(module))


def _share_state(module: nn.Module, new: nn.Module) -> None:
    for name in _STATE:
        value = getattr(module, name, None)
        if not isinstance(value, Tensor):
            if name in new._parameters:
                new._parameters[name] = None
        elif name not in new._parameters:
            new._buffers[name] = value
        elif isinstance(value, nn.Parameter):
            new._parameters[name] = value
        else:
            new._parameters[name] = nn.Parameter(value.detach(), requires_grad=False)
