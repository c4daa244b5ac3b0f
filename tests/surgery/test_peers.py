"""Wrong results of other tools, each shown where the tool is installed, and the right one of ours beside it.

torch itself always is; fvcore with the development extra; opacus, pytorch-lightning, mmcv-lite, torchao where somebody
has installed them: ``pip install opacus pytorch-lightning mmengine mmcv-lite torchao``.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.optim.swa_utils import update_bn

import steadynorm
from steadynorm.surgery import convert_, fold_, freeze_, merge_statistics, recalibrate_, to_torch_
from tests.support.layers import drawn, make_native, randomize_
from tests.support.surgery import refusals

pytestmark = pytest.mark.filterwarnings("ignore")


def peer(name):
    return pytest.importorskip(name, exc_type=ImportError)


def far_off(count=64):
    """Data of mean 3000 and standard deviation 1, in float32."""
    return (drawn(count, 16, 4, 4) + 3000).float()


class TestVarianceOfALargeMean:
    """H2: E[x²] − E[x]² in float32."""

    def test_fvcore_is_off_by_half_and_more(self):
        update = peer("fvcore.nn.precise_bn").update_bn_stats
        model = nn.Sequential(nn.BatchNorm2d(16))
        update(model.train(), far_off().split(16), num_iters=4, progress=None)
        assert ((model[0].running_var - 1).abs() > 0.5).any()

    def test_ours_gives_one(self):
        model = nn.Sequential(nn.BatchNorm2d(16))
        recalibrate_(model, far_off().split(16))
        wanted = far_off().double().transpose(0, 1).flatten(1).var(1)
        torch.testing.assert_close(model[0].running_var.double(), wanted, rtol=1e-4, atol=0)


class Branches(nn.Module):
    """One norm that is reached, and one that is not."""

    def __init__(self):
        super().__init__()
        self.reached, self.unreached = randomize_(nn.BatchNorm2d(16)), randomize_(nn.BatchNorm2d(16))

    def forward(self, x):
        return self.reached(x)


class TestLayersThatAreNotReached:
    """H2: their statistics."""

    def test_fvcore_zeroes_them(self):
        update = peer("fvcore.nn.precise_bn").update_bn_stats
        model = Branches().train()
        update(model, [far_off(8)] * 2, num_iters=2, progress=None)
        assert (model.unreached.running_var == 0).all()

    def test_ours_leaves_them_and_names_them(self):
        model = Branches()
        before = model.unreached.running_var.clone()
        change = recalibrate_(model, [far_off(8)])
        assert torch.equal(model.unreached.running_var, before)
        assert [each.name for each in change.refused] == ["unreached"]


def short_loader():
    yield far_off(4)
    raise OSError("the disk is gone")


class TestALoaderThatFails:
    """H2, H3: what is left behind."""

    def test_fvcore_leaves_momentum_one_and_hooks(self):
        update = peer("fvcore.nn.precise_bn").update_bn_stats
        model = nn.Sequential(nn.BatchNorm2d(16)).train()
        with pytest.raises(OSError, match="disk"):
            update(model, short_loader(), num_iters=4, progress=None)
        assert model[0].momentum == 1.0
        assert model[0]._forward_pre_hooks

    def test_torch_leaves_momentum_none(self):
        model = nn.Sequential(nn.BatchNorm2d(16)).train()
        with pytest.raises(OSError, match="disk"):
            update_bn(short_loader(), model)
        assert model[0].momentum is None

    def test_ours_leaves_nothing(self):
        model = nn.Sequential(randomize_(nn.BatchNorm2d(16))).train()
        state = copy.deepcopy(model.state_dict())
        with pytest.raises(OSError, match="disk"):
            recalibrate_(model, short_loader())
        assert model[0].momentum == 0.1
        assert model[0].training
        assert not model[0]._forward_pre_hooks
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


UNEQUAL = [torch.zeros(32, 1), torch.full((2, 1), 10.0)]
TRUE_MEAN = 20 / 34


class TestBatchesOfUnequalSize:
    """H3: 32 samples of 0 and 2 of 10."""

    def test_torch_weighs_batches(self):
        model = nn.Sequential(nn.BatchNorm1d(1))
        update_bn(UNEQUAL, model)
        assert model[0].running_mean.item() == pytest.approx(5)

    def test_ours_weighs_samples(self):
        model = nn.Sequential(nn.BatchNorm1d(1))
        recalibrate_(model, UNEQUAL)
        assert model[0].running_mean.item() == pytest.approx(TRUE_MEAN)


class TestLayersThatTheUserFroze:
    """H3: statistics of a layer that was put into evaluation while the model trains."""

    def test_torch_overwrites_them(self):
        model = nn.Sequential(randomize_(nn.BatchNorm2d(16))).train()
        model[0].eval()
        before = model[0].running_mean.clone()
        update_bn([far_off(8)], model)
        assert not torch.equal(model[0].running_mean, before)

    def test_ours_leaves_them(self):
        model = nn.Sequential(randomize_(nn.BatchNorm2d(16)), nn.BatchNorm2d(16)).train()
        model[0].eval()
        before = model[0].running_mean.clone()
        change = recalibrate_(model, [far_off(8)])
        assert torch.equal(model[0].running_mean, before)
        assert [each.name for each in change.refused] == ["0"]
        assert not model[0].training


def trained_in_bfloat16(model):
    torch.manual_seed(0)
    model.bfloat16().train()
    for _ in range(2000):
        model(2 * torch.randn(64, 1, dtype=torch.bfloat16))
    return model[0].running_var.item()


class TestStatisticsOfAHalfPrecisionModel:
    """H4: momentum 0.001, variance 4, 2000 steps: 1 + 3·(1 − 0.999²⁰⁰⁰) = 3.6."""

    def test_torchs_stall(self):
        assert trained_in_bfloat16(nn.Sequential(nn.BatchNorm1d(1, momentum=0.001))) < 2.5

    def test_ours_arrive(self):
        model = nn.Sequential(nn.BatchNorm1d(1, momentum=0.001))
        convert_(model, "batch_norm")
        assert trained_in_bfloat16(model) == pytest.approx(4 - 3 * 0.999**2000, rel=0.03)


class TestAFreezeThatFreezes:
    """H5: a frozen layer in training mode."""

    def test_lightnings_uses_the_batch(self):
        finetuning = peer("pytorch_lightning.callbacks").BackboneFinetuning
        model, x = nn.Sequential(randomize_(nn.BatchNorm2d(3)).double()), drawn(8, 3, 4, 4)
        wanted = model.eval()(x)
        finetuning.freeze(model, train_bn=False)
        assert (model.train()(x) - wanted).abs().max() > 0.1

    def test_ours_uses_the_running_statistics(self):
        model, x = nn.Sequential(randomize_(nn.BatchNorm2d(3)).double()), drawn(8, 3, 4, 4)
        wanted = model.eval()(x)
        freeze_(model)
        torch.testing.assert_close(model.train()(x), wanted)


class Rectified(nn.BatchNorm2d):
    """A batch norm with a fused activation, as model libraries have them."""

    def forward(self, x):
        return F.relu(super().forward(x))


class Twice(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.first, self.second = norm, norm


class TestConversionOfASubclass:
    """H6: activation, hooks, modules in two places."""

    def test_torch_drops_the_activation_and_the_hooks(self):
        seen, x = [], drawn(4, 3, 4, 4).float()
        norm = randomize_(Rectified(3)).eval()
        norm.register_forward_hook(lambda *_: seen.append(1))
        model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(norm))
        assert model.eval()(x).min() < 0
        assert not seen

    def test_torch_is_refused_the_activation_of_ours(self):
        model = nn.Sequential(randomize_(steadynorm.BatchNorm2d(3, activation="relu"))).eval()
        with pytest.raises(
            TypeError, match=r"must fuse no activation, .* Use steadynorm.surgery.convert_\(model, 'sync"
        ):
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        assert type(model[0]) is steadynorm.BatchNorm2d

    def test_ours_keeps_them(self):
        seen, x = [], drawn(4, 3, 4, 4).float()
        model = nn.Sequential(randomize_(steadynorm.BatchNorm2d(3, activation="relu"))).eval()
        wanted = model(x)
        model[0].register_forward_hook(lambda *_: seen.append(1))
        convert_(model, "torch_sync_batch_norm")
        torch.testing.assert_close(model(x), wanted)
        assert seen

    def test_ours_refuses_what_it_does_not_know(self):
        model = nn.Sequential(Rectified(3))
        assert "Rectified" in refusals(convert_, model, "torch_sync_batch_norm")[0].what
        assert type(model[0]) is Rectified

    def test_torch_converts_a_norm_in_two_places_in_one(self):
        model = nn.SyncBatchNorm.convert_sync_batchnorm(Twice(nn.BatchNorm2d(3)))
        assert model.first is not model.second

    def test_ours_converts_it_in_both(self):
        model = Twice(nn.BatchNorm2d(3))
        convert_(model, "torch_sync_batch_norm")
        assert type(model.first) is nn.SyncBatchNorm
        assert model.first is model.second


class NormBefore(nn.Module):
    """Registered convolution first, run norm first."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.conv(self.norm(x))


