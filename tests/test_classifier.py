"""The contract: frozen leaves no trace, Tracked counts what an independent hook counts."""

import gc
import weakref

import pytest
import torch
from conftest import Curved, make_images
from torch import nn
from torch.fx.experimental.optimization import fuse

from robustcv.attacks import ATTACKS, is_minimum_norm, norms_of
from robustcv.attacks.norms import NORMS
from robustcv.classifier import Classifier, Tracked, frozen, rows_in_play
from robustcv.evaluation.block import make_judge


def test_normalisation_and_resizing_happen_inside() -> None:
    classifier = Classifier(nn.Flatten(), mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 2.0], size=(4, 4))
    images = torch.full((2, 3, 8, 8), 0.6)
    out = classifier(images)
    assert out.shape == (2, 48)
    assert out[0, ::16].tolist() == pytest.approx([1.0, 1.6, 0.15])
    assert set(classifier.state_dict()) == {"mean", "std"}


def test_frozen_restores_every_mode_and_flag_even_after_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
    model[1].eval()
    model[0].weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(RuntimeError, match="boom"), frozen(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise RuntimeError("boom")
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


CASES = [(name, norm) for name, f in ATTACKS.items() for norm in norms_of(f) if not name.startswith("foolbox-")]


class Counting(nn.Module):
    """Counts rows through forward and backward on its own, with hooks on the inside of the model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.forwards, self.backwards = inner, 0, 0

    def forward(self, images):
        self.forwards += len(images)
        if images.requires_grad:
            images.register_hook(self._seen)
        return self.inner(images)

    def _seen(self, gradient) -> None:
        self.backwards += len(gradient)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_tracked_counts_equal_an_independent_hook_count(name: str, norm: str) -> None:
    model = Counting(Curved().double())
    images = make_images(9)
    labels = torch.arange(9) % 4
    eps = {"linf": 0.02, "l2": 0.2, "l1": 1.0, "l0": 3.0}[norm]
    tracked = Tracked(model, images, make_judge(images, labels, NORMS[norm], eps))
    options = {} if is_minimum_norm(ATTACKS[name]) else {"eps": eps}
    options |= {"queries": 50} if name == "square" else {}
    with frozen(model):
        ATTACKS[name](tracked, images, labels, norm=norm, **options)
    assert int(tracked.forwards.sum()) == model.forwards > 0
    assert int(tracked.backwards.sum()) == model.backwards
    assert (model.backwards > 0) == (name not in ("square", "noise"))


def test_an_image_stops_the_moment_it_is_broken() -> None:
    model = Curved().double()
    images = make_images(12)
    labels = torch.arange(12) % 4
    tracked = Tracked(model, images, make_judge(images, labels, NORMS["linf"], 0.3))
    with frozen(model):
        ATTACKS["pgd"](tracked, images, labels, eps=0.3, steps=10)
        broken_at_once = model(images).argmax(1) != labels
    assert tracked.broken.all()
    assert (tracked.forwards < 11).all()
    with torch.no_grad():
        assert (model(tracked.best).argmax(1) != labels).all()
    assert broken_at_once.any()  # otherwise nothing above could stop at the first query


def test_an_attack_that_never_asks_is_served_whole_and_pays_for_it() -> None:
    """As an attack written for plain modules does: the same images fall, and every query counts for every image."""
    model, images, labels = Curved().double(), make_images(12), torch.arange(12) % 4
    tracked = Tracked(model, images, make_judge(images, labels, NORMS["linf"], 0.02))
    candidates = [(images + sign * 0.02).clamp(0, 1) for sign in (1, -1)]
    for each in candidates:
        tracked(each)
    with torch.no_grad():
        fell = torch.stack([model(each).argmax(1) != labels for each in candidates]).any(0)
    assert tracked.broken.tolist() == fell.tolist() and fell.any() and not fell.all()
    assert tracked.forwards.tolist() == [2] * 12


def test_a_query_about_other_rows_is_refused() -> None:
    images = make_images(3)
    tracked = Tracked(Curved().double(), images, make_judge(images, torch.zeros(3).long(), NORMS["linf"], 0.1))
    with pytest.raises(RuntimeError, match="3 rows are in play but 2 images were queried"):
        tracked(images[:2])
    assert len(rows_in_play(tracked, images)) == 3
    with pytest.raises(RuntimeError, match="3 rows are in play but 2 images were queried"):
        tracked(images[:2])


def test_folding_keeps_the_function_and_its_gradient_and_takes_the_work_out() -> None:
    from robustcv.folding import folded
    from robustcv.models import build

    statistics = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}
    torch.manual_seed(0)
    normed = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    for model in (build("small_cnn", classes=10, size=32, **statistics), Classifier(normed, **statistics)):
        model.eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-1, 1), module.running_var.uniform_(0.5, 2)
        images = torch.rand(8, 3, 32, 32)
        with frozen(model):
            fast = folded(model, images)
            assert fast is not model
            slopes = []
            for each in (model, fast):
                points = images.clone().requires_grad_()
                logits = each(points)
                slopes.append(torch.autograd.grad(logits[:, 1].sum(), points)[0])
                assert torch.allclose(logits, model(images), atol=1e-4 * float(model(images).abs().max()))
            assert torch.allclose(*slopes, atol=1e-3 * float(slopes[0].abs().max()))
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())


def normed(channels: int = 3) -> Classifier:
    torch.manual_seed(0)
    return Classifier(
        nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3),
            nn.BatchNorm2d(6, affine=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5),
        ), mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.25],
    )  # fmt: skip


def test_a_classifier_in_training_is_folded_with_the_weights_of_the_moment(monkeypatch) -> None:
    from robustcv import folding

    model, images = normed(), torch.rand(16, 3, 12, 12)
    traces = []
    monkeypatch.setattr(folding, "fuse", lambda network: traces.append(1) or fuse(network))
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for step in range(5):
        nn.functional.cross_entropy(model.train()(images), torch.arange(16) % 5).backward()
        optimizer.step()
        with frozen(model):
            fast = folding.refolded(model, images[:4])
            given, exact = fast(images), folding.folded(model, images[:4])
            assert fast is not model and exact is not model
            assert torch.allclose(given, exact(images), atol=1e-5), step
            assert torch.allclose(given, model(images), atol=1e-4)
            assert not any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in fast.modules())
    assert sum(traces) == 1 + 5  # one for all steps; `folded` traces each time
    reference = weakref.ref(model)
    del model, optimizer, fast, exact
    gc.collect()
    assert reference() is None  # what is remembered keeps no classifier alive


def test_under_autocast_folding_is_still_held_to_float32() -> None:
    from robustcv.folding import refolded

    model, images = normed().eval(), torch.rand(16, 3, 12, 12)
    with frozen(model), torch.autocast("cpu", torch.bfloat16):
        assert refolded(model, images[:4]) is not model


def test_what_cannot_be_folded_in_training_is_asked_as_it_is_and_not_traced_again(monkeypatch) -> None:
    from robustcv import folding

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

        def forward(self, images):
            return self.norm(self.last(images)).mean((2, 3)) * (1 if len(images) > 0 else 2)

    class Drifting(nn.Module):  # its trace forgets the number that it reads at each call
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.first, self.factor = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), 1.0

        def forward(self, images):
            return self.norm(self.first(images)).mean((2, 3)) * self.factor

    images, traces = torch.rand(4, 3, 6, 5), []
    monkeypatch.setattr(folding, "fuse", lambda network: traces.append(1) or fuse(network))
    odd = Odd().eval()
    with frozen(odd):
        assert folding.refolded(odd, images) is odd and folding.refolded(odd, images) is odd
    assert len(traces) == 1
    drifting = Drifting().eval()
    with frozen(drifting):
        assert folding.refolded(drifting, images) is not drifting
        drifting.factor = 2.0
        folding.forget(drifting)  # as each epoch does
        assert len(traces) == 2
        assert torch.allclose(folding.refolded(drifting, images)(images), drifting(images), atol=1e-5)


class _Twice(nn.Module):
    """Uses one convolution before two batch norms, or one batch norm after two layers, or two in a row."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.convolution, self.other = kind, nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, images):
        x = self.first(self.convolution(images))
        if self.kind == "convolution":
            x = self.second(self.convolution(x.relu()))
        elif self.kind == "norm":
            x = self.first(self.other(x.relu()))
        elif self.kind == "sum":
            x = self.first(self.other(x.relu()) + x)
        else:
            x = self.second(x)
        return x.mean((2, 3))


@pytest.mark.parametrize("kind", ["convolution", "norm", "sum", "row"])
def test_layers_that_are_used_twice_are_never_folded_into_another_function(kind: str) -> None:
    from robustcv import folding

    torch.manual_seed(0)
    model, images = _Twice(kind), torch.rand(16, 3, 6, 6)
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    with frozen(model):
        folding.refolded(model, images[:4])  # every batch norm is still the identity, and any fold agrees
    for _ in range(20):
        nn.functional.cross_entropy(model.train()(images), torch.arange(16) % 3).backward()
        optimizer.step()
        with frozen(model):
            assert torch.allclose(folding.refolded(model, images[:4])(images), model(images), atol=1e-4)


def test_exchanged_layers_and_another_normalisation_are_followed() -> None:
    from robustcv import folding

    model, images = normed().eval(), torch.rand(4, 3, 12, 12)
    with frozen(model):
        folding.refolded(model, images)
        model.network[2] = nn.Tanh()
        assert torch.allclose(folding.refolded(model, images)(images), model(images), atol=1e-4)
        model.mean.fill_(0.1)
        assert torch.allclose(folding.refolded(model, images)(images), model(images), atol=1e-4)


def test_a_stand_in_gradient_is_not_folded_away() -> None:
    from robustcv.attacks.wrappers import Bpda
    from robustcv.folding import folded

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    model = Bpda(lambda images: images + 0.01 * torch.sin(3000 * images), network).eval()
    images = torch.rand(4, 3, 8, 8)
    with frozen(model):
        slopes = []
        for each in (model, folded(model, images)):
            points = images.clone().requires_grad_()
            slopes.append(torch.autograd.grad(each(points)[:, 0].sum(), points)[0])
    assert torch.allclose(*slopes, atol=1e-5)


def test_grey_images_for_a_colour_classifier_still_run() -> None:
    from robustcv.folding import folded

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model = Classifier(network, mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.2]).eval()
    grey = torch.rand(4, 1, 8, 8)
    assert torch.allclose(folded(model, grey)(grey), model(grey), atol=1e-5)


