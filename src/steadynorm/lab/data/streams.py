"""Orders in which test images arrive: well mixed, class by class, or domain by domain."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steadynorm.lab.data.images import Images, random_stream

__all__ = ["STREAMS", "mix_domains", "stream"]

BURST_CONCENTRATION = 0.1
"""Concentration of the Dirichlet distribution that spreads a class over bursts; smaller values give fewer bursts."""

# Set apart from every epoch number and from the split that is held out.
_STREAM_ORDER = 2**64 - 2
_DOMAIN_ORDER = 2**64 - 3

Indices = NDArray[np.int64]


def stream(labels: Tensor, kind: str, *, batch_size: int, seed: int) -> list[Tensor]:
    """Return the batches of a stream of test images, as indices.

    Args:
        labels: int64, shape (N,).
        kind: one of :data:`STREAMS`. ``iid`` shuffles. ``class_ordered`` gives all images of one class, then all
            of another, classes in random order and images shuffled inside; a batch may hold the end of one class
            and the beginning of the next. ``single_class`` gives the images of one class drawn at random,
            shuffled, and leaves out all others. ``bursts`` cuts time into as many parts as there are classes,
            spreads each class over the parts with shares from a Dirichlet distribution of concentration 0.1, and
            gives, part by part, the classes in random order; so most images come in runs of one class, and
            classes come back.
        batch_size: at least 1. The last batch may be smaller.
        seed: decides the order; in [0, 2**64).

    Returns:
        int64 indices into ``labels``, shape (B,) each; every image once, except for ``single_class``.

    Raises:
        ValueError: an argument is outside its range.

    Source: ``bursts`` is the temporally correlated stream of NOTE (Gong et al. 2022, arXiv 2208.05117) and RoTTA
    (Yuan, Xie & Li 2023, arXiv 2303.13899), without their balancing of the parts' lengths.
    """
    if kind not in STREAMS:
        raise ValueError(f"stream: kind must be one of {', '.join(STREAMS)}, got {kind!r}.")
    if batch_size < 1:
        raise ValueError(f"stream: batch_size must be at least 1, got {batch_size}.")
    if labels.dim() != 1 or len(labels) == 0:
        raise ValueError(f"stream: labels must be of shape (N,), N at least 1, got {tuple(labels.shape)}.")
    order = STREAMS[kind](labels.numpy(), random_stream(seed, _STREAM_ORDER))
    return list(torch.split(torch.from_numpy(order), batch_size))


def mix_domains(domains: Sequence[Images], *, seed: int) -> tuple[Images, Tensor]:
    """Take every image from one domain, so that consecutive images come from all of them in turn.

    The images are shuffled; the one at place p comes from domain p modulo the number of domains. So every batch
    of at least that many consecutive images has images of every domain.

    Args:
        domains: the same images under different conditions: of one shape, with equal labels.
        seed: decides the order; in [0, 2**64).

    Returns:
        The images in the order of the stream, as many as one domain has, and for each the index of its domain,
        int64 of shape (N,).

    Raises:
        ValueError: there is no domain, or they do not hold the same images.
    """
    if not domains:
        raise ValueError("mix_domains: there must be at least 1 domain, got 0.")
    first = domains[0]
    for number, domain in enumerate(domains):
        if domain.pixels.shape != first.pixels.shape or not torch.equal(domain.labels, first.labels):
            raise ValueError(f"mix_domains: domains must have equal shapes and labels, got others in domain {number}.")
    order = torch.from_numpy(random_stream(seed, _DOMAIN_ORDER).permutation(len(first)))
    source = torch.arange(len(first)) % len(domains)
    rows = first.rows[order]
    for number, domain in enumerate(domains):
        rows[source == number] = domain.rows[order[source == number]]
    return Images.of_rows(rows, first.labels[order]), source


def _iid(labels: Indices, random: np.random.Generator) -> Indices:
    return random.permutation(len(labels))


def _shuffled_classes(labels: Indices, random: np.random.Generator) -> list[Indices]:
    """Return the images of each class, shuffled; classes in random order."""
    return [random.permutation(np.flatnonzero(labels == label)) for label in random.permutation(np.unique(labels))]


def _class_ordered(labels: Indices, random: np.random.Generator) -> Indices:
    return np.concatenate(_shuffled_classes(labels, random))


def _single_class(labels: Indices, random: np.random.Generator) -> Indices:
    return _shuffled_classes(labels, random)[0]


def _bursts(labels: Indices, random: np.random.Generator) -> Indices:
    classes = _shuffled_classes(labels, random)
    count = len(classes)
    shares = random.dirichlet(np.full(count, BURST_CONCENTRATION), size=count)
    sizes = np.array([len(members) for members in classes])
    ends = np.zeros((count, count + 1), dtype=np.int64)  # length of a class's run in each part
    ends[:, 1:] = np.cumsum(shares, axis=1) * sizes[:, None]
    ends[:, -1] = sizes
    runs = []
    for begins, stops in itertools.pairwise(ends.T):
        shown = random.permutation(count)
        runs += [classes[chosen][begins[chosen] : stops[chosen]] for chosen in shown[(begins < stops)[shown]]]
    return np.concatenate(runs)


STREAMS: dict[str, Callable[[Indices, np.random.Generator], Indices]] = {
    "iid": _iid,
    "class_ordered": _class_ordered,
    "single_class": _single_class,
    "bursts": _bursts,
}
"""Kinds of streams that :func:`stream` knows."""
