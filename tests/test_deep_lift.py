"""DeepLIFT's rules: complete on every kind of network, right where the answer is known, refused by name where not."""

import pytest
import torch
from conftest import make_images
from test_explainers import explain
from torch import nn
from torch.nn import functional

from robustcv.errors import UserError
from robustcv.explainers.multipliers import _relu_slope
from robustcv.models import build

LIGHT = ("alexnet", "resnet18", "mobilenet_v3_small", "squeezenet1_0", "shufflenet_v2_x0_5", "mnasnet0_5")
FAMILIES = (
    "vgg11_bn", "resnext50_32x4d", "wide_resnet50_2", "googlenet", "densenet121", "mobilenet_v2", "efficientnet_b0",
    "convnext_tiny", "regnet_y_400mf", "swin_t",
)  # fmt: skip
HEAVY = ("vgg11", "inception_v3", "vit_b_32", "swin_v2_t", "maxvit_t")
SIZES = {"inception_v3": 299, "vit_b_32": 224, "maxvit_t": 224}


def family(name: str) -> tuple[nn.Module, int]:
    """Build a torchvision network with random weights, float64, its statistics taken from noise."""
    from torchvision.models import get_model

    size = SIZES.get(name, 64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        extra = {"init_weights": True} if name in ("inception_v3", "googlenet") else {}
        model = get_model(name, weights=None, **extra).double().train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the statistics of the noise, all at once: else the signal dies out
        if hasattr(model, "heads"):  # torchvision begins a ViT's head with zeros: every map would be zero
            nn.init.normal_(model.heads.head.weight)
        with torch.no_grad():
            model(torch.rand(8, 3, size, size, dtype=torch.float64))
    return model.eval(), size


def complete(name: str) -> None:
    model, size = family(name)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, size, size, dtype=torch.float64, generator=generator)
    other = torch.rand(1, 3, size, size, dtype=torch.float64, generator=generator)
    targets = torch.tensor([0, 5])
    for baseline in (torch.zeros_like(other), other):
        with torch.no_grad():
            logits = model(images)
            change = (logits - model(baseline))[torch.arange(2), targets].abs()
        assert change.max() > 1e-3 * logits.abs().max()
        found = explain("deep_lift", model, images, targets, baseline=baseline)
        assert (found.gap * change.clamp_min(1e-6) <= 1e-9 * change + 1e-14).all(), (name, found.gap)
        single = explain("deep_lift", model.float(), images.float(), targets, baseline=baseline.float())
        assert (single.gap[change > 0.05 * logits.abs().max()] <= 1e-3).all(), (name, single.gap)
        model.double()


