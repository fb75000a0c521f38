"""What is proved holds: against linear programmes over every activation pattern, closed forms, attacks and theory."""

import itertools
from functools import partial

import exact
import numpy as np
import pytest
import torch
from conftest import make_images, make_linear
from honest_models import Residual, conv, patches, trained
from scipy.optimize import linprog
from scipy.special import ndtr
from test_classifier import Counting
from torch import nn
from torch.nn import functional

import robustcv as rc
from robustcv import runs
from robustcv.attacks.pgd import pgd
from robustcv.certificates.bounds import bounds, lower_margins
from robustcv.certificates.graph import operations_of
from robustcv.certificates.smoothing import largest_radius, outvoted, radius_of, smoothed_pgd, smoothing
from robustcv.classifier import Classifier, frozen
from robustcv.errors import UserError


def exact_margin(first: nn.Linear, second: nn.Linear, image: np.ndarray, label: int, other: int, eps: float) -> float:
    """Minimise a margin over an L-inf ball and the box: one linear programme for each pattern of active ReLUs."""
    w, b = first.weight.detach().double().numpy(), first.bias.detach().double().numpy()
    v, c = second.weight.detach().double().numpy(), second.bias.detach().double().numpy()
    form, best = v[label] - v[other], np.inf
    box = list(zip(np.clip(image - eps, 0, 1), np.clip(image + eps, 0, 1), strict=True))
    for pattern in itertools.product((0, 1), repeat=len(b)):
        on = np.array(pattern)
        sign = np.where(on == 1, -1.0, 1.0)[:, None]  # on: w x + b >= 0; off: w x + b <= 0
        found = linprog((form * on) @ w, A_ub=sign * w, b_ub=-sign[:, 0] * b, bounds=box, method="highs")
        if found.status == 0:
            best = min(best, found.fun + (form * on) @ b + c[label] - c[other])
    return best


@pytest.mark.parametrize("seed", range(4))
def test_bounds_never_exceed_the_exact_minimum_and_come_near_it(seed: int) -> None:
    torch.manual_seed(seed)
    first, second = nn.Linear(4, 6), nn.Linear(6, 3)
    net = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second).eval().requires_grad_(False)
    images = torch.rand(3, 1, 2, 2)
    labels = net(images).argmax(1)
    for eps in (0.02, 0.1, 0.4):
        found = lower_margins(net, images, labels, eps=eps)
        for image, label, row in zip(images, labels.tolist(), found, strict=True):
            others = [k for k in range(3) if k != label]
            truth = [exact_margin(first, second, image.flatten().double().numpy(), label, k, eps) for k in others]
            assert (row.numpy() <= np.array(truth) + 1e-8).all()
            if eps == 0.02:
                assert row.numpy() == pytest.approx(truth, abs=0.01)


def test_an_interval_alone_is_looser_and_tightening_helps() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)
    ).eval().requires_grad_(False)  # fmt: skip
    images = torch.rand(4, 3, 2, 2)
    labels = net(images).argmax(1)
    loose, tight = (lower_margins(net, images, labels, eps=0.1, inner=inner) for inner in (0, 100))
    assert (tight >= loose - 1e-9).all() and (tight > loose + 1e-3).any()


