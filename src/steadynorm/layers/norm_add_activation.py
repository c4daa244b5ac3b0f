"""A norm with what our layers fuse into theirs: a residual and an activation."""

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
    """activation( norm(x) + residual ) in separate operations, for a norm that cannot fuse them.

    Takes the place of one of our layers with an ``activation``, or called with a ``residual``: it is called alike, and
    its state keys are the norm's own, so that checkpoints of either load into the other.

    Args:
        norm: any module of one argument.
        activation: ``relu``, ``leaky_relu`` (slope 0.01), ``silu`` or None.

    Raises:
        ValueError: unknown activation.

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
        """Normalize, add, activate.

        Args:
            input: as the norm takes it.
            residual: shape of input, added before the activation; None adds nothing.

        Returns:
            shape of input.
        """
        y: Tensor = self.norm(input)
        activated: Tensor = self.activation(y if residual is None else y + residual)  # torch.jit.script knows no cast
        return activated


def name_state_as_the_norms(module: nn.Module) -> None:
    """Let the state keys of a module's child ``norm`` be the module's own, so that it loads what stood in its place."""
    module.register_state_dict_post_hook(_drop_norm)  # type: ignore[no-untyped-call]
    module.register_load_state_dict_pre_hook(_add_norm)  # type: ignore[no-untyped-call]


def _drop_norm(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Name the norm's state as if the norm stood here."""
    inner = f"{prefix}norm."
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)


def _add_norm(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Take the state of a layer that stood here for the norm's."""
    for key in [key for key in state if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        if name.split(".")[0] not in module._modules:
            state[f"{prefix}norm.{name}"] = state.pop(key)