def test_what_cannot_be_folded_runs_as_it_is() -> None:
    from robustcv.folding import folded

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, images):
            return self.norm(images).mean((2, 3)) if len(images) > 0 else images

    images = torch.rand(4, 3, 6, 5)
    for model in (Odd().eval(), Curved().eval()):
        assert folded(model, images) is model


def test_only_what_was_denied_is_attacked_again_and_what_stood_still_stands() -> None:
    images = torch.rand(4, 1, 2, 2)
    said = torch.tensor([True, True, False, False])  # what the near classifier calls broken

    def judge(candidates, logits, rows):
        return said[rows], torch.where(said[rows], -1.0, 1.0)

    tracked = Tracked(nn.Flatten(), images, judge, confirm=lambda candidates, rows: rows == 0)
    tracked(images)
    assert tracked.broken.tolist() == [True, False, False, False]
    assert tracked.forwards.tolist() == [2, 2, 1, 1]  # a success costs one more pass
    none = torch.zeros(4, dtype=torch.bool)
    assert tracked.doubt(torch.tensor([True, False, False, False]), none)
    assert tracked.rows().tolist() == [1] and tracked.broken.tolist() == [True, False, False, False]
    tracked.confirm, said[1] = None, False
    tracked(images[1:2])
    assert not tracked.doubt(torch.tensor([True, False, False, False]), none)
    assert tracked.broken.tolist() == [True, False, False, False]


