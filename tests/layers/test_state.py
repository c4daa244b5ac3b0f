"""What a layer keeps beyond torch's five keys: every way of saving keeps it, and it fits the running statistics."""

import copy
import io
import math
import warnings

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.optim.swa_utils import AveragedModel

import steadynorm
from steadynorm.layers import batch_norm_state
from tests.support.layers import drawn
from tests.support.versions import skip_before

KEYS = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
BANK = [f"_bank_{name}" for name in ("experts", "mass", "noise", "weights", "step")]
LAYERS = {
    "gated": lambda **where: steadynorm.GatedBatchNorm2d(4, **where),
    "self-tuned": lambda **where: steadynorm.BatchNorm2d(4, running="self_tuned", **where),
    "gated and self-tuned": lambda **where: steadynorm.GatedBatchNorm2d(4, running="self_tuned", **where),
    "window": lambda **where: steadynorm.BatchNorm2d(4, update_every=2, **where),
    "self-tuned window": lambda **where: steadynorm.BatchNorm2d(4, running="self_tuned", update_every=3, **where),
}


@pytest.fixture(autouse=True)
def each_backend():
    """Which kernels run is all the same here: small tensors, as they come."""


each_layer = pytest.mark.parametrize("name", LAYERS)


def network(name, **where):
    return nn.Sequential(nn.Conv2d(2, 4, 1, **where), LAYERS[name](**where), nn.Conv2d(4, 3, 1, **where))


def images(seed, size=16):
    return drawn(size, 2, 5, 5, seed=seed, dtype=torch.float32) * (1 + seed) + seed


def train(model, seeds):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for seed in seeds:
        optimizer.zero_grad()
        model(images(seed)).square().mean().backward()
        optimizer.step()


def trained(name):
    """A network six batches old, which is the end of a window, and which has moved its confidence."""
    torch.manual_seed(0)
    model = network(name)
    train(model, range(6))
    return model


def assert_goes_on_alike(other, model):
    """Evaluation, and whatever three more batches lead to, are the same bit for bit."""
    model = copy.deepcopy(model)
    assert torch.equal(other.eval()(images(9, 3)), model.eval()(images(9, 3)))
    for each in (other.train(), model.train()):
        train(each, range(6, 9))
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("gated", ["confidence", "noise"]),
        ("self-tuned", BANK),
        ("gated and self-tuned", ["confidence", "noise", *BANK]),
        ("window", []),
    ],
)
def test_what_is_needed_to_go_on_is_in_the_state_dict(name, extra):
    assert sorted(LAYERS[name]().state_dict()) == sorted(KEYS + extra)


def by_torch_save(model, other, folder):
    torch.save(model.state_dict(), folder / "a.pt")
    other.load_state_dict(torch.load(folder / "a.pt", weights_only=True), strict=True)


def by_safetensors_file(model, other, folder):
    safetensors.torch.save_file(model.state_dict(), folder / "a.safetensors")
    other.load_state_dict(safetensors.torch.load_file(folder / "a.safetensors"), strict=True)


def by_safetensors_model(model, other, folder):
    safetensors.torch.save_model(model, str(folder / "a.safetensors"))
    assert safetensors.torch.load_model(other, folder / "a.safetensors") == (set(), [])


def by_plain_dictionary(model, other, folder):
    other.load_state_dict({key: value.clone() for key, value in model.state_dict().items()}, strict=True)


def by_distributed_checkpoint(model, other, folder):
    from torch.distributed import checkpoint as dcp  # takes a second, which only these tests need

    dcp.save({"model": model.state_dict()}, checkpoint_id=folder)
    state = {"model": other.state_dict()}
    dcp.load(state, checkpoint_id=folder)
    other.load_state_dict(state["model"], strict=True)


def by_model_state_dict(model, other, folder):
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    set_model_state_dict(other, copy.deepcopy(get_model_state_dict(model)))


def by_assignment(model, other, folder):
    other.load_state_dict(copy.deepcopy(model.state_dict()), strict=True, assign=True)


WAYS = [
    by_torch_save,
    by_safetensors_file,
    by_safetensors_model,
    by_plain_dictionary,
    by_distributed_checkpoint,
    by_model_state_dict,
    by_assignment,
]


@each_layer
@pytest.mark.filterwarnings("ignore:torch.distributed is .*unavailable or uninitialized:UserWarning")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")  # what torch 2.6 calls
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_training_goes_on_alike_after_loading(name, way, tmp_path):
    model, other = trained(name), network(name)
    train(other, range(20, 23))  # in the middle of something else
    way(model, other, tmp_path)
    assert_goes_on_alike(other, model)


