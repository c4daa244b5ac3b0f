"""Texts of a watch for the beginning and end of each fault."""

from __future__ import annotations

from steadynorm.doctor.watch.listener import EVALUATION, NO_GRADIENT, RECOMPUTATION

__all__ = ["BEGUN", "OVER"]

BEGUN = {
    "nonfinite-statistics": (
        "a batch has made the running statistics NaN or infinite; skip steps whose loss is not finite"
    ),
    "outlier-statistics": "single batches are far from all others; look at their data",
    "single-class-batch": "batches are of far fewer classes than usual; shuffle the data",
    "statistics-lag": "the running statistics stay behind the batches; lower the learning rate or raise the momentum",
    "train-eval-gap": (
        "batches are much further from the running statistics than usual, so evaluation differs from training; "
        "look for what has changed in the data, or lower the learning rate"
    ),
    "collapsed-variance": (
        "most channels have lost their variance, and the rest of it is noise; look for inputs that are all alike, "
        "or lower the learning rate"
    ),
    "double-update": "each batch moves the running statistics twice; run a second forward in no_statistics_update",
    f"double-update, {RECOMPUTATION}": (
        "activation checkpointing runs forwards again, and they move the running statistics a second time"
    ),
    f"statistics-moved-in-eval, {EVALUATION}": (
        "the running statistics have moved in evaluation; look for code that writes them"
    ),
    f"statistics-moved-in-eval, {NO_GRADIENT}": (
        "the running statistics have moved in a forward without gradient; call model.eval() before it"
    ),
}
"""Check, with its cause where there are several -> the problem and the advice."""

OVER = {
    "nonfinite-statistics": "the running statistics are finite again",
    "single-class-batch": "batches of far fewer classes than usual are no longer seen",
    "statistics-lag": "the running statistics follow the batches again",
    "train-eval-gap": "batches are as near to the running statistics as usual again",
    "collapsed-variance": "the channels have variance again",
    "double-update": "batches come once again",
}
"""Check -> text for its end."""
