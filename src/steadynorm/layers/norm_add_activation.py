"""A norm followed by a residual and an activation, for norms that cannot fuse them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from steadynorm.functional import Activation, check_activation

__all__ = ["ACTIVATION_MODULES", "NormAddActivation", "name_state_as_the_norms"]

ACTIVATION_MODULES: dict[Activation | None, type[nn.Module]] = {
    None: nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
}


class NormAddActivation(nn.Module):
    r"""Apply any norm, add a residual and apply an activation, as separate operations.

    $$
    y = \mathrm{activation}(\mathrm{norm}(x) + \mathrm{residual})
    $$

    Replaces one of our layers that has an ``activation`` or is called with a ``residual``. The call is the same and the
    state keys are those of the norm, so checkpoints load either way. Mode and dtypes are those of the norm.

    Args:
        norm: any module that takes one tensor.
        activation: ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"silu"`` or None.

    Raises:
        ValueError: an unknown activation.

    >>> norm = NormAddActivation(nn.GroupNorm(4, 64), "relu")
    >>> norm(torch.randn(8, 64, 4, 4), residual=torch.randn(8, 64, 4, 4)).shape
    torch.Size([8, 64, 4, 4])
    >>> list(norm.state_dict())
    ['weight', 'bias']
    """

    def __init__(self, norm: nn.Module, activation: Activation | None = None) -> None:
        super().__init__()
        check_activation("NormAddActivation", activation)
        self.norm = norm
        self.activation = ACTIVATION_MODULES[activation]()
        name_state_as_the_norms(self)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize, add the residual and apply the activation.

        Args:
            input: input of the norm.
            residual: shape of input, added before the activation; None adds nothing.

        Returns:
            shape of input.
        """
        y: Tensor = self.norm(input)
        activated: Tensor = self.activation(y if residual is None else y + residual)  # torch.jit.script has no cast
        return activated


def name_state_as_the_norms(module: nn.Module) -> None:
    """Rename the state keys of a module's child ``norm`` to the module's own, so that it loads a plain norm's state."""
    module.register_state_dict_post_hook(_drop_norm)  # type: ignore[no-untyped-call]
    module.register_load_state_dict_pre_hook(_add_norm)  # type: ignore[no-untyped-call]


def _drop_norm(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Drop ``norm.`` from the keys."""
    inner = f"{prefix}norm."
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)


def _add_norm(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Add ``norm.`` to keys that are not the module's own."""
    for key in [key for key in state if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        if name.split(".")[0] not in module._modules:
            state[f"{prefix}norm.{name}"] = state.pop(key)
