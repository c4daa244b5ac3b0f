"""Batch norms that run but are no submodules are named by every verb."""

import contextlib
import copy
import threading
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import steadynorm
from steadynorm import surgery
from steadynorm.surgery.hidden import held_norms
from tests.support.foreign import look_like
from tests.support.layers import drawn, randomize_

X = drawn(6, 3, 4, 4, dtype=torch.float32)


class Net(nn.Module):
    """One norm that is registered, and one that runs only."""

    def __init__(self, hide):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.other = randomize_(nn.BatchNorm2d(4), seed=5).eval()
        randomize_(self.conv), randomize_(self.norm)
        norm = self.other
        del self.other
        self.run = hide(self, norm)

    def forward(self, x):
        return self.run(self.norm(self.conv(x)))


def in_list(net, norm):
    net.blocks = [nn.Sequential(norm)]
    return lambda x: net.blocks[0](x)


def in_dict(net, norm):
    net.table = {"a": (norm,)}
    return lambda x: net.table["a"][0](x)


def in_object(net, norm):
    net.config = SimpleNamespace(parts=[norm])
    return lambda x: net.config.parts[0](x)


def in_closure(net, norm):
    return lambda x: norm(x)


def in_partial(net, norm):
    return partial(lambda module, x: module(x), norm)


def in_class(net, norm):
    """Held by nothing that the model holds."""
    Elsewhere.norm = norm
    return lambda x: Elsewhere.norm(x)


class Elsewhere:
    norm = None


HELD = {in_list: "blocks[0].0", in_dict: "table['a'][0]", in_object: "config.parts[0]"}
HELD |= {in_closure: "run.norm", in_partial: "run(1)"}
by_name = {"ids": lambda each: getattr(each, "__name__", str(each))}
RUNNING = {
    "convert_": lambda model: surgery.convert_(model, "batch_norm", example=X),
    "convert_ with batches": lambda model: surgery.convert_(model, "group_norm", batches=[X]),
    "freeze_": lambda model: surgery.freeze_(model, example=X),
    "fold_": lambda model: surgery.fold_(model, X),
    "strip_bias_": lambda model: surgery.strip_bias_(model, X),
    "recalibrate_": lambda model: surgery.recalibrate_(model, [X]),
}
LOOKING = {
    "convert_": lambda model: surgery.convert_(model, "batch_norm"),
    "freeze_": surgery.freeze_,
    "unfreeze_": surgery.unfreeze_,
    "to_torch_": surgery.to_torch_,
    "from_sync_": surgery.from_sync_,
    "repair_statistics_": surgery.repair_statistics_,
    "load_statistics_": lambda model: surgery.load_statistics_(model, model.state_dict()),
}


def hidden_in(change):
    return {each.name: each.why for each in change.refused if "no submodule" in each.why}


@pytest.mark.parametrize("verb", LOOKING)
@pytest.mark.parametrize(("hide", "path"), HELD.items(), **by_name)
def test_a_norm_that_a_module_holds_is_named(hide, path, verb):
    model = Net(hide).eval()
    assert list(held_norms(model)) == [path]
    assert list(hidden_in(LOOKING[verb](model))) == [path]


@pytest.mark.parametrize("verb", RUNNING)
@pytest.mark.parametrize(("hide", "path"), (HELD | {in_class: "(beside the model)"}).items(), **by_name)
def test_a_norm_that_runs_is_named(hide, path, verb):
    change = RUNNING[verb](Net(hide).eval())
    assert change.changed
    found = hidden_in(change)
    assert list(found) == [path]
    assert found[path].startswith("it runs, but it is no submodule. Register it")


@pytest.mark.parametrize("verb", [surgery.freeze_, LOOKING["convert_"], RUNNING["convert_"], RUNNING["recalibrate_"]])
def test_a_model_all_of_whose_norms_are_no_submodules_raises(verb):
    model = Net(in_list).eval()
    model.norm = nn.Identity()
    with pytest.raises(ValueError, match=r"1 refused: blocks\[0\]\.0: torch\.nn\.BatchNorm2d\(4\) left as it was: it "):
        verb(model)


class Beside(nn.Module):
    """The classic: a list beside ``setattr``, and the list is what runs."""

    def __init__(self):
        super().__init__()
        self.blocks = []
        for at in range(2):
            norm = randomize_(nn.BatchNorm2d(3), seed=at)
            setattr(self, f"norm{at}", norm)
            self.blocks.append(norm)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("verb", [lambda model: surgery.convert_(model, "batch_renorm"), surgery.freeze_])
def test_a_layer_that_is_still_held_behind_its_successor_is_named(verb):
    model = Beside()
    assert held_norms(model) == {}
    change = verb(model)
    assert [each.name for each in change.refused] == ["blocks[0]", "blocks[1]"]
    assert "still held here, although another module replaces it" in change.refused[0].why
    model.blocks[:] = [model.norm0, model.norm1]
    assert held_norms(model) == {}


@pytest.mark.parametrize("verb", ["fold_", "convert_ with batches"])
def test_a_verb_that_compares_outputs_says_which_norm_runs_on_behind_its_successor(verb):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Beside()).eval()
    y = model(X)
    message = r"_: replaced modules must not run any more, got torch\.nn\.BatchNorm2d\(3\) 1\.blocks\[0\]"
    with pytest.raises(RuntimeError, match=message):
        RUNNING[verb](model)
    assert torch.equal(model(X), y)
    assert type(model[1].norm0) is nn.BatchNorm2d


