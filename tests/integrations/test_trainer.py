"""The callbacks in real trainings of Hugging Face's Trainer."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

import steadynorm
from steadynorm import BatchNorm1d, FrozenBatchNorm1d
from steadynorm.surgery import NothingDoneError, recalibrate_, statistics_of
from tests.support.fitting import BATCH, data, network, running, same_state
from tests.support.ranks import on_ranks

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate, which its Trainer needs, is not installed")
from transformers import Trainer, TrainerCallback, TrainingArguments

from steadynorm.integrations.trainer import FreezeStatistics, ReadingsCallback, RecalibrateCallback, WatchCallback

pytestmark = [pytest.mark.filterwarnings(f"ignore:{each}") for each in (".*pin_memory", ".*_check_is_size")]


class Classifier(nn.Module):
    """As transformers' models are called: by name, with labels for a loss."""

    def __init__(self, norm=nn.BatchNorm1d):
        super().__init__()
        self.net = network(norm)
        self.calls = []

    def forward(self, x, labels=None):
        self.calls.append((self.training, isinstance(self.net[1], FrozenBatchNorm1d), running(self)))
        logits = self.net(x)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class Samples(Dataset):
    def __init__(self, samples):
        self.x, self.labels = data(samples)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "labels": self.labels[index]}


