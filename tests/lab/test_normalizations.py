import pytest
import torch
import torch.nn.functional as F

from steadynorm.lab.normalizations import NORMALIZATIONS, find_normalization
from steadynorm.layers import BatchRenorm2d

X = torch.randn(6, 32, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
RESIDUAL = torch.randn(6, 32, 4, 4, generator=torch.Generator().manual_seed(1))


def test_every_name_is_found() -> None:
    assert all(find_normalization(name) is NORMALIZATIONS[name] for name in NORMALIZATIONS)


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("batch_norm", F.batch_norm(X, None, None, training=True)),
        ("torch_batch_norm", F.batch_norm(X, None, None, training=True)),
        ("batch_renorm", F.batch_norm(X, None, None, training=True)),
        ("ghost_batch_norm", F.batch_norm(X, None, None, training=True)),
        ("none", X),
        ("layer_norm", F.layer_norm(X, X.shape[1:])),
        ("group_norm", F.group_norm(X, 2)),
        ("instance_norm", F.instance_norm(X)),
    ],
)
def test_an_arm_computes_relu_of_its_norm_plus_the_residual(arm: str, expected: torch.Tensor) -> None:
    module = NORMALIZATIONS[arm].build(32)
    torch.testing.assert_close(module(X), F.relu(expected))
    torch.testing.assert_close(module(X, residual=RESIDUAL), F.relu(expected + RESIDUAL))


def test_group_norm_takes_one_group_where_channels_are_few() -> None:
    x = X[:, :8]
    torch.testing.assert_close(NORMALIZATIONS["group_norm"].build(8)(x), F.relu(F.group_norm(x, 1)))


@pytest.mark.parametrize("arm", ["batch_renorm", "gated_batch_norm"])
def test_layers_that_train_by_their_running_statistics_follow_every_batch(arm: str) -> None:
    assert NORMALIZATIONS[arm].build(8, batches=100, update_every=4).update_every == 1


def test_renorm_corrects_more_and_more_until_the_middle_of_training() -> None:
    layer = NORMALIZATIONS["batch_renorm"].build(8, batches=1_600, update_every=4)
    assert isinstance(layer, BatchRenorm2d)
    assert (layer.warmup_steps, layer.ramp_steps, layer.update_every) == (100, 700, 1)
