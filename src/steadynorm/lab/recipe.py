"""The large-batch recipe of Goyal et al. 2017 (arXiv 1706.02677), and its variants without one step."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["RECIPES", "Recipe", "find_recipe"]

from steadynorm.reporting.failure import check_known


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The steps of a variant."""

    summary: str
    """Label for tables and figures."""
    linear_scaling: bool = True
    """The learning rate grows with the batch."""
    warm_up: bool = True
    """The learning rate rises from that of the reference batch over the first epochs."""
    zero_gamma: bool = True
    """Residual blocks start as the identity."""
    spared_norms: bool = True
    """No weight decay on normalizations and biases."""
    small_statistics: bool = True
    """Batch norm normalizes 32 images at a time, however large the batch."""
    frozen_end: bool = False
    """In the last epochs batch norms normalize by their running statistics; Wu & Johnson 2021 (arXiv 2105.07576)."""


_WHOLE = Recipe(summary="the whole recipe")

RECIPES: dict[str, Recipe] = {
    "recipe": _WHOLE,
    "no_scaling": replace(_WHOLE, summary="without linear scaling", linear_scaling=False, warm_up=False),
    "no_warm_up": replace(_WHOLE, summary="without warm-up", warm_up=False),
    "no_zero_gamma": replace(_WHOLE, summary="without zero-initialised γ", zero_gamma=False),
    "decayed_norms": replace(_WHOLE, summary="with decay on norms", spared_norms=False),
    "whole_statistics": replace(_WHOLE, summary="statistics of the whole batch", small_statistics=False),
    "frozen_end": replace(_WHOLE, summary="statistics frozen at the end", frozen_end=True),
    "plain": Recipe(
        summary="with no step of it",
        linear_scaling=False,
        warm_up=False,
        zero_gamma=False,
        spared_norms=False,
        small_statistics=False,
    ),
}


def find_recipe(name: str) -> Recipe:
    """Look up a variant.

    Raises:
        UserError: no variant has this name.
    """
    check_known("--variants", [name], RECIPES, what="variant")
    return RECIPES[name]
