"""Models of more classes than the data: the same logits, chosen; audited, replayed, explained, and trained from."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import robustcv as rc
from robustcv import runs
from robustcv.cli import main
from robustcv.data import load
from robustcv.errors import UserError
from robustcv.folding import folded
from robustcv.models import Loaded, build, checkpoint
from robustcv.models import load as load_classifier
from robustcv.models.class_map import answering, read_class_map, rows_of

NAMES, DIGITS = ("one", "seven", "three"), (1, 7, 3)


@pytest.fixture(scope="module")
def some_digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images of three digits in folders called by words, and the map to the classes of the model."""
    root = tmp_path_factory.mktemp("words")
    for split in ("train", "test"):
        images = load("digits", split=split).in_memory()
        for name, digit in zip(NAMES, DIGITS, strict=True):
            (root / "data" / split / name).mkdir(parents=True)
            for k, row in enumerate((images.labels == digit).nonzero()[:20, 0].tolist()):
                Image.fromarray(images.images[row][0].numpy()).save(root / "data" / split / name / f"{k}.png")
    (root / "map.csv").write_text("three,3\none,1\n\nseven, 7\n")
    return root / "data", root / "map.csv"


def test_answers_are_the_logits_of_the_classes_that_the_map_names(trained: Path) -> None:
    whole = load_classifier(str(trained))
    asked = answering(whole, dict(zip(NAMES, DIGITS, strict=True)))
    images = torch.rand(4, *load("digits", split="test").shape)
    assert torch.equal(asked.classifier(images), whole.classifier(images)[:, list(DIGITS)])
    assert asked.class_names == NAMES and asked.whole is whole.classifier
    with torch.no_grad():
        fast = folded(asked.classifier.eval(), images)
        assert torch.allclose(fast(images), asked.classifier(images), atol=1e-4)
    bare = answering(Loaded(nn.Flatten(), "", ""), {"b": 2, "a": 5}).classifier
    assert bare(torch.arange(8.0).reshape(1, 1, 2, 4)).tolist() == [[2, 5]]


def test_an_audit_under_a_class_map_counts_what_the_chosen_logits_say_and_can_be_replayed(
    trained: Path, some_digits: tuple[Path, Path], tmp_path: Path
) -> None:
    data, path = some_digits
    copied = tmp_path / "map.csv"
    copied.write_text(path.read_text())
    run = rc.audit(
        str(trained), str(data), class_map=copied, eps="32/255", sweep=False, effort="quick", cases=4, quiet=True,
        out=tmp_path / "run",
    )  # fmt: skip
    images = load(str(data), split="test").in_memory()
    pixels, labels = next(images.batches(len(images)))
    with torch.no_grad():
        logits = load_classifier(str(trained)).classifier(pixels)[:, list(DIGITS)]
    right = int((logits.argmax(1) == labels).sum())
    clean = run.record.metric("clean_accuracy")
    assert images.class_names == NAMES and (clean.count, clean.n) == (right, len(labels))
    assert 0 < run.record.metric("robust_accuracy", attack=None).count < right
    described = runs.load(tmp_path / "run").model
    assert described.class_map == {"one": 1, "seven": 7, "three": 3}
    assert described.sha256 == checkpoint.sha256_of(load_classifier(str(trained)).classifier)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "asked about 3 of its classes alone" in page and "one: 1, seven: 7, three: 3" in page
    copied.unlink()  # what the run was made with is in the run
    assert all(check.status != "raised" for check in rc.verify(tmp_path / "run", quiet=True))
    with pytest.raises(UserError, match="10 classes but the data has 3"):
        rc.audit(str(trained), str(data), quiet=True)


def test_labels_from_python_mean_what_their_set_says_whatever_the_order_of_the_lines(tmp_path: Path) -> None:
    model = nn.Flatten()  # answers with the pixels: image k is of class k
    images = torch.eye(6).reshape(6, 1, 1, 6)[[1, 3, 5]].repeat(2, 1, 1, 1)
    path = tmp_path / "map.csv"
    path.write_text("2,5\n0,1\n1,3\n")
    quick = {"effort": "quick", "eps": "1/255", "sweep": False, "explain": (), "cases": 0, "quiet": True}
    run = rc.audit(model, images, torch.tensor([0, 1, 2] * 2), class_map=path, skip_preflight=True, **quick)
    assert run.record.metric("clean_accuracy").count == 6

    class Named(torch.utils.data.Dataset):
        classes = ("one", "five", "three")

        def __len__(self) -> int:
            return 3

        def __getitem__(self, place: int):
            return torch.eye(6)[[1, 5, 3][place]].reshape(1, 1, 6), place

    path.write_text("three,3\none,1\nfive,5\n")
    run = rc.audit(model, Named(), class_map=path, skip_preflight=True, **quick)
    assert run.record.metric("clean_accuracy").count == 3


def test_a_softmax_is_noticed_in_what_the_model_says_of_all_its_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.Softmax(1))
    path = tmp_path / "map.csv"
    path.write_text("0,3\n1,4\n2,5\n")
    images = torch.rand(12, 3, 4, 4)
    labels = model(images)[:, 3:6].argmax(1)
    checks = {each.check: each for each in rc.doctor(model, images, labels, class_map=path, quiet=True)}
    assert checks["logits"].status == "raised" and checks["class order"].status == "not run"
    assert checks["logits"].forward == 12  # of the whole model, which a class map hides


