"""Whole models with batch norm, small, with random numbers in them: the lab's and some of transformers'."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steadynorm.lab.networks import build_network
from tests.support.layers import drawn, randomize_

__all__ = ["ARCHITECTURES", "build_architecture", "outputs"]

Example = dict[str, Tensor] | Tensor
transformers = pytest.importorskip("transformers")


def _images(size: int) -> dict[str, Tensor]:
    return {"pixel_values": drawn(3, 3, size, size)}


def _lab(name: str, arm: str) -> Callable[[], tuple[nn.Module, Example]]:
    arguments: dict[str, Any] = {"depth": 3, "widths": (16, 16, 32), "classes": 10, "seed": 0}
    return lambda: (build_network(name, arm=arm, **arguments), drawn(3, 3, 32, 32))


def _of_transformers(model: str, config: str, example: Callable[[], Example], **arguments: Any) -> Callable[[], Any]:
    def build() -> tuple[nn.Module, Example]:
        return getattr(transformers, model)(getattr(transformers, config)(**arguments)), example()

    return build


_images_32, _images_64 = functools.partial(_images, 32), functools.partial(_images, 64)
ARCHITECTURES: dict[str, Callable[[], tuple[nn.Module, Example]]] = {
    "cnn": _lab("cnn", "batch_norm"),
    "resnet20": _lab("resnet20", "batch_norm"),
    "resnet20 of torch": _lab("resnet20", "torch_batch_norm"),
    "ResNet": _of_transformers(
        "ResNetForImageClassification",
        "ResNetConfig",
        _images_32,
        embedding_size=16,
        hidden_sizes=[16, 32],
        depths=[1, 2],
        layer_type="bottleneck",
    ),
    "RegNet": _of_transformers(
        "RegNetForImageClassification",
        "RegNetConfig",
        _images_32,
        embedding_size=16,
        hidden_sizes=[16, 32, 32, 32],
        depths=[1, 1, 1, 1],
        groups_width=16,
    ),
    "MobileNetV2": _of_transformers(
        "MobileNetV2ForImageClassification", "MobileNetV2Config", _images_32, depth_multiplier=0.25, image_size=32
    ),
    "EfficientNet": _of_transformers(
        "EfficientNetForImageClassification",
        "EfficientNetConfig",
        _images_32,
        width_coefficient=0.25,
        depth_coefficient=0.2,
        image_size=32,
        hidden_dim=320,
    ),
    "LeViT": _of_transformers(
        "LevitForImageClassification",
        "LevitConfig",
        _images_64,
        image_size=64,
        hidden_sizes=[32, 48, 64],
        num_attention_heads=[2, 2, 2],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
    ),
    "SwiftFormer": _of_transformers(
        "SwiftFormerForImageClassification",
        "SwiftFormerConfig",
        _images_64,
        image_size=64,
        depths=[1, 1, 1, 1],
        embed_dims=[16, 16, 32, 32],
    ),
    "PatchTST": _of_transformers(
        "PatchTSTForPrediction",
        "PatchTSTConfig",
        lambda: {"past_values": drawn(3, 32, 3)},
        num_input_channels=3,
        context_length=32,
        patch_length=4,
        patch_stride=4,
        d_model=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        ffn_dim=32,
        prediction_length=4,
        norm_type="batchnorm",
    ),
    "Wav2Vec2Conformer": _of_transformers(
        "Wav2Vec2ConformerForCTC",
        "Wav2Vec2ConformerConfig",
        lambda: {"input_values": drawn(3, 400)},
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16, 16),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        vocab_size=8,
        apply_spec_augment=False,
        layerdrop=0.0,
    ),
}
"""Name -> model and example: norms of torch's and ours, 1d and 2d, after convolutions and linear layers."""


def build_architecture(name: str) -> tuple[nn.Module, Example]:
    """Give a model in evaluation, in float64, with random numbers in its norms, and a batch for it."""
    torch.manual_seed(0)
    model, example = ARCHITECTURES[name]()
    for seed, module in enumerate(model.modules()):
        if getattr(module, "running_mean", None) is not None:
            randomize_(module, seed=seed)
            with torch.no_grad():  # gains near 1, so that no output grows beyond all measure
                for parameter in module.parameters(recurse=False):
                    parameter.mul_(0.2)
                module.weight.add_(1)
    return model.double().eval(), example


def outputs(model: nn.Module, example: Example) -> list[Tensor]:
    """The floating outputs of a model."""
    with torch.no_grad():
        result = model(**example) if isinstance(example, dict) else model(example)
    return [
        each
        for each in torch.utils._pytree.tree_leaves(result if isinstance(result, Tensor) else dict(result))
        if isinstance(each, Tensor) and each.is_floating_point()
    ]
