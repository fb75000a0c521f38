"""Class activation maps: against their formulas, and the layer found on every kind of network."""

import pytest
import torch
from conftest import Curved, make_images
from test_explainers import explain
from torch import nn
from torch.nn import functional

from robustcv.classifier import frozen
from robustcv.errors import UserError
from robustcv.explainers.spatial_layer import find_layer


@pytest.fixture
def problem():
    return Curved(), make_images(3, (3, 12, 10), dtype=torch.float32), torch.tensor([0, 2, 1])


def features_and_gradient(model, images, targets):
    features = model.body[:2](images).detach().requires_grad_()
    logits = model.head(model.body[2:](features)).gather(1, targets[:, None])
    (gradient,) = torch.autograd.grad(logits.sum(), features)
    return features.detach(), gradient


def enlarged(heat, images):
    return functional.interpolate(heat, images.shape[2:], mode="bilinear", align_corners=False)


def test_each_map_is_its_formula(problem) -> None:
    model, images, targets = problem
    a, g = features_and_gradient(model, images, targets)
    alpha = g**2 / (2 * g**2 + a.sum((2, 3), keepdim=True) * g**3)
    wanted = {
        "grad_cam": (g.mean((2, 3), keepdim=True) * a).sum(1, keepdim=True).relu(),
        "hires_cam": (g * a).sum(1, keepdim=True).relu(),
        "layer_cam": (g.relu() * a).sum(1, keepdim=True).relu(),
        "grad_cam_pp": ((alpha * g.relu()).sum((2, 3), keepdim=True) * a).sum(1, keepdim=True).relu(),
    }
    for name, heat in wanted.items():
        found = explain(name, model, images, targets, layer="body.1")
        assert torch.allclose(found.heatmaps, enlarged(heat, images), atol=1e-5), name
        assert found.details["layer"] == "body.1" and found.details["resolution"] == "12x10"


def test_signed_hires_cam_of_a_linear_head_sums_to_the_logit_without_its_bias(problem) -> None:
    model, images, targets = problem
    heat = explain("hires_cam", model, images, targets, layer="body.2", signed=True)
    a = model.body[:3](images)
    share = (model.head.weight[targets].reshape(3, 6, 3, 3) * a).sum(1, keepdim=True)
    assert torch.allclose(heat.heatmaps, enlarged(share, images).detach(), atol=1e-5)


LAYERS = {  # the last spatial features that the logit reads
    "resnet18": "layer4",
    "vgg11": "avgpool",
    "mobilenet_v3_small": "features",
    "densenet121": "features",
    "squeezenet1_0": "classifier.2",
    "convnext_tiny": "features",
    "swin_t": "permute",
    "vit_b_32": "encoder.layers.encoder_layer_11.ln_1",
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_layer_is_the_last_one_whose_places_reach_the_logit(name: str) -> None:
    from torchvision.models import get_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_model(name, weights=None).eval()
        if hasattr(model, "heads"):
            nn.init.normal_(model.heads.head.weight)
    size = 224 if name == "vit_b_32" else 96
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    with frozen(model):
        layer = find_layer(model, images[:1], torch.tensor([3]), "auto")
    assert layer.name == LAYERS[name]
    found = explain("grad_cam", model, images, torch.tensor([3, 4]), signed=True)
    assert found.heatmaps.shape == (2, 1, size, size) and found.heatmaps.abs().sum() > 0


def test_tokens_are_laid_out_as_they_lie_in_the_image() -> None:
    """A transformer-like net that reads one token: the map is highest at that token's place."""

    class Tokens(nn.Module):
        def __init__(self, cls: int) -> None:
            super().__init__()
            self.cls, self.embed = cls, nn.Conv2d(3, 4, 4, 4)
            self.norm = nn.Identity()
            nn.init.constant_(self.embed.weight, 0.1)

        def forward(self, images):
            tokens = self.embed(images).flatten(2).transpose(1, 2)
            if self.cls:
                tokens = torch.cat([torch.zeros_like(tokens[:, :1]), tokens], 1)
            tokens = self.norm(tokens)
            return tokens[:, self.cls + 1 * 5 + 3].sum(1, keepdim=True) * torch.tensor([[1.0, -1.0]])

    images = torch.full((1, 3, 16, 20), 0.5)
    for cls in (0, 1):
        found = explain("hires_cam", Tokens(cls), images, torch.tensor([0]))
        assert found.details["resolution"] == "4x5" and found.details["layer"] == "norm"
        place = int(found.heatmaps[0, 0].argmax())
        assert (place // 20 // 4, place % 20 // 4) == (1, 3)


def test_attention_is_no_feature_map() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.embed, self.norm, self.soft = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Softmax(-1)
                self.head = nn.Linear(8, 3)

        def forward(self, images):
            tokens = self.norm(self.embed(images).flatten(2).transpose(1, 2))
            tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
            weights = self.soft((tokens @ tokens.transpose(1, 2))[:, None])
            return self.head((weights[:, 0] @ tokens)[:, 0])

    found = explain("grad_cam", Attends(), make_images(1, (3, 16, 16), dtype=torch.float32), torch.tensor([0]))
    assert found.details["layer"] in ("norm", "embed") and found.details["resolution"] == "4x4"


def test_a_model_without_places_and_a_layer_that_is_none_are_refused(problem) -> None:
    model, images, targets = problem

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(360, 4)

        def forward(self, x):
            return self.head(x.flatten(1))

    with pytest.raises(UserError, match="no layer of this model has a spatial output"):
        explain("grad_cam", Flat(), images, targets)
    with pytest.raises(UserError, match=r"body\.2"):
        explain("grad_cam", model, images, targets, layer="bodi.2")
    with pytest.raises(UserError, match="not spatial"):
        explain("grad_cam", model, images, targets, layer="head")