@pytest.mark.parametrize("name", LIGHT)
def test_maps_of_light_networks_sum_to_the_change_of_the_logit(name: str) -> None:
    complete(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_maps_of_all_families_sum_to_the_change_of_the_logit(name: str) -> None:
    complete(name)


@pytest.mark.every_case
@pytest.mark.parametrize("name", HEAVY)
def test_maps_of_heavy_networks_sum_to_the_change_of_the_logit(name: str) -> None:
    complete(name)


def test_a_map_that_rounding_spoils_is_refused() -> None:
    """With random weights the multipliers of this one grow to 1e20: more than any float can cancel."""
    model, size = family("efficientnet_v2_s")
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with pytest.raises(UserError, match="rounding"):
        explain("deep_lift", model.float(), images, torch.tensor([0]))


@pytest.mark.parametrize("name", ["cifar_resnet20", "small_cnn", "preact_resnet18", "wideresnet28_10,instance"])
def test_maps_of_our_own_networks_sum_to_the_change_of_the_logit(name: str) -> None:
    model = build(name, classes=5, size=32).double().eval()
    images = make_images(2, (3, 32, 32))
    for baseline in (0.0, "blur"):
        assert (explain("deep_lift", model, images, torch.tensor([1, 4]), baseline=baseline).gap < 1e-8).all()


class Written(nn.Module):
    """One function written in several ways."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.style = style
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.one, self.two = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1)
            self.head = nn.Linear(5 * 9, 4)
        self.act, self.loud = nn.ReLU(), nn.ReLU(inplace=True)

    def relu(self, x):
        return {
            "module": lambda: self.act(x), "in-place module": lambda: self.loud(x),
            "torch": lambda: torch.relu(x),
            "functional": lambda: functional.relu(x), "functional in place": lambda: functional.relu(x, inplace=True),
            "method": lambda: x.relu(), "method in place": lambda: x.relu_(), "clamp": lambda: x.clamp(min=0),
            "dropped result": lambda: (functional.relu(x, inplace=True), x)[1],
        }[self.style]()  # fmt: skip

    def forward(self, images):
        x = self.relu(self.one(images))
        y = self.two(x)
        y += x
        y = self.relu(y)
        return self.head(functional.max_pool2d(y, 3, 2, 1)[:, :, :3, :3].flatten(1))


STYLES = (
    "module", "in-place module", "torch", "functional", "functional in place", "method", "method in place", "clamp",
    "dropped result",
)  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_however_an_activation_is_written_the_map_is_the_same(style: str) -> None:
    images, targets = make_images(3, (3, 6, 6), dtype=torch.float32), torch.tensor([0, 2, 3])
    usual = explain("deep_lift", Written("module"), images, targets, baseline=0.6)
    found = explain("deep_lift", Written(style), images, targets, baseline=0.6)
    assert torch.allclose(found.heatmaps, usual.heatmaps, atol=1e-6) and (found.gap < 1e-4).all()


class Formula(nn.Module):
    """A logit of the pixels by a formula."""

    def __init__(self, formula) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, images):
        return self.formula(images)[:, None] * torch.tensor([[1.0, -1.0]], dtype=images.dtype)


IMAGE = torch.rand(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
FORMULAS = {
    "silu": lambda x: functional.silu(3 * x).sum((1, 2, 3)),
    "gelu": lambda x: functional.gelu(3 * x - 1).sum((1, 2, 3)),
    "sigmoid gate": lambda x: (x * torch.sigmoid(x.mean((2, 3), keepdim=True) * 4)).sum((1, 2, 3)),
    "layer norm": lambda x: functional.layer_norm(x, (4,))[..., 0].sum((1, 2)) ** 2,
    "group norm": lambda x: functional.group_norm(x, 3)[:, 0, 0, 0] ** 3,
    "instance norm": lambda x: functional.instance_norm(x)[:, 1, 2].sum(1),
    "softmax": lambda x: functional.softmax(5 * x.flatten(1), 1)[:, 3],
    "attention": lambda x: functional.scaled_dot_product_attention(x, 2 * x, x * x).sum((1, 2, 3)),
    "division": lambda x: (x[:, 0] / (1 + x[:, 1])).sum((1, 2)),
    "number over": lambda x: (2 / (1 + x)).sum((1, 2, 3)),
    "power": lambda x: ((1 + x) ** 1.5).sum((1, 2, 3)) + (x**2).sum((1, 2, 3)) + torch.sqrt(x + 1).sum((1, 2, 3)),
    "max pooling": lambda x: functional.max_pool2d(x, 3, 1).sum((1, 2, 3)),
    "adaptive max pooling": lambda x: functional.adaptive_max_pool2d(x, 1).sum((1, 2, 3)),
    "pool then relu": lambda x: torch.relu(functional.max_pool2d(x - 0.5, 2) - 0.1).sum((1, 2, 3)),
    "in-place product": lambda x: (x * 1).mul_(torch.tanh(x)).sum((1, 2, 3)),
    "pool then in place": lambda x: functional.relu(functional.max_pool2d(x - 0.5, 2), inplace=True).sum((1, 2, 3)),
    "relu then in place": lambda x: functional.hardtanh(torch.relu(3 * x - 1), inplace=True).mul_(2).sum((1, 2, 3)),
    "relu, then added to": lambda x: torch.relu(x - 0.3).add_(torch.relu(x - 0.6)).square().sum((1, 2, 3)),
    "gelu, then scaled": lambda x: functional.gelu(3 * x - 1).mul_(2).add_(1).sum((1, 2, 3)),
    "einsum": lambda x: torch.einsum("nchw,ncwk->nchk", x, torch.exp(x)).sum((1, 2, 3)),
    "unit length": lambda x: functional.normalize(x, dim=1)[:, 0].sum((1, 2)),
    "interpolation": lambda x: torch.relu(functional.interpolate(x, 7, mode="bilinear") - 0.4).sum((1, 2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("baseline", [0.0, 0.45, "blur"])
def test_every_rule_hands_on_the_whole_change(name: str, baseline) -> None:
    found = explain("deep_lift", Formula(FORMULAS[name]), IMAGE, torch.tensor([0, 1]), baseline=baseline)
    assert (found.gap < 1e-9).all()
    assert found.heatmaps.abs().sum() > 0


def test_the_rescale_rule_by_hand() -> None:
    """ReLU(x1 - 1 - ReLU(x2)) at (3, 1) from 0: the outer slope is 1/2 (from -1 to 1 gives 1), so (1.5, -0.5)."""
    model = Formula(lambda x: torch.relu(x[:, 0, 0, 0] - 1 - torch.relu(x[:, 0, 0, 1])))
    found = explain("deep_lift", model, torch.tensor([[[[3.0, 1.0]]]]), torch.tensor([0]))
    assert found.heatmaps.flatten().tolist() == pytest.approx([1.5, -0.5])


def test_a_relu_whose_input_is_where_it_was_has_its_own_slope() -> None:
    """ReLU(x1 - x2 + 1) at (0.5, 0.5) from 0: nothing changes, and the unit is on, so each pixel has its weight."""
    image = torch.tensor([[[[0.5, 0.5]]]])
    for bias, wanted in ((1.0, [0.5, -0.5]), (-1.0, [0.0, 0.0])):
        model = Formula(lambda x, bias=bias: torch.relu(x[:, 0, 0, 0] - x[:, 0, 0, 1] + bias))
        assert explain("deep_lift", model, image, torch.tensor([0])).heatmaps.flatten().tolist() == wanted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_slope_of_a_relu_above_zero_is_one_however_small_its_input(dtype: torch.dtype) -> None:
    x = torch.tensor([6e-5, 1e-4, 0.5, 0.0, -1e-4], dtype=dtype)
    wanted = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    assert torch.allclose(_relu_slope(x, torch.zeros_like(x)).float(), wanted, atol=3e-3)


def test_maxima_give_the_change_to_the_place_of_the_larger_one() -> None:
    model = Formula(lambda x: functional.max_pool2d(x, (1, 3)).flatten())
    image, base = torch.tensor([[[[0.2, 0.9, 0.4]]]]), torch.tensor([[[[0.5, 0.1, 0.3]]]])
    found = explain("deep_lift", model, image, torch.tensor([0]), baseline=base).heatmaps.flatten()
    assert found.tolist() == pytest.approx([0.0, 0.4, 0.0])  # the maximum rises from 0.5 (first place) to 0.9 (second)


REFUSED = {
    "amax": lambda x: x.amax((1, 2, 3)),
    "sort": lambda x: x.flatten(1).sort(dim=1)[0][:, 0],
    "gt": lambda x: (x * (x > 0.5)).sum((1, 2, 3)),
    "cummax": lambda x: x.flatten(1).cummax(1)[0].sum(1),
    "detach": lambda x: (x * x.detach()).sum((1, 2, 3)),
    "prod": lambda x: x.flatten(1).prod(1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match=f"no rule for {name}"):
        explain("deep_lift", Formula(REFUSED[name]), IMAGE, torch.tensor([0, 1]))


@pytest.mark.filterwarnings("ignore")
def test_what_no_rule_can_see_is_noticed_by_the_sum() -> None:
    scripted = torch.jit.trace(Written("module").double().eval(), make_images(1, (3, 6, 6)), check_trace=False)
    with pytest.raises(UserError, match="misses"):
        explain("deep_lift", scripted, make_images(2, (3, 6, 6)), torch.tensor([0, 1]), baseline=0.6)


def test_active_dropout_is_refused() -> None:
    model = Formula(lambda x: functional.dropout(x, 0.5).sum((1, 2, 3)))
    with pytest.raises(UserError, match="dropout"):
        explain("deep_lift", model, IMAGE, torch.tensor([0, 1]))


def test_deep_shap_is_the_mean_over_its_baselines() -> None:
    model, images, targets = Written("torch"), make_images(2, (3, 6, 6), dtype=torch.float32), torch.tensor([1, 2])
    others = make_images(3, (3, 6, 6), seed=5, dtype=torch.float32)
    found = explain("deep_shap", model, images, targets, baselines=others)
    each = [explain("deep_lift", model, images, targets, baseline=other[None]).heatmaps for other in others]
    assert torch.allclose(found.heatmaps, torch.stack(each).mean(0), atol=1e-6)