def test_what_stood_narrowly_is_tried_again_and_keeps_its_best() -> None:
    tracked = Tracked(nn.Flatten(), torch.rand(3, 1, 2, 2), lambda c, logits, rows: (rows == 0, rows.double()))
    tracked(torch.rand(3, 1, 2, 2))
    assert tracked.doubt(torch.tensor([True, False, False]), torch.tensor([True, True, False]))
    assert tracked.rows().tolist() == [1] and tracked.best_score.tolist() == [0, 1, 2]
    assert tracked.broken.tolist() == [True, False, False]


def test_an_attack_that_asks_about_all_may_break_what_was_set_aside() -> None:
    tracked = Tracked(nn.Flatten(), torch.rand(2, 1, 2, 2), lambda c, logits, rows: (rows == 1, torch.zeros(len(c))))
    tracked.in_play, tracked.aside = torch.tensor([True, False]), torch.tensor([False, True])
    tracked(torch.rand(2, 1, 2, 2))
    assert tracked.broken.tolist() == [False, True]


def test_large_batches_go_through_in_parts_with_the_same_gradient() -> None:
    model, images = Curved(channels=3), make_images(200, dtype=torch.float32)
    asked = []
    model.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    with frozen(model):
        points = [images.clone().requires_grad_() for _ in range(2)]
        tracked = Tracked(model, images, lambda c, logits, rows: (torch.zeros(len(c)).bool(), logits[:, 0]))
        found = [torch.autograd.grad(each(at).sum(), at)[0] for each, at in zip((model, tracked), points, strict=True)]
    assert asked[0] == 200 and max(asked[1:]) <= 64 * torch.get_num_threads() and sum(asked[1:]) == 200
    assert torch.allclose(*found, atol=1e-6) and tracked.backwards.tolist() == [1] * 200