class Block(nn.Module):
    """A residual block as `cifar_resnet20` has it: slices, zero channels, functional ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6)

    def forward(self, x):
        short = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        return functional.relu(self.norm(self.conv(x)) + short)


NETS = {
    "pooled": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4)),
    "overlapping": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(36, 4)),
    "residual": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), Block(), nn.AdaptiveAvgPool2d(2),
                                      nn.Flatten(), nn.Linear(24, 4)),
    "average": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, groups=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
                                     nn.AvgPool2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(36, 4)),
}  # fmt: skip


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", NETS)
def test_no_attack_goes_below_a_bound(name: str, norm: str) -> None:
    torch.manual_seed(5)
    net = NETS[name]()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.3, 2)
            module.weight.data.uniform_(-1, 1)
    model = Classifier(net, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)).double()
    images = torch.rand(8, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with frozen(model):
        labels = model(images).argmax(1)
        for eps in {"linf": (0.0005, 0.01), "l2": (0.005, 0.1), "l1": (0.02, 0.5)}[norm]:
            found = lower_margins(model, images, labels, eps=eps, norm=norm)
            attacked = pgd(model, images, labels, eps=eps, norm=norm, loss="margin", steps=40)
            logits = model(attacked)
            margins = torch.stack(
                [torch.cat([z[y] - z[:y], z[y] - z[y + 1 :]]) for z, y in zip(logits, labels, strict=True)]
            )
            assert (margins >= found).all()
        clean = model(images)
        margins = torch.stack(
            [torch.cat([z[y] - z[:y], z[y] - z[y + 1 :]]) for z, y in zip(clean, labels, strict=True)]
        )
        assert torch.allclose(lower_margins(model, images, labels, eps=0.0, norm=norm), margins, atol=1e-6)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.01), ("l2", 0.05), ("l1", 0.3)])
def test_on_a_linear_model_the_proof_is_the_closed_form(norm: str, eps: float) -> None:
    model = make_linear(5, seed=2)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(90, 5)).double()
    linear[1].weight.data, linear[1].bias.data = model.weights.data, model.bias.data
    images = make_images(60)
    with torch.no_grad():
        labels = model(images).argmax(1)
    with frozen(linear):
        found = bounds(linear, images, labels, eps=eps, norm=norm)
    weights, bias = model.weights.detach().numpy(), model.bias.detach().numpy()
    stands = [exact.stands(weights, bias, x.flatten().numpy(), int(y), eps, norm)
              for x, y in zip(images, labels, strict=True)]  # fmt: skip
    assert found.tolist() == stands and 5 < sum(stands) < 55


class Smooth(nn.Module):
    def forward(self, x):
        return torch.sigmoid(x.flatten(1))[:, :3]


class Branching(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :3] if x.sum() > 0 else -x.flatten(1)[:, :3]


def test_what_cannot_be_bounded_is_named() -> None:
    for model, what in ((Smooth(), "sigmoid"), (Branching(), "control flow"),
                        (Classifier(nn.Flatten(), size=(9, 9)), "resizing"), (nn.Sequential(nn.GELU()), "GELU"),
                        (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)), "MaxPool2d")):  # fmt: skip
        with pytest.raises(UserError, match=what):
            operations_of(model, (3, 8, 8))


class Preactivated(nn.Module):
    """Rectifies in place what its shortcut still reads."""

    def __init__(self, relu) -> None:
        super().__init__()
        self.first, self.second, self.relu = nn.Linear(192, 16), nn.Linear(16, 4), relu

    def forward(self, x):
        h = self.first(x.flatten(1))
        return self.second(self.relu(h) + h)


class Statement(Preactivated):
    def forward(self, x):
        h = self.first(x.flatten(1))
        functional.relu(h, inplace=True)
        return self.second(h)


class Dropping(Preactivated):
    def forward(self, x):
        return self.second(functional.dropout(functional.relu(self.first(x.flatten(1))), 0.5))


class Ceiled(nn.Module):
    def forward(self, x):
        return functional.max_pool2d(x, 3, 2, ceil_mode=True).mean((2, 3))


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    net[1].register_forward_hook(lambda *given: given[2] * 3)
    return net


@pytest.mark.parametrize("make", [lambda: Preactivated(nn.ReLU(inplace=True)), lambda: Statement(nn.ReLU()),
                                  lambda: Dropping(nn.ReLU()), Ceiled, hooked])  # fmt: skip
def test_no_proof_is_given_about_another_function(make) -> None:
    torch.manual_seed(0)
    images = torch.rand(3, 3, 8, 8)
    with frozen(make()) as model, pytest.raises(UserError, match="there is no rule"):
        bounds(model, images, torch.tensor([0, 1, 2]), eps=0.01)


class Sides(nn.Module):
    """A binary linear classifier of images, w . x + b."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(48, generator=torch.Generator().manual_seed(0)))
        self.b = nn.Parameter(-0.5 * self.w.detach().sum() + offset)

    def forward(self, x):
        score = x.flatten(1) @ self.w + self.b
        return torch.stack([score, -score], 1)