@each_layer
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: torch.load(saved(model), weights_only=False)])
def test_training_goes_on_alike_in_a_copy(name, copied):
    model = trained(name)
    assert_goes_on_alike(copied(model), model)


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("use_buffers", [True, False])
@each_layer
def test_an_averaged_model_has_everything_after_its_first_update(name, use_buffers):
    model = trained(name)
    averaged = AveragedModel(network(name), use_buffers=use_buffers)
    averaged.update_parameters(model)
    if not use_buffers:
        averaged.module.load_state_dict(model.state_dict())
    assert_goes_on_alike(averaged.module, model)
    averaged.update_parameters(model)
    assert all(value.isfinite().all() for value in averaged.state_dict().values())


@each_layer
@pytest.mark.parametrize("way", ["to_empty", "to_empty twice", "assign"])
def test_a_layer_made_on_the_meta_device_goes_on_alike(name, way):
    model = trained(name)
    with torch.device("meta"):
        other = network(name)
    if way == "assign":
        other.load_state_dict(copy.deepcopy(model.state_dict()), strict=True, assign=True)
    else:
        other.to_empty(device="cpu")
        if way == "to_empty twice":
            train(other, range(1))
            other.to_empty(device="cpu")
        other.load_state_dict(model.state_dict(), strict=True)
    assert_goes_on_alike(other, model)


@each_layer
@pytest.mark.parametrize("reset", ["reset_parameters", "reset_running_stats"])
@pytest.mark.parametrize("start", ["meta", "half a window"])
def test_resetting_sets_everything(name, reset, start):
    layer, fresh = LAYERS[name](device="meta"), LAYERS[name]()
    if start == "meta":
        layer(torch.empty(3, 4, 2, 2, device="meta"))
    else:
        layer = LAYERS[name]()
        layer(drawn(3, 4, 2, 2, dtype=torch.float32) + 50)
    layer = layer.to_empty(device="cpu")
    getattr(layer, reset)()
    if reset == "reset_running_stats":
        nn.init.ones_(layer.weight), nn.init.zeros_(layer.bias)
    for seed in range(6):
        x = drawn(8, 4, 3, 3, seed=seed, dtype=torch.float32)
        assert torch.equal(layer(x), fresh(x))
    for key, value in fresh.state_dict().items():
        assert torch.equal(layer.state_dict()[key], value), key


def test_every_buffer_is_a_key():
    """So that nothing needs a value that no checkpoint gives, and the lists of two models' buffers are alike."""
    for name in LAYERS:
        model = trained(name)
        train(model, range(1))
        assert set(dict(model.named_buffers())) <= set(model.state_dict()), name


def test_a_pretrained_model_of_transformers_goes_on_alike(tmp_path):
    transformers = pytest.importorskip("transformers")

    class Config(transformers.PretrainedConfig):
        model_type = "tiny"

        def __init__(self, name="gated", **others):
            super().__init__(**others)
            self.name = name

    class Tiny(transformers.PreTrainedModel):
        config_class = Config

        def __init__(self, config):
            super().__init__(config)
            self.body = network(config.name)
            self.post_init()

        def forward(self, x):
            return self.body(x)

    for name in LAYERS:
        model = Tiny(Config(name))
        model.body.load_state_dict(trained(name).state_dict())
        model.save_pretrained(tmp_path / name)
        other = Tiny.from_pretrained(tmp_path / name)
        assert_goes_on_alike(other.body, model.body)
        half = Tiny.from_pretrained(tmp_path / name, dtype=torch.bfloat16)
        half.train()(images(1).bfloat16())
        wide = {buffer.dtype for buffer in half.buffers() if buffer.is_floating_point()}
        assert wide == {torch.float32}, name


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@each_layer
def test_a_sharded_model_made_on_the_meta_device_goes_on_alike(name, alone):
    skip_before((2, 9), "fully_shard needs streams, which its CPU does not have")
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
    from torch.distributed.fsdp import fully_shard

    model = trained(name)
    with torch.device("meta"):
        other = network(name)
    fully_shard(other, mesh=alone)
    other.to_empty(device="cpu")
    set_model_state_dict(other, copy.deepcopy(model.state_dict()), options=StateDictOptions(full_state_dict=True))
    train(other, range(6, 9)), train(model, range(6, 9))
    found = get_model_state_dict(other, options=StateDictOptions(full_state_dict=True))
    for key, value in model.state_dict().items():
        torch.testing.assert_close(found[key], value, msg=key)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gated", r"must have noise, confidence of GatedBatchNorm2d\(4\) '1' to continue its gate"),
        ("self-tuned", r"must have _bank_experts, .* of BatchNorm2d\(4\) '1' to continue its bank of momenta"),
    ],
)
@pytest.mark.parametrize("assign", [False, True])
def test_a_checkpoint_of_batch_norm_loads_with_one_warning_and_the_rest_starts_again(name, message, assign):
    source = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    model = nn.Sequential(nn.Conv2d(2, 4, 1), LAYERS[name](), LAYERS[name]())
    train(source, range(3)), train(model, range(3))
    with pytest.warns(UserWarning, match=message) as found:
        model.load_state_dict(source.state_dict(), strict=True, assign=assign)
    assert len(found) == 1
    fresh = LAYERS[name]().state_dict()
    for layer, plain in zip(model[1:], source[1:], strict=True):
        expected = fresh | plain.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in layer.state_dict().items())
    with pytest.warns(UserWarning, match=message):
        model.load_state_dict(source.state_dict())


