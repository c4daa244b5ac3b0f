"""What surgery does to the models of timm and torchvision; ``python -m tests.support.zoo`` writes the record.

Random weights, two images, float64. Statistics are those of torch's own update_bn, moved by up to a fifth of a standard
deviation and a factor of 2, with random weights and biases, so that a wrong fold or a lost activation shows.
"""

from __future__ import annotations

import copy
import json
import platform
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.surgery import Change, NothingDoneError, convert_, fold_
from steadynorm.surgery.kinds import is_batch_norm, label, why_unknown

__all__ = ["RECORD", "TIMM", "TORCHVISION", "build", "rows", "study"]

RECORD = Path(__file__).parents[2] / "docs" / "results" / "zoo_cpu_20261128.json"
TIMM = (
    *("densenet121", "dla46_c", "ese_vovnet19b_slim", "ghostnet_050", "hgnetv2_b0", "hrnet_w18_small", "levit_128s"),
    *("mnasnet_small", "mobileone_s0", "mobilenetv2_050", "mobilenetv3_small_050", "mobilevit_xxs", "regnety_002"),
    *("repvgg_a0", "resnest14d", "resnet18", "rexnet_100", "skresnet18", "tf_efficientnet_b0"),
)
TORCHVISION = (
    *("densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small"),
    *("regnet_y_400mf", "resnet18", "resnet18, frozen", "shufflenet_v2_x0_5", "vgg11_bn"),
)
_SIZES = {"levit_128s": 224}


def build(package: str, name: str) -> tuple[nn.Module, Tensor]:
    """Build a model in evaluation, and images for it."""
    torch.manual_seed(0)
    model: nn.Module
    if package == "timm":
        import timm

        model = timm.create_model(name, pretrained=False)
    else:
        import torchvision

        options: dict[str, Any] = {"init_weights": True} if name == "googlenet" else {}
        if name.endswith("frozen"):
            options["norm_layer"] = torchvision.ops.FrozenBatchNorm2d
        model = torchvision.models.get_model(name.split(",")[0], weights=None, **options)
    size = _SIZES.get(name, 64)
    model = model.double()
    x = torch.randn(4, 3, size, size, dtype=torch.float64)
    torch.optim.swa_utils.update_bn([x], model)
    _move(model)
    return model.eval(), x[:2]


@torch.no_grad()
def _move(model: nn.Module) -> None:
    """Give norms numbers of their own."""
    for module in model.modules():
        mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if isinstance(mean, Tensor) and isinstance(var, Tensor):
            mean += 0.2 * var.sqrt() * torch.randn_like(mean)
            var *= 2 ** (2 * torch.rand_like(var) - 1)
            if isinstance(module.weight, Tensor) and isinstance(module.bias, Tensor):
                module.weight.copy_(0.5 + torch.rand_like(mean))
                module.bias.copy_(0.2 * torch.randn_like(mean))


def study(package: str, name: str) -> dict[str, Any]:
    """Convert and fold a model, and say what came of it."""
    model, x = build(package, name)
    norms = [each for each in model.modules() if is_batch_norm(each) or why_unknown(each)]
    classes = Counter(label(each).split("(")[0] for each in norms)
    converted = _changed(lambda copied: convert_(copied, "batch_norm"), model, x)
    folded = _changed(lambda copied: fold_(copied, x), model, x)
    return {
        "package": package,
        "model": name,
        "norms": len(norms),
        "classes": dict(classes),
        "converted": converted,
        "folded": folded,
    }


def _changed(verb: Callable[[nn.Module], Change], model: nn.Module, x: Tensor) -> dict[str, Any]:
    copied = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(x)
        try:
            change = verb(copied)
        except NothingDoneError as error:
            return {"changed": 0, "refused": [str(each) for each in error.refused], "difference": 0.0, "undone": True}
        difference = float((change.model(x) - expected).abs().max() / expected.abs().max())
        undone = torch.equal(change.undo()(x), expected)
    refused = [str(each) for each in change.refused]
    return {"changed": len(change.changed), "refused": refused, "difference": difference, "undone": undone}


def rows(record: dict[str, Any]) -> list[str]:
    """Give the rows of the page's table."""
    return [
        f"| {each['package']} | {each['model']} | {each['norms']} | {each['converted']['changed']} | "
        f"{each['folded']['changed']} | {len(each['folded']['refused'])} | {each['converted']['difference']:.0e} | "
        f"{each['folded']['difference']:.0e} |"
        for each in record["models"]
    ]


def _versions() -> dict[str, str]:
    import timm
    import torchvision

    found = {"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__}
    return {"python": platform.python_version(), **found}


if __name__ == "__main__":
    models = []
    for package, names in (("timm", TIMM), ("torchvision", TORCHVISION)):
        for name in names:
            models.append(study(package, name))
            print(rows({"models": models[-1:]})[0], models[-1]["classes"], flush=True)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"what": "surgery on models of timm and torchvision", "created": created, "versions": _versions()}
    RECORD.write_text(json.dumps(record | {"models": models}, indent=1) + "\n", encoding="utf-8")
