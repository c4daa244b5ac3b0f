from dataclasses import replace

import pytest
import torch

from steadynorm.lab import trials
from steadynorm.lab.trials import called_code, try_networks
from steadynorm.reporting.failure import UserError
from tests.support.experiments import TINY, tiny_dataset
from tests.support.given_networks import HERE

DATA = tiny_dataset()


def test_code_that_a_configuration_calls_is_named():
    arms = ("none", f"a={HERE}:Scale,power=2", f"{HERE}:FailsLater")
    config = replace(TINY, network=f"{HERE}:make", arms=arms)
    assert called_code(config) == [f"{HERE}:make", f"{HERE}:Scale", f"{HERE}:FailsLater"]
    assert called_code(TINY) == called_code(replace(TINY, network="timm:resnet18")) == []


def test_our_own_networks_are_tried_without_memory(monkeypatch):
    build, devices = trials.build_network, []

    def spy(*arguments, **named):
        devices.append((named["arm"], named["depth"], torch.get_default_device().type))
        return build(*arguments, **named)

    monkeypatch.setattr(trials, "build_network", spy)
    assert try_networks(replace(TINY, depth=(2, 3)), ("none", "batch_norm"), DATA) == {}
    assert devices == [(arm, depth, "meta") for depth in (2, 3) for arm in ("none", "batch_norm")]


@pytest.mark.parametrize(
    ("changes", "arm", "message"),
    [
        ({"network": f"{HERE}:fails"}, "batch_norm", r"fails\(classes=10\): failed with KeyError"),
        ({"network": f"{HERE}:plain"}, "batch_norm", "has no batch norm to replace"),
        ({}, f"{HERE}:Scale,width=1", "must be a class that is called with"),
        ({}, "group_norm,num_groups=3", r"--arms: group_norm,num_groups=3: failed with ValueError: num_channels"),
        (
            {},
            f"mine={HERE}:Raises",
            r"cnn with mine=.*:Raises: failed on two .* with RuntimeError: no.*given_networks.py, line",
        ),
        (
            {},
            f"mine={HERE}:Halves",
            r"Halves must give the shape of its input, \(2, \d+, 32, 32\), got \(2, \d+, 16, 32\)",
        ),
        ({"network": f"{HERE}:make"}, f"{HERE}:Halves", "Halves must give the shape of its input"),
        ({}, "as_built", "as_built is for --network of your own"),
        ({"network": "mlp"}, "instance_norm", "instance_norm needs positions"),
        ({"widths": (4, 4, 4, 4, 4, 4)}, "none", "must be one to 5 positive numbers for images of 32x32"),
    ],
)
def test_what_cannot_be_built_is_said_before_any_training(changes, arm, message):
    with pytest.raises(UserError, match=message) as refused:
        try_networks(replace(TINY, **changes), (arm,), DATA)
    assert "\n" not in str(refused.value)


def test_how_arms_are_made_of_a_network_of_the_users_is_told_and_no_random_number_is_drawn():
    torch.manual_seed(0)
    notes = try_networks(replace(TINY, network=f"{HERE}:make"), ("group_norm", f"{HERE}:Scale"), DATA)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))
    assert notes == {
        "group_norm": "2 batch norms became torch.nn.GroupNorm",
        f"{HERE}:Scale": "2 batch norms became Scale",
    }