@pytest.mark.parametrize("name", ["gated", "self-tuned"])
def test_a_checkpoint_of_batch_norm_loads_by_assignment_onto_the_meta_device(name):
    source, model = nn.BatchNorm2d(4), LAYERS[name](device="meta")
    with pytest.warns(UserWarning, match="begins again, here and in every other layer"):
        model.load_state_dict(source.state_dict(), assign=True)
    model(images(0).repeat(1, 2, 1, 1))
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_a_part_of_what_a_layer_keeps_is_refused_as_torch_refuses_it():
    model = trained("self-tuned")
    state = model.state_dict()
    del state["1._bank_mass"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "1\._bank_mass"'):
        model.load_state_dict(state)


def test_a_checkpoint_without_the_layer_leaves_what_it_keeps():
    model = trained("gated")
    before = copy.deepcopy(model.state_dict())
    model.load_state_dict({"0.bias": torch.zeros(4)}, strict=False)
    assert all(torch.equal(value, before[key]) for key, value in model[1].state_dict(prefix="1.").items())


@pytest.mark.parametrize("name", ["gated", "self-tuned"])
def test_a_checkpoint_that_has_the_rest_in_its_metadata_loads(name):
    """So did version 0.1.0 keep it."""
    model, other = trained(name), network(name)
    state = model.state_dict()
    kept = {key: state.pop(f"1.{key}") for key in model[1].state_dict() if key not in KEYS}
    state._metadata["1"]["steadynorm"] = kept
    other.load_state_dict(state, strict=True)
    assert_goes_on_alike(other, model)


@pytest.mark.parametrize("name", ["gated", "self-tuned", "gated and self-tuned"])
def test_a_state_dict_can_be_made_that_of_plain_batch_norm(name):
    model = nn.ModuleDict({"net": trained(name), "confidence": nn.Linear(2, 2)})
    model.register_buffer("noise", torch.ones(2))
    plain = nn.ModuleDict(
        {"net": nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)), "confidence": nn.Linear(2, 2)}
    )
    plain.register_buffer("noise", torch.zeros(2))
    assert plain.load_state_dict(batch_norm_state(model.state_dict()), strict=True) == ([], [])
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in plain.state_dict().items())


@pytest.mark.parametrize("name", ["gated", "self-tuned", "gated and self-tuned"])
def test_a_converted_model_has_batch_norms_keys_alone(name):
    model = trained(name)
    steadynorm.surgery.convert_(model, "torch_batch_norm")
    assert list(model[1].state_dict()) == KEYS
    model = trained("self-tuned")
    steadynorm.surgery.to_torch_(model)
    assert list(model[1].state_dict()) == KEYS


@each_layer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_statistics_loaded_by_assignment_become_wide(name, dtype):
    model = trained(name)
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in model.state_dict().items()}
    other = network(name)
    other.load_state_dict(state, assign=True)
    buffers = {key: buffer for key, buffer in other.named_buffers() if buffer.is_floating_point()}
    assert {buffer.dtype for buffer in buffers.values()} == {torch.float32}
    assert all(torch.equal(buffer, state[key].float()) for key, buffer in buffers.items())