class TestFoldingByDataFlow:
    """H7, and the pre-activation part of H8."""

    def test_mmcv_folds_by_order_of_registration(self):
        fuse = peer("mmcv.cnn.utils").fuse_conv_bn
        model, x = randomize_(NormBefore()).eval(), drawn(2, 3, 5, 5).float()
        wanted = model(x)
        assert (fuse(model)(x) - wanted).abs().max() > 0.1

    def test_ours_folds_by_what_feeds_what(self):
        model, x = randomize_(NormBefore()).double().eval(), drawn(2, 3, 5, 5)
        wanted = model(x)
        change = fold_(model, x)
        assert [each.name for each in change.changed] == ["norm"]
        torch.testing.assert_close(model(x), wanted)


def folded(model, x):
    model = randomize_(model.double()).eval()
    wanted = model(x)
    change = fold_(model, x)
    assert not [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    torch.testing.assert_close(model(x), wanted)
    return change


class TestFoldingOfEveryLayer:
    """H8."""

    @pytest.mark.parametrize("arguments", [{"affine": False}, {"bias": False}], ids=str)
    def test_torch_does_not_fold_linear_without_affine(self, arguments):
        linear, norm = nn.Linear(3, 4).eval(), make_native(nn.BatchNorm1d, 4, **arguments).eval()
        with pytest.raises((AttributeError, TypeError, AssertionError)):
            fuse_linear_bn_eval(linear, norm)

    @pytest.mark.parametrize("arguments", [{"affine": False}, {"bias": False}], ids=str)
    def test_ours_does(self, arguments):
        folded(nn.Sequential(nn.Linear(3, 4), make_native(nn.BatchNorm1d, 4, **arguments)), drawn(5, 3))

    def test_torch_does_not_fold_grouped_transposed_convolutions(self):
        conv, norm = nn.ConvTranspose2d(4, 6, 3, groups=2).eval(), nn.BatchNorm2d(6).eval()
        with pytest.raises(RuntimeError):
            fuse_conv_bn_eval(conv, norm, transpose=True)

    def test_ours_does_that_too(self):
        folded(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), drawn(2, 4, 5, 5))

    def test_ours_warns_of_a_large_gain(self):
        """A channel nearly constant in training, γ/√(var + eps) = 316."""
        model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).double().eval()
        model[1].running_var[1] = 0
        change = fold_(model, drawn(2, 3, 4, 4))
        assert any("316" in note for each in change.changed for note in each.notes)