def test_the_radius_of_a_linear_model_is_the_true_one_from_below() -> None:
    """Smoothing a linear classifier changes nothing: the distance to the plane is the radius (Cohen et al. 2019)."""
    model = Sides().requires_grad_(False)
    images = torch.rand(60, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    distance = (images.flatten(1) @ model.w + model.b).abs() / model.w.norm()
    found = smoothing(model, images, seeds=torch.arange(60), sigma=0.5, samples=2000)
    votes = ndtr(distance.numpy() / 0.5)  # the chance that a noisy copy gets the same class
    assert (found.radii.numpy() <= distance.numpy()).mean() == 1.0
    shown = found.classes >= 0
    assert (found.classes[shown] == model(images).argmax(1)[shown]).all() and int((~shown).sum()) >= 3
    expected = [radius_of(round(2000 * share), 2000, 0.5, 0.001) for share in votes]
    assert np.abs(found.radii.numpy() - expected).mean() < 0.03
    cap = largest_radius(0.5, 2000, 0.001)
    assert found.radii.max() <= cap == pytest.approx(0.5 * 2.6987, abs=0.01)
    assert largest_radius(1.0, 100_000, 0.001) == pytest.approx(3.8115, abs=1e-3)


def test_radii_are_too_large_no_more_often_than_alpha_says() -> None:
    model = Sides(0.4).requires_grad_(False)
    image = torch.full((1, 3, 4, 4), 0.5)
    distance = float(0.4 / model.w.norm())
    seeds = torch.arange(400)
    found = smoothing(model, image.expand(400, -1, -1, -1), seeds=seeds, sigma=0.1, samples=100, first=20, alpha=0.05)
    wrong = float((found.radii > distance).double().mean())
    assert wrong <= 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5


def test_the_smoothed_classifier_is_broken_only_beyond_its_distance() -> None:
    model = Sides().requires_grad_(False)
    images = torch.rand(24, 3, 4, 4, generator=torch.Generator().manual_seed(4)) * 0.4 + 0.3
    labels = model(images).argmax(1)
    distance = (images.flatten(1) @ model.w + model.b).abs() / model.w.norm()
    seeds, votes = torch.arange(24), {"sigma": 0.25, "samples": 500, "alpha": 0.001}
    for eps in (0.15, 0.4):
        attacked = smoothed_pgd(model, images, labels, eps=eps, seeds=seeds, sigma=0.25)
        assert ((attacked - images).flatten(1).norm(dim=1) <= eps + 1e-6).all()
        broken = outvoted(model, attacked, labels, seeds=seeds, **votes)
        assert not (broken & (distance > eps)).any()
        assert broken[distance < 0.5 * eps].float().mean() > 0.7


def test_attacking_noisy_copies_a_few_at_a_time_gives_the_same_images() -> None:
    generator = torch.Generator().manual_seed(5)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3))
    for parameter in net.double().requires_grad_(False).parameters():
        parameter.normal_(generator=generator)
    images = torch.rand(5, 3, 4, 4, generator=generator, dtype=torch.float64)
    attack = partial(smoothed_pgd, net, images, net(images).argmax(1), eps=0.3, seeds=torch.arange(5))
    for few in (1, 5, 15):
        torch.testing.assert_close(attack(at_once=few), attack(), rtol=0, atol=1e-10)
    assert not torch.equal(attack(), images)


def test_a_false_proof_by_the_better_bounds_is_noticed(monkeypatch) -> None:
    from robustcv.evaluation import certify

    def bounding(classifier, images, labels, *, inner=600, **options):
        if inner == 0:
            return bounds(classifier, images, labels, inner=0, **options)
        return torch.ones(len(images), dtype=torch.bool)  # proves anything

    monkeypatch.setattr(certify, "bounds", bounding)
    run = rc.audit(trained(conv, seed=3), patches(60, 5), eps=16 / 255, effort="quick", explain=(), cases=0,
                   certify=["bounds"], quiet=True)  # fmt: skip
    (flag,) = (each for each in run.flags if each.check == "proofs and attacks agree")
    assert flag.status == "raised" and sum(row.contradictions for row in run.certified) > 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model = trained(conv, seed=3, eps=8 / 255)
    options = {"eps": "2/255", "effort": "quick", "explain": (), "cases": 2, "quiet": True}
    return rc.audit(model, patches(80, 5), certify=["bounds", "smoothing"], set=["smoothing.samples=200"],
                    out=tmp_path_factory.mktemp("certified") / "run", **options)  # fmt: skip