def train(model, *callbacks, path, resume=None, samples=48, **options):
    options = {"num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "no", "logging_steps": 100} | options
    arguments = TrainingArguments(
        output_dir=str(path),
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        learning_rate=0.05,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    trainer = Trainer(
        model, arguments, train_dataset=Samples(samples), eval_dataset=Samples(16), callbacks=list(callbacks)
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def close(actual, expected):
    assert expected
    for name, each in expected.items():
        torch.testing.assert_close(actual[name], each, rtol=1e-5, atol=1e-6)


def precise(model, batches=None):
    whole = [{"x": data()[0], "labels": data()[1]}]
    recalibrate_(model, whole if batches is None else batches)
    return running(model)


def evaluated(model):
    """Running statistics at the first batch of each evaluation."""
    found, before = [], True
    for training, _, estimates in model.calls:
        if not training and before:
            found.append(estimates)
        before = training
    return found


def frozen_steps(model):
    return [frozen for training, frozen, _ in model.calls if training]


def test_the_estimates_are_the_training_datas_at_the_end(tmp_path):
    model = Classifier()
    callback = RecalibrateCallback()
    train(model, callback, path=tmp_path)
    found = running(model)
    assert callback.change.measured["batches"] == 6
    close(found, precise(model))


@pytest.mark.parametrize("options", [{}, {"eval_strategy": "steps", "eval_steps": 4}])
def test_each_evaluation_is_by_the_estimates_of_its_weights(tmp_path, options):
    class Check(TrainerCallback):
        def on_evaluate(self, args, state, control, model, **_):
            found = running(model)
            close(found, precise(model))
            seen.append(state.global_step)

    seen = []
    train(Classifier(), RecalibrateCallback(), Check(), path=tmp_path, **options)
    assert seen == ([4, 8, 12] if options else [6, 12])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_weights_are_those_of_a_training_without_it(tmp_path, accumulation):
    plain, other = Classifier(), Classifier()
    options = {"eval_strategy": "steps", "eval_steps": 1, "gradient_accumulation_steps": accumulation}
    train(plain, path=tmp_path, **options)
    train(other, RecalibrateCallback(), path=tmp_path, **options)
    assert same_state(plain, other, but="running_")
    assert not same_state(plain, other)


def test_an_evaluation_before_training_is_left_as_it_is(tmp_path):
    model = Classifier()
    start = running(model)
    train(model, RecalibrateCallback(), path=tmp_path, eval_on_start=True)
    assert all(torch.equal(each, start[name]) for name, each in evaluated(model)[0].items())


@pytest.mark.parametrize("evaluates", ["epoch", "no"])
def test_every_second_epoch(tmp_path, evaluates):
    def forward(model, batch):
        runs.append(1)
        return model(**batch)

    runs, counts = [], []

    class Count(TrainerCallback):
        def on_epoch_end(self, args, state, control, **_):
            counts.append(len(runs))

    callback = RecalibrateCallback(every_n_epochs=2, forward=forward, passes=1)
    train(Classifier(), callback, Count(), path=tmp_path, eval_strategy=evaluates, num_train_epochs=4)
    assert counts == [0, 6, 6, 12]
    assert len(runs) == 18


def test_an_epoch_that_was_measured_before_its_evaluation_is_not_measured_again(tmp_path):
    def forward(model, batch):
        runs.append(1)
        return model(**batch)

    runs = []
    callback = RecalibrateCallback(every_n_epochs=1, forward=forward, passes=1)
    train(Classifier(), callback, path=tmp_path, eval_strategy="steps", eval_steps=6)
    assert len(runs) == 3 * 6  # two epochs, and the end


@pytest.mark.parametrize("at", [6, 9], ids=["an epoch's end", "the middle of an epoch"])
@pytest.mark.parametrize("callbacks", [RecalibrateCallback, lambda: FreezeStatistics(1)], ids=["recalibrate", "freeze"])
def test_a_resumed_training_ends_as_one_that_did_not_stop(tmp_path, callbacks, at):
    whole, model = Classifier(), Classifier()
    train(whole, callbacks(), path=tmp_path, save_strategy="steps", save_steps=at)
    train(model, callbacks(), path=tmp_path, resume=str(tmp_path / f"checkpoint-{at}"))
    assert same_state(whole, model)


def test_other_batches_and_options(tmp_path):
    others = [{"x": x, "labels": labels} for x, labels in zip(*(each.split(8) for each in data()), strict=True)]
    model = Classifier()
    callback = RecalibrateCallback(others, number=2, where=lambda name, _: name == "net.1")
    train(model, callback, path=tmp_path)
    assert [each.name for each in callback.change.changed] == ["net.1"]
    found = model.net[1].running_mean.clone()
    precise(model, others[:2])
    torch.testing.assert_close(found, model.net[1].running_mean)


def test_a_model_without_batch_norms_is_said_to_have_none(tmp_path):
    with pytest.warns(UserWarning, match="RecalibrateCallback: no statistics were measured again: .* no batch norm"):
        train(Classifier(nn.LayerNorm), RecalibrateCallback(), path=tmp_path)
    with pytest.warns(UserWarning, match="FreezeStatistics: no statistics to freeze"):
        train(Classifier(nn.LayerNorm), FreezeStatistics(0), path=tmp_path)


def test_statistics_freeze_after_an_epoch_and_the_layers_come_back(tmp_path):
    model = Classifier()
    norm, classes = model.net[1], [type(each) for each in model.modules()]
    train(model, FreezeStatistics(1), path=tmp_path)
    assert frozen_steps(model) == [False] * 6 + [True] * 6
    estimates = [each["net.1.running_mean"] for training, frozen, each in model.calls if training and frozen]
    assert all(torch.equal(each, norm.running_mean) for each in estimates)
    assert [type(each) for each in model.modules()] == classes
    assert model.net[1] is norm


def test_in_the_middle_of_an_epoch_a_resumed_training_freezes_at_once(tmp_path):
    train(Classifier(), FreezeStatistics(1), path=tmp_path, save_strategy="steps", save_steps=9)
    model = Classifier()
    train(model, FreezeStatistics(1), path=tmp_path, resume=str(tmp_path / "checkpoint-9"))
    assert frozen_steps(model) == [True] * 3


def test_after_an_error_the_next_training_begins_unfrozen(tmp_path):
    class Fail(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 8:
                raise ZeroDivisionError

    model, callback = Classifier(), FreezeStatistics(1)
    with pytest.raises(ZeroDivisionError):
        train(model, callback, Fail(), path=tmp_path)
    model.calls.clear()
    train(model, callback, path=tmp_path)
    assert frozen_steps(model) == [False] * 6 + [True] * 6


@pytest.mark.parametrize("freeze_first", [True, False])
def test_frozen_statistics_are_not_measured_again(tmp_path, freeze_first):
    model, callbacks = Classifier(), [FreezeStatistics(1), RecalibrateCallback()]
    with pytest.warns(UserWarning, match="RecalibrateCallback: no statistics were measured again"):
        train(model, *(callbacks if freeze_first else callbacks[::-1]), path=tmp_path)
    frozen = next(each for training, frozen, each in model.calls if training and frozen)
    assert all(torch.equal(each, frozen[name]) for name, each in running(model).items())


def test_of_the_best_model_the_statistics_are_measured(tmp_path):
    model = Classifier()
    options = {"load_best_model_at_end": True, "save_strategy": "epoch", "metric_for_best_model": "loss"}
    train(model, RecalibrateCallback(), path=tmp_path, **options)
    found = running(model)
    close(found, precise(model))


def test_readings_are_logged(tmp_path):
    def gated(channels):
        return steadynorm.GatedBatchNorm1d(channels, running="self_tuned")

    plain, read, history = Classifier(gated), Classifier(gated), {}
    start = statistics_of(read)
    train(plain, path=tmp_path)
    train(read, ReadingsCallback(history, every_n_steps=5, stored=start), path=tmp_path)
    assert same_state(plain, read)
    assert list(history) == [5, 10]
    expected = {"gate", "noise", "momentum_mean", "momentum_var", "distance"}
    assert {name.removeprefix("norm/net.1/") for name in history[5] if "net.1" in name} == expected
    assert 0 < history[5]["norm/net.1/gate"] < 1
    assert history[5]["norm/net.1/distance"] > 0
    assert not read.net[1]._forward_pre_hooks
    train(read, ReadingsCallback(history), path=tmp_path, logging_steps=7)
    assert list(history) == [5, 10, 7]


class Poisoned(Classifier):
    """Its second epoch's fourth batch leaves estimates that are not finite."""

    def forward(self, x, labels=None):
        if self.training and len(frozen_steps(self)) == self.poisoned_at:
            x = x.clone()
            x[2, 1] = torch.nan
        found = super().forward(x, labels)
        if not found["loss"].isfinite():
            found["loss"] = sum(each.sum() for each in self.parameters()) * 0
        return found


def poisoned(at):
    model = Poisoned()
    model.poisoned_at = at
    return model


@pytest.mark.filterwarnings("ignore:WatchCallback")
def test_a_watch_goes_on_in_a_training_that_resumes(tmp_path, caplog):
    options = {"samples": 200, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 20}
    callbacks = [WatchCallback("revert", every=16) for _ in range(2)]
    whole, model = poisoned(28), poisoned(8)
    train(whole, callbacks[0], path=tmp_path, **options)
    train(model, callbacks[1], path=tmp_path, resume=str(tmp_path / "checkpoint-20"), **options)
    assert same_state(whole, model)
    seen = [[(each.step, each.check, each.action) for each in callback.events] for callback in callbacks]
    assert seen[0] == seen[1]
    assert (28, "nonfinite-statistics", "put back") in seen[0]
    assert [callback.report.steps for callback in callbacks] == [50, 50]
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in whole.modules())


def test_a_watch_without_its_file_starts_again_and_says_so(tmp_path):
    train(Classifier(), path=tmp_path, save_strategy="steps", save_steps=6)
    with pytest.warns(UserWarning, match=r"WatchCallback: the watch starts again: there is no .*watch_0\.pt"):
        train(Classifier(), WatchCallback(), path=tmp_path, resume=str(tmp_path / "checkpoint-6"))


@pytest.mark.parametrize("first", [True, False])
def test_layers_that_freeze_are_watched_up_to_then(tmp_path, first):
    callback = WatchCallback()
    callbacks = [callback, FreezeStatistics(1)]
    train(Classifier(), *(callbacks if first else callbacks[::-1]), path=tmp_path, num_train_epochs=3)
    assert callback.report.steps == 6  # of the epoch before they froze


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: RecalibrateCallback(every_n_epochs=0), ValueError, "every_n_epochs must be at least 1, got 0"),
        (lambda: RecalibrateCallback(iter([])), TypeError, "several times"),
        (lambda: FreezeStatistics(-1), ValueError, "after_epoch must be at least 0, got -1"),
        (lambda: ReadingsCallback({}, every_n_steps=0), ValueError, "every_n_steps must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_what_cannot_be_frozen_is_refused_before_a_step(tmp_path):
    model = Classifier(lambda c: nn.BatchNorm1d(c, track_running_stats=False))
    with pytest.raises(NothingDoneError):
        train(model, FreezeStatistics(5), path=tmp_path)
    assert model.calls == []


def _on_a_rank():
    import os
    import tempfile

    import torch.distributed as dist

    rank = dist.get_rank()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="0")
    model = Classifier(BatchNorm1d)
    callback = RecalibrateCallback()
    with tempfile.TemporaryDirectory() as path:
        train(model, callback, path=path, ddp_backend="gloo")
    return model.state_dict(), callback.change.measured["batches"]


@pytest.mark.slow  # two processes import transformers
def test_over_ranks_all_batches_count_together(tmp_path):
    for state, batches in on_ranks(_on_a_rank, 2, tmp_path):
        assert batches == 6
        model = Classifier(BatchNorm1d)
        model.load_state_dict(state)
        found = running(model)
        close(found, precise(model))