def test_recalibration_of_a_layer_in_a_list_and_beside_it_takes_it():
    model, plain = Beside().eval(), nn.Sequential(*Beside().blocks).eval()
    change = surgery.recalibrate_(model, [X])
    surgery.recalibrate_(plain, [X])
    assert not change.refused
    torch.testing.assert_close(model.norm1.running_var, plain[1].running_var)


@pytest.mark.parametrize("verb", RUNNING)
def test_runs_leave_no_trace_on_a_norm_that_is_no_submodule(verb):
    model = Net(in_class).eval()
    norm = Elsewhere.norm.train()
    before = copy.deepcopy(norm.state_dict())
    RUNNING[verb](model)
    torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)
    assert norm.training
    hooks = torch.nn.modules.module
    assert not hooks._global_forward_pre_hooks
    assert not hooks._global_forward_hooks


def test_an_exception_in_the_model_leaves_no_hook():
    def fails(model, x):
        raise KeyError

    with pytest.raises(KeyError):
        surgery.recalibrate_(Net(in_list), [X], forward=fails)
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_another_model_that_runs_beside_this_one_is_not_named():
    model, teacher = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(nn.BatchNorm2d(3))

    def both(model, x):
        thread = threading.Thread(target=teacher, args=(x,))
        thread.start()
        thread.join()
        return model(x) - teacher(x)

    assert not surgery.recalibrate_(model, [X], forward=both).refused


def test_where_chooses_among_the_hidden_too():
    model = Net(in_list)
    assert not surgery.freeze_(model, where=lambda name, module: name == "norm").refused
    assert hidden_in(surgery.unfreeze_(model, where=lambda name, module: name != "other"))


def test_a_reference_to_the_parent_is_no_hidden_norm():
    model = nn.Sequential(nn.Sequential(nn.BatchNorm2d(3)), nn.BatchNorm2d(3))
    model[0].parent = [model]
    assert held_norms(model) == {}
    assert held_norms(model[0]) == {}


class Runner:
    def __init__(self, norm):
        self.norm = norm

    def step(self, x):
        return self.norm(x)


@pytest.mark.parametrize(
    ("hide", "path"),
    [
        (lambda norm: Runner(norm).step, "held.norm"),
        (lambda norm: partial(lambda x, module: module(x), module=norm), "held(1)"),
        (lambda norm: {"a": [{"b": norm}]}, "held['a'][0]['b']"),
        (lambda norm: {"a": [{"b": (norm,)}]}, None),
    ],
    ids=["method", "keyword", "three deep", "four deep"],
)
def test_where_a_norm_is_looked_for(hide, path):
    model = nn.Sequential(nn.BatchNorm2d(3))
    model.held = hide(nn.BatchNorm2d(3))
    assert list(held_norms(model)) == [path] * (path is not None)


def test_a_variable_without_a_value_yet_is_passed_over():
    def run(x):
        return later(norm(x))

    norm, model = nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3))
    model.run = run
    assert list(held_norms(model)) == ["run.norm"]
    later = nn.Identity()


class Retries(nn.Module):
    """Goes on after a part that fails."""

    def __init__(self):
        super().__init__()
        self.norm, self.picky = nn.BatchNorm2d(3), nn.Conv2d(5, 5, 1)

    def forward(self, x):
        with contextlib.suppress(RuntimeError):
            x = self.picky(x)
        return self.norm(x)


def test_another_model_is_not_named_where_a_part_of_this_one_has_failed():
    model, teacher = Retries(), nn.Sequential(nn.BatchNorm2d(3))
    assert not surgery.recalibrate_(model, [X], forward=lambda model, x: model(x) - teacher(x)).refused


def test_a_norm_that_runs_may_have_buffers_on_meta():
    model = Net(in_class).eval()
    Elsewhere.norm.num_batches_tracked = Elsewhere.norm.num_batches_tracked.to("meta")
    assert list(hidden_in(surgery.recalibrate_(model, [X]))) == ["(beside the model)"]


class Proxy:
    """Like those of web frameworks, which raise where there is nothing that they stand for."""

    __slots__ = ("norm",)

    def __getattr__(self, name):
        raise RuntimeError("outside of a request")


def test_what_cannot_be_looked_into_is_passed_over():
    model = nn.Sequential(nn.BatchNorm2d(3))
    model.proxy, model.samples, model.norms = Proxy(), [nn.BatchNorm2d(3)] * 10_001, {"a": nn.BatchNorm2d(3)}
    assert list(held_norms(model)) == ["norms['a']"]


def test_a_snapshot_warns_of_norms_that_are_no_submodules():
    with pytest.warns(
        UserWarning,
        match=r"the statistics of torch\.nn\.BatchNorm2d\(4\) 'blocks\[0\]\.0' are not taken: it is not a registered",
    ):
        assert len(surgery.statistics_of(Net(in_list))) == 3


def test_what_holds_itself_is_looked_into_once():
    model = nn.Sequential(nn.BatchNorm2d(3))
    model.loop = {"other": nn.ReLU(), "norm": steadynorm.BatchNorm2d(3)}
    model.loop["self"] = model.loop
    assert list(held_norms(model)) == ["loop['norm']"]


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_what_a_trainer_keeps_is_not_the_models(package):
    net = Net(in_list)
    net.blocks = []

    @look_like(f"{package}.trainer.trainer.Trainer")
    class Trainer:
        def __init__(self, held):
            self.average = held

    net._trainer = Trainer(nn.BatchNorm2d(4))
    assert held_norms(net) == {}
    net._trainer = SimpleNamespace(average=nn.BatchNorm2d(4))
    assert list(held_norms(net)) == ["_trainer.average"]