class Reused(nn.Module):
    """A convolution used with its norm and without."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x)) + self.conv(x)


class TestFoldingOfAConvolutionUsedTwice:
    """Demand 10."""

    def test_torch_gives_another_result(self):
        from torch.fx.experimental.optimization import fuse

        model, x = randomize_(Reused()).eval(), drawn(2, 3, 4, 4).float()
        assert (fuse(copy.deepcopy(model))(x) - model(x)).abs().max() > 0.1

    def test_ours_refuses(self):
        model, x = randomize_(Reused()).eval(), drawn(2, 3, 4, 4).float()
        wanted = model(x)
        assert [each.name for each in refusals(fold_, model, x)] == ["norm"]
        assert torch.equal(model(x), wanted)


class TestGroupNormFromBatchNorm:
    """H17."""

    def test_opacus_drops_the_parameters_and_eps(self):
        convert = peer("opacus.validators.batch_norm")._batchnorm_to_groupnorm
        norm = convert(randomize_(nn.BatchNorm2d(64, eps=0.1)))
        assert (norm.weight == 1).all()
        assert norm.eps == 1e-5

    def test_ours_carries_and_divides(self):
        model = nn.Sequential(randomize_(nn.BatchNorm2d(48, eps=0.1)))
        weight = model[0].weight
        convert_(model, "group_norm")
        assert model[0].weight is weight
        assert (model[0].eps, 48 % model[0].num_groups) == (0.1, 0)


class TestRecognitionByTorchsTools:
    """H18: they know exact classes only."""

    def test_they_pass_over_ours(self):
        fuse_modules = torch.ao.quantization.fuse_modules
        with pytest.raises((AssertionError, NotImplementedError)):
            fuse_modules(nn.Sequential(nn.Conv2d(3, 4, 1), steadynorm.BatchNorm2d(4)).eval(), [["0", "1"]])

    def test_they_know_what_to_torch_leaves(self):
        model, x = randomize_(nn.Sequential(nn.Conv2d(3, 4, 1), steadynorm.BatchNorm2d(4))).eval(), drawn(2, 3, 4, 4)
        wanted = model(x.float())
        to_torch_(model)
        fused = torch.ao.quantization.fuse_modules(model, [["0", "1"]])
        assert isinstance(fused[1], nn.Identity)
        torch.testing.assert_close(fused(x.float()), wanted)


def exported_there_and_back(model, x):
    pt2e = peer("torchao.quantization.pt2e")
    exported = torch.export.export(model, (x,)).module()
    pt2e.move_exported_model_to_train(exported)
    pt2e.move_exported_model_to_eval(exported)
    return exported(x)


def unusual():
    return randomize_(nn.Sequential(nn.Conv2d(3, 4, 1), steadynorm.BatchNorm2d(4, eps=0.1, momentum=0.4))).eval()


class TestExportThatKeepsEps:
    """H19: an exported graph moved to training and back."""

    def test_torchao_loses_eps(self):
        model, x = unusual(), drawn(2, 3, 4, 4).float()
        assert (exported_there_and_back(model, x) - model(x)).abs().max() > 1e-2

    def test_a_folded_model_has_none_to_lose(self):
        model, x = unusual(), drawn(2, 3, 4, 4).float()
        wanted = model(x)
        fold_(model, x)
        torch.testing.assert_close(exported_there_and_back(model, x), wanted, rtol=1e-4, atol=1e-5)


class TestStatisticsOfSeveralRanks:
    """H23: mean 0 on one rank, 10 on the other, variance 1 on both; together 1 + 25, where timm's average gives 1."""

    def test_ours_adds_what_lies_between(self):
        ranks = [
            {"bn.running_mean": torch.tensor([mean]), "bn.running_var": torch.tensor([1.0])} for mean in (0.0, 10.0)
        ]
        merged = merge_statistics(ranks)
        assert merged["bn.running_mean"].item() == pytest.approx(5)
        assert merged["bn.running_var"].item() == pytest.approx(26)
