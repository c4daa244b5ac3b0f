"""Models of transformers, folded: every batch norm of theirs has a layer beside it."""

import pytest
import torch
from torch import nn

from steadynorm.surgery.fold import fold_
from tests.support.layers import drawn, randomize_

transformers = pytest.importorskip("transformers")


def resnet():
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return transformers.ResNetModel(config)


def levit():
    config = transformers.LevitConfig(
        image_size=32, hidden_sizes=[8, 12, 16], num_attention_heads=[1, 1, 1], depths=[1, 1, 1], key_dim=[4, 4, 4]
    )
    return transformers.LevitModel(config)


def efficientnet():
    config = transformers.EfficientNetConfig(
        width_coefficient=0.25, depth_coefficient=0.1, image_size=32, hidden_dim=320
    )
    return transformers.EfficientNetModel(config)


@pytest.mark.parametrize("build", [resnet, levit, efficientnet])
def test_all_norms_fold(build):
    torch.manual_seed(0)
    model = build().double().eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for seed, norm in enumerate(norms):
        randomize_(norm, seed=seed)
    batch = {"pixel_values": drawn(2, 3, 32, 32)}
    with torch.no_grad():
        expected = model(**batch)[0]
    change = fold_(model, batch)
    assert len(change.changed) == len(norms) > 5
    assert not change.refused
    with torch.no_grad():
        torch.testing.assert_close(model(**batch)[0], expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())