def test_an_audit_gives_two_sided_rows_without_contradiction(run) -> None:
    rows = [row for row in run.certified if row.method == "bounds"]
    assert [row.eps for row in rows] == sorted({each.eps for each in run.attacks if each.reason == "plan"})
    assert all(row.contradictions == 0 and row.certified + row.broken <= row.n for row in run.certified)
    assert rows[0].certified > 20 and sorted((row.certified for row in rows), reverse=True) == [
        r.certified for r in rows
    ]
    for row in rows:
        robust = run.record.metric("robust_accuracy", eps=row.eps, attack=None)
        assert (
            row.broken == row.n - robust.count and row.low <= row.certified / row.n <= robust.count / row.n <= row.high
        )
        assert run.record.metric("certified_accuracy", eps=row.eps).bound == "lower"
    smooth = [row for row in run.certified if row.method == "smoothing"]
    assert smooth and all(row.eps <= smooth[0].details["largest radius"] and row.norm == "l2" for row in smooth)
    text = run.page.read_text()
    assert "Proved and attacked" in text and "is not the model on the first screen" in text
    assert next(flag for flag in run.flags if flag.check == "proofs and attacks agree").status == "pass"


def test_the_passes_of_votes_and_of_attacks_on_them_are_counted(tmp_path) -> None:
    from test_worst_case import job_for, planned

    from robustcv.evaluation.certify import certify_smoothing
    from robustcv.evaluation.worst_case import worst_case

    model = Counting(trained(conv, seed=3))
    with frozen(model):
        job = job_for(model, patches(20, 5), norm="l2", state=runs.State(tmp_path))
        outcome = worst_case(job, planned("fgsm"), eps=0.5)
        model.forwards = model.backwards = 0
        rows = certify_smoothing(job, outcome, {"samples": 100, "first": 20})
        counted = sum(row.forward for row in rows), sum(row.backward for row in rows)
        assert counted == (model.forwards, model.backwards) and rows[0].forward >= 20 * 120 > 0 < counted[1]
        again = certify_smoothing(job, outcome, {"samples": 100, "first": 20})  # as after an interruption
    assert again == rows and (model.forwards, model.backwards) == counted


def test_residual_networks_are_proved_in_an_audit_too() -> None:
    model = trained(Residual, seed=3, normalised=False)
    run = rc.audit(model, patches(30, 5), eps="1/255", sweep=False, effort="quick", certify=["bounds"], explain=(),
                   cases=2, quiet=True)  # fmt: skip
    (row,) = run.certified
    assert row.certified > 5 and row.contradictions == 0


def test_mistakes_with_certificates_are_told() -> None:
    model = trained(conv, seed=3, eps=8 / 255)
    common = {"explain": (), "cases": 2, "quiet": True}
    with pytest.raises(UserError, match="did you mean 'bounds'"):
        rc.audit(model, patches(30, 5), certify=["bound"], **common)
    with pytest.raises(UserError, match="no bounds in l0"):
        rc.audit(model, patches(30, 5), norm="l0", eps=5, effort="quick", certify=["bounds"], **common)
    with pytest.raises(UserError, match="so its options would do nothing"):
        rc.audit(model, patches(30, 5), set=["smoothing.sigma=0.5"], **common)


def test_a_false_proof_about_a_broken_image_is_raised(monkeypatch) -> None:
    from robustcv.evaluation import certify as module

    model, images = trained(conv, seed=3), patches(60, 5)
    options = {"eps": 0.3, "sweep": False, "effort": "quick", "explain": (), "cases": 0, "certify": ["bounds"]}

    def flag() -> str:
        run = rc.audit(model, images, **options, quiet=True)
        return next(each.status for each in run.flags if each.check == "proofs and attacks agree")

    assert flag() == "pass"
    monkeypatch.setattr(module, "bounds", lambda model, images, labels, **_: torch.ones(len(images)).bool())
    assert flag() == "raised"