def test_a_variance_loaded_in_half_precision_still_follows_its_batches():
    """Weights of bfloat16 as the variance: a hundredth of the way is less than half of its last digit."""
    layer, native = (cls(1, momentum=0.001) for cls in (steadynorm.BatchNorm1d, nn.BatchNorm1d))
    state = {key: value.bfloat16() for key, value in native.state_dict().items()}
    layer.load_state_dict(state | {"num_batches_tracked": torch.tensor(0)}, assign=True)
    x = drawn(64, 1, dtype=torch.float32) * 4
    for _ in range(1000):
        layer(x.bfloat16()), native(x.bfloat16().float())
    assert native.running_var.item() > 5
    torch.testing.assert_close(layer.running_var, native.running_var, rtol=1e-4, atol=0)


def narrowed(layer, channels=2):
    """What pruning does: statistics, weight and bias of the first channels."""
    for key in ("running_mean", "running_var"):
        setattr(layer, key, getattr(layer, key)[:channels].clone())
    for key in ("weight", "bias"):
        setattr(layer, key, nn.Parameter(getattr(layer, key).detach()[:channels].clone()))


WIDTHS = {
    "bank": ({"running": "self_tuned"}, "bank of momenta"),
    "window": ({"update_every": 2}, "window of batches"),
    "both": ({"running": "self_tuned", "update_every": 2}, "window of batches and bank of momenta"),
}


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(("name", "compiled"), [*((name, False) for name in WIDTHS), ("bank", True)])
def test_statistics_of_another_width_start_again_and_say_so_once(name, compiled):
    arguments, what = WIDTHS[name]
    model = nn.Sequential(nn.Identity(), steadynorm.BatchNorm1d(6, **arguments))
    layer, fresh = model[1], steadynorm.BatchNorm1d(2, **arguments)
    torch._dynamo.reset()
    run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    for seed in range(3):
        run(drawn(32, 6, seed=seed, dtype=torch.float32))
    narrowed(layer)
    fresh.load_state_dict(layer.state_dict(), strict=False) if name == "window" else None
    fresh.running_mean.copy_(layer.running_mean), fresh.running_var.copy_(layer.running_var)
    where = r"\(6\)" if compiled else r"\(6\) '1'"
    with pytest.warns(UserWarning, match=f"{where}: its {what} must have .* got 6 for 2. It begins again") as found:
        for seed in range(5):
            x = drawn(32, 2, seed=10 + seed, dtype=torch.float32)
            torch.testing.assert_close(run(x), fresh(x))
    assert len([each for each in found if issubclass(each.category, UserWarning)]) == 1
    torch.testing.assert_close(layer.running_mean, fresh.running_mean)
    torch.testing.assert_close(layer.running_var, fresh.running_var)
    torch._dynamo.reset()


@pytest.fixture
def nameless(monkeypatch):
    """Warnings that do not look through all living modules for a layer's name."""
    monkeypatch.setattr("steadynorm.layers.state.describe", lambda layer: f"{type(layer).__name__} here")


@pytest.mark.parametrize("shape", [(), (6,), (3, 6), (2, 6, 1)])
@pytest.mark.parametrize("part", ["experts", "mass", "noise", "weights"])
def test_a_part_of_the_bank_of_another_shape_starts_the_bank_again(part, shape, nameless):
    layer = steadynorm.BatchNorm1d(6, running="self_tuned")
    layer(drawn(32, 6, dtype=torch.float32))
    setattr(layer, f"_bank_{part}", torch.zeros(shape))
    fresh = steadynorm.BatchNorm1d(6, running="self_tuned")
    x = drawn(32, 6, seed=1, dtype=torch.float32)
    with pytest.warns(
        UserWarning,
        match=r"BatchNorm1d here: its bank of momenta must have as many channels as running_mean, got .* for 6",
    ):
        layer(x)
    fresh(x)
    assert torch.equal(layer.running_mean, fresh.running_mean)
    assert all(torch.equal(getattr(layer, name), fresh.get_buffer(name)) for name in ("_bank_experts", "_bank_noise"))


@pytest.mark.parametrize("width", [2, 12])
def test_a_reset_after_the_statistics_were_replaced_needs_no_warning(width):
    layer = steadynorm.BatchNorm1d(6, running="self_tuned", update_every=2, affine=False)
    layer(drawn(32, 6, dtype=torch.float32))
    layer.running_mean, layer.running_var = torch.zeros(width), torch.ones(width)
    layer.reset_running_stats()
    layer(drawn(32, width, dtype=torch.float32))
    assert layer.state_dict()["_bank_experts"].shape[-1] == width