def test_the_user_s_layers_keep_modes_and_types_and_can_be_bounded() -> None:
    from robustcv.certificates.graph import operations_of, require_same

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 9))
    whole = rc.Classifier(network, mean=[0.5] * 3, std=[0.2] * 3).double().train()
    network[1].eval()
    modes = [module.training for module in network.modules()]
    asked = answering(Loaded(whole, "", ""), {"a": 7, "b": 2}).classifier
    assert [module.training for module in network.modules()] == modes and asked.training
    images = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(asked.eval()(images), whole.eval()(images)[:, [7, 2]])
    single = answering(
        Loaded(rc.Classifier(network.float(), mean=[0.5] * 3, std=[0.2] * 3).eval(), "", ""), {"a": 7, "b": 2}
    )
    require_same(operations_of(single.classifier, (3, 8, 8)), single.classifier, images.float())


def test_an_edited_map_is_another_run(trained: Path, some_digits: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "map.csv"
    path.write_text(some_digits[1].read_text())
    options = {"class_map": path, "n": 3, "cases": 1, "method": "saliency", "quiet": True, "out": tmp_path / "run"}
    rc.explain(str(trained), str(some_digits[0]), **options)
    rc.explain(str(trained), str(some_digits[0]), **options, resume=True)
    path.write_text("one,7\nseven,1\nthree,3\n")
    with pytest.raises(UserError):
        rc.explain(str(trained), str(some_digits[0]), **options, resume=True)


def test_doctor_and_explanations_take_a_class_map(trained: Path, some_digits: tuple[Path, Path], capsys) -> None:
    data, path = some_digits
    checks = rc.doctor(str(trained), str(data), class_map=path, eps="8/255", quiet=True)
    assert not [check for check in checks if check.status == "raised" and check.check == "class order"]
    run = rc.explain(
        str(trained), str(data), class_map=path, method=("deep_lift", "integrated_gradients", "grad_cam"), n=6,
        set=["integrated_gradients.steps=200"], cases=2, quiet=True,
    )  # fmt: skip
    gaps = [each.worst_gap for each in run.record.explanations if each.worst_gap is not None]
    assert len(gaps) == 2 and max(gaps) < 0.02  # complete for the chosen logit
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--model", str(trained), "--data", str(data), "--class-map", str(path), "-q"])
    assert stopped.value.code in (0, 4) and "class order" in capsys.readouterr().out


def test_training_takes_the_rows_of_the_old_head_that_the_map_names(
    trained: Path, some_digits: tuple[Path, Path], tmp_path: Path
) -> None:
    data, path = some_digits
    frozen = {"epochs": 1, "learning_rate": 1e-12, "quiet": True, "resize": 32}
    run = rc.train(str(data), model="small_cnn", init=str(trained), class_map=path, **frozen)
    head, old = (each.classifier.network[-1] for each in (run, load_classifier(str(trained))))
    assert torch.allclose(head.weight.cpu(), old.weight[list(DIGITS)], atol=1e-6)
    with pytest.raises(UserError, match="without --init there are none"):
        rc.train(str(data), model="small_cnn", class_map=path, **frozen)
    partly = tmp_path / "map.csv"
    partly.write_text("seven,7\n")  # the others begin anew
    run = rc.train(str(data), model="small_cnn", init=str(trained), class_map=partly, **frozen)
    head = run.classifier.network[-1].weight.cpu()
    assert torch.allclose(head[1], old.weight[7], atol=1e-6) and not torch.allclose(head[0], old.weight[1], atol=1e-2)


def test_published_weights_answer_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(checkpoint.to_bytes(build("mobilenet_v3_small", classes=1000, size=64).network))
    loaded = load_classifier("torchvision:mobilenet_v3_small", str(weights))
    assert loaded.class_names is None and loaded.answers[0] == "tench"
    found = rows_of({"fish": "tench", "ship": "container ship"}, ("fish", "ship"), loaded.answers, 1000)
    assert found == {"fish": 0, "ship": 510}
    with pytest.raises(UserError, match="2 classes 'crane'"):
        rows_of({"bird": "crane"}, ("bird",), ("crane", "gull", "crane"), 3)
    with pytest.raises(UserError, match="did you mean 'tench'"):
        rows_of({"fish": "tenhc"}, ("fish",), loaded.answers, 1000)


MISTAKES = [  # the file, what is said
    ("", "is empty"),
    ("a,1,2\n", "a line names two classes"),
    ("a\n", "a line names two classes"),
    ("one,1\none,2\n", "'one' of the data twice"),
    ("one,1\nseven,7\n", "says nothing of three"),
    ("one,1\nseven,7\nthree,7\n", "two classes of the data stand for the model's class 7"),
    ("one,1\nseven,7\nthree,30\n", "class 30, but the model has 10"),
    ("one,1\nseven,7\nthree,drei\n", "no class of the model called 'drei'"),
    ("one,1\nseven,7\nthree," + "9" * 5000 + "\n", "no class of the model called '999"),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES)
def test_mistakes_in_a_class_map_are_named(
    text: str, said: str, trained: Path, some_digits: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "map.csv"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        rc.audit(str(trained), str(some_digits[0]), class_map=path, effort="quick", quiet=True)
    assert said in str(error.value) and len(str(error.value).splitlines()) == 3


def test_a_class_map_that_is_no_file_of_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_bytes(b"\xff\xfe\x00a,\x00")
    for path in (tmp_path / "map.csv", tmp_path / "none.csv", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read_class_map(path)
