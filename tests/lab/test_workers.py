from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from steadynorm import BatchNorm2d, GatedBatchNorm2d
from steadynorm.lab import workers
from steadynorm.lab.several_decays import SeveralDecays
from steadynorm.reporting.failure import UserError
from tests.support.ranks import on_ranks


def failing(which: int) -> None:
    if workers.worker() == which:
        raise UserError(f"no {which}")


def messages() -> list[str]:
    found = []
    for action in (
        lambda: workers.on_first(lambda: failing(0)),
        lambda: workers.on_first(_full_disk),
        lambda: workers.run_on_all_ranks(lambda: failing(1)),
        lambda: workers.run_on_all_ranks(_everybody),
        lambda: workers.check_alike({"--lr": 0.1 + dist.get_rank(), "--seeds": (0,)}, what="Fix it."),
    ):
        with pytest.raises((UserError, OSError)) as caught:
            action()
        found.append(str(caught.value))
    return found


def _everybody() -> None:
    raise UserError("unknown fault")


def _full_disk() -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.slow
def test_what_fails_on_one_worker_fails_on_all(tmp_path: Path) -> None:
    for found in on_ranks(messages, 2, tmp_path):
        assert found == [
            "no 0",
            "[Errno 28] No space left on device",
            "worker 1: no 1",
            "unknown fault",
            "--lr: must be the same on every worker, got 0.1 on worker 0 and 1.1 on worker 1. Fix it.",
        ]


def conversation() -> dict[str, Any]:
    rank = dist.get_rank()
    ran = []
    total, count = workers.sum_over_workers(torch.tensor([1.5, 2.0]) * (rank + 1), torch.tensor(rank + 1))
    return {
        "who": (workers.worker(), workers.number_of_workers(), workers.is_first()),
        "first": workers.on_first(lambda: ran.append(rank) or f"from {rank}"),
        "ran": ran,
        "on all": workers.run_on_all_ranks(lambda: rank),
        "gathered": workers.gathered(rank),
        "total": total,
        "count": count,
        "mean": workers.mean_over_workers(torch.tensor([1.0]) * rank),
    }


@pytest.mark.slow
def test_workers_tell_each_other(tmp_path: Path) -> None:
    for rank, found in enumerate(on_ranks(conversation, 3, tmp_path)):
        assert found["who"] == (rank, 3, rank == 0)
        assert (found["first"], found["ran"]) == ("from 0", [0] if rank == 0 else [])
        assert (found["on all"], found["gathered"]) == (rank, [0, 1, 2])
        assert found["total"].tolist() == [9.0, 12.0] and found["total"].dtype == torch.float32
        assert found["count"].item() == 6 and found["count"].dtype == torch.int64
        assert found["mean"].item() == 1.0


def test_a_process_alone_is_the_only_worker() -> None:
    assert (workers.worker(), workers.number_of_workers(), workers.is_first()) == (0, 1, True)
    assert workers.gathered("a") == ["a"]
    assert workers.mean_over_workers(torch.tensor([2.0])).item() == 2.0
    with workers.joined():
        assert not dist.is_initialized()


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "plain": BatchNorm2d(3),
            "tuned": BatchNorm2d(3, running="self_tuned"),
            "gated": GatedBatchNorm2d(3),
            "several": SeveralDecays(3),
            "torch": nn.BatchNorm2d(3),
        }
    ).train()


def followed(rank: int, steps: int = 3) -> nn.ModuleDict:
    model = layers()
    assert isinstance(model, nn.ModuleDict)
    torch.manual_seed(1 + rank)
    for _ in range(steps):
        x = torch.randn(8, 3, 4, 4) * (1 + rank) + rank
        for layer in model.values():
            layer(x)
    return model


def settled() -> dict[str, torch.Tensor]:
    model = followed(dist.get_rank())
    workers.sync_buffers_(model)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.slow
def test_statistics_are_those_of_all_workers_and_the_same_on_each(tmp_path: Path) -> None:
    """The expectation is the law of total variance, written down here for two workers of one weight."""
    first, second = on_ranks(settled, 2, tmp_path)
    assert set(first) > {"tuned.running_mean", "tuned._bank_experts", "several.means"}
    assert all(torch.equal(first[name], second[name]) for name in first)
    apart = [followed(rank).state_dict() for rank in (0, 1)]
    for mean, var in (("plain.running_mean", "plain.running_var"), ("several.means", "several.vars")):
        middle = (apart[0][mean] + apart[1][mean]) / 2
        spread = sum(one[var] + (one[mean] - middle).square() for one in apart) / 2
        torch.testing.assert_close(first[mean], middle)
        torch.testing.assert_close(first[var], spread)
    assert not torch.equal(first["plain.running_var"], apart[0]["plain.running_var"])


def gradients() -> list[torch.Tensor]:
    """Before and after, one after the other."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).to(memory_format=torch.channels_last)
    model[0].bias.requires_grad_(False)
    (model(torch.randn(2, 3, 4, 4)).square().mean() * (1 + dist.get_rank())).backward()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.grad.clone() for parameter in parameters]
    workers.average_gradients_(model)
    return [*before, *(parameter.grad for parameter in parameters)]


def test_gradients_are_averaged(tmp_path: Path) -> None:
    first, second = on_ranks(gradients, 2, tmp_path)
    half = len(first) // 2
    assert half == 3
    for own, other, mean, again in zip(first[:half], second[:half], first[half:], second[half:], strict=True):
        assert torch.equal(mean, again) and not torch.equal(own, other)
        torch.testing.assert_close(mean, (own + other) / 2)


def set_environment(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_torchrun_tells_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not workers.may_restart() and not workers.was_restarted()
    set_environment(monkeypatch, TORCHELASTIC_MAX_RESTARTS="2", TORCHELASTIC_RESTART_COUNT="1")
    assert workers.may_restart() and workers.was_restarted()
    set_environment(monkeypatch, TORCHELASTIC_RUN_ID="a", RANK="3")
    assert workers.worker() == 3 and not workers.is_first()


def test_a_worker_needs_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    set_environment(monkeypatch, LOCAL_RANK="1", LOCAL_WORLD_SIZE="3")
    workers._choose_gpu()
    assert chosen == [1]
    set_environment(monkeypatch, LOCAL_RANK="2")
    with pytest.raises(UserError, match=r"3 workers on a machine with 2 GPUs\. Give torchrun --nproc-per-node 2\."):
        workers._choose_gpu()