@pytest.mark.parametrize("name", ["GhostBatchNorm1d", "SyncBatchNorm", "MaskedBatchNorm1d", "BatchNorm1d"])
@pytest.mark.parametrize("arguments", [{}, {"running": "self_tuned"}], ids=["plain", "self-tuned"])
@pytest.mark.parametrize("which", ["running_mean", "running_var"])
def test_statistics_of_another_width_than_the_input_are_refused(name, arguments, which, nameless):
    more = {"ghost_batch_size": 4} if "Ghost" in name else {}
    layer = getattr(steadynorm, name)(6, affine=False, **arguments, **more)
    setattr(layer, which, torch.ones(1))
    with warnings.catch_warnings(), pytest.raises((ValueError, RuntimeError), match=r"running_(mean|var)"):
        warnings.simplefilter("ignore")
        layer(drawn(8, 6, dtype=torch.float32))


@each_layer
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_is_kept_follows_statistics_that_were_set_in_another_dtype(name, dtype):
    model = LAYERS[name]().double() if dtype == torch.float64 else LAYERS[name]()
    layer, wide = LAYERS[name](), torch.float64 if dtype == torch.float64 else torch.float32
    x = drawn(8, 4, 3, 3, dtype=torch.float32)
    layer(x), model(x.to(wide))
    for each in (layer, model):
        each.running_mean, each.running_var = each.running_mean.to(dtype), each.running_var.to(dtype)
        each(x.to(wide)), each(x.to(wide))
        buffers = {key: buffer for key, buffer in each.named_buffers() if buffer.is_floating_point()}
        assert {buffer.dtype for buffer in buffers.values()} == {wide}
    torch.testing.assert_close(layer.running_var, model.running_var, rtol=1e-5, atol=1e-6)


@each_layer
def test_a_layer_built_in_inference_mode_trains_later(name):
    with torch.inference_mode():
        model = LAYERS[name]()
        model(drawn(8, 4, 3, 3, dtype=torch.float32))
        model.double().float()
        model.reset_running_stats()
        model.load_state_dict(LAYERS[name]().state_dict())
    assert not any(each.is_inference() for each in (*model.parameters(), *model.buffers()))
    for seed in range(3):
        model(drawn(8, 4, 3, 3, seed=seed, dtype=torch.float32)).square().mean().backward()
    assert model.weight.grad.isfinite().all()


REMEMBERING = {
    "window": {"update_every": 3},
    "bank": {"running": "self_tuned"},
    "both": {"running": "self_tuned", "update_every": 3},
}


def fed(layer, seeds, offset=0.0):
    for seed in seeds:
        layer(drawn(6, 4, seed=seed) + offset)
    return layer


def remembering(name):
    return fed(steadynorm.BatchNorm1d(4, dtype=torch.float64, **REMEMBERING[name]), range(5))


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_layer_that_forgets_its_batches_goes_on_as_a_new_one_with_its_estimates(name):
    layer, fresh = remembering(name), steadynorm.BatchNorm1d(4, dtype=torch.float64, **REMEMBERING[name])
    fresh.running_mean.copy_(layer.running_mean), fresh.running_var.copy_(layer.running_var)
    fresh.num_batches_tracked.copy_(layer.num_batches_tracked)
    layer.forget_batches_()
    for each in (layer, fresh):
        fed(each, range(5, 9))
    assert all(torch.equal(tensor, fresh.get_buffer(key)) for key, tensor in layer.named_buffers())


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_restored_memory_goes_on_as_if_nothing_had_been(name):
    layer, expected = remembering(name), remembering(name)
    memory = layer.batch_memory()
    layer.forget_batches_()
    fed(layer, range(20, 22))
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        layer.get_buffer(key).copy_(expected.get_buffer(key))
    tensors = list(layer.buffers())
    layer.restore_batch_memory_(memory)
    assert all(now is then for now, then in zip(layer.buffers(), tensors, strict=True))
    for each in (layer, expected):
        fed(each, range(5, 9))
    assert all(torch.equal(tensor, expected.get_buffer(key)) for key, tensor in layer.named_buffers())


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_shifted_memory_is_that_of_shifted_input(name):
    layer, expected = remembering(name), fed(steadynorm.BatchNorm1d(4, **REMEMBERING[name]).double(), range(5), 7.0)
    layer.shift_batch_memory_(torch.full((4,), 7.0, dtype=torch.float64))
    found, wanted = layer.batch_memory(), expected.batch_memory()
    for one, other in zip([*found.window, *found.bank.values()], [*wanted.window, *wanted.bank.values()], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_memory_says_whether_it_is_finite(name):
    layer = remembering(name)
    assert layer.batch_memory().is_finite()
    layer(torch.full((6, 4), math.inf, dtype=torch.float64))
    assert not layer.batch_memory().is_finite()
