"""Zip archives, tables, shards, Hugging Face sets and SVHN: the same images as from a folder, and clear errors."""

import copy
import io
import json
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import png
from torch.utils.data import Dataset, Subset
from torchvision.transforms import v2

import robustcv as rc
from robustcv import processes
from robustcv.data import DATASETS, ImageStream, as_images, load
from robustcv.data.augment import flip
from robustcv.data.hub import _Row
from robustcv.data.shards import _paths
from robustcv.draws import image_seed
from robustcv.errors import UserError
from robustcv.models import build
from robustcv.runtime import Progress
from robustcv.training import Recipe, fit
from robustcv.training.objectives import standard
from robustcv.verbs.train import drawn_anew

CLASSES = ("ant", "bee", "cat")


SAMPLES = [  # split, class, number, bytes
    (split, name, i, png(1000 * s + 100 * c + i))
    for s, split in enumerate(("train", "test"))
    for c, name in enumerate(CLASSES)
    for i in range(4)
]


def as_folder(root: Path) -> str:
    for split, name, i, data in SAMPLES:
        path = root / "folder" / split / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(root / "folder")


def as_zip(root: Path) -> str:
    with zipfile.ZipFile(root / "set.zip", "w") as archive:
        for split, name, i, data in SAMPLES:
            archive.writestr(f"{split}/{name}/{i}.png", data)
    return str(root / "set.zip")


def as_table(root: Path) -> str:
    as_folder(root)
    lines = [f"folder/{split}/{name}/{i}.png,{name},{split}" for split, name, i, _ in SAMPLES]
    (root / "list.csv").write_text("\n".join(["path,label,split", *lines]))
    return str(root / "list.csv")


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def as_shards(root: Path, *, form: str = "cls") -> str:
    folder = root / "shards"
    folder.mkdir()
    for split in ("train", "test"):
        for shard in range(2):
            with tarfile.open(folder / f"{split}-{shard:03d}.tar", "w") as archive:
                for k, (_, name, i, data) in enumerate([each for each in SAMPLES if each[0] == split]):
                    if k % 2 == shard:
                        label = CLASSES.index(name)
                        add(archive, f"{name}{i}.{form}", str(label).encode() if form == "cls" else
                            json.dumps({"label": label}).encode())  # fmt: skip
                        add(archive, f"{name}{i}.png", data)
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    return f"shards:{folder}"


def as_hub(root: Path) -> str:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    parts = {}
    for split in ("train", "test"):
        rows = [{"image": {"bytes": data, "path": None}, "label": CLASSES.index(name)}
                for part, name, _, data in SAMPLES if part == split]  # fmt: skip
        parts[split] = datasets.Dataset.from_list(rows, features=features)
    datasets.disable_progress_bars()
    datasets.DatasetDict(parts).save_to_disk(str(root / "hub"))
    return f"hf:{root / 'hub'}"


@pytest.mark.parametrize("make", [as_zip, as_table, as_shards, as_hub])
def test_every_source_gives_the_images_of_the_folder(tmp_path: Path, make) -> None:
    expected = load(as_folder(tmp_path / "other"), split="test")
    found = load(make(tmp_path), split="test")
    assert found.class_names == expected.class_names == CLASSES
    assert sorted(zip(found.hashes, found.labels.tolist(), strict=True)) == sorted(
        zip(expected.hashes, expected.labels.tolist(), strict=True)
    )
    train = load(make(tmp_path) if make is as_zip else spec_of(make, tmp_path), split="train")
    assert not set(train.hashes) & set(found.hashes) and len(train) == 12


def spec_of(make, root: Path) -> str:
    places = {as_table: "list.csv", as_shards: "shards:shards", as_hub: "hf:hub"}
    kind, _, place = places[make].rpartition(":")
    return f"{kind}:{root / place}" if kind else str(root / place)


@pytest.mark.parametrize("make", [as_zip, as_shards, as_hub])
def test_large_sets_are_streamed_and_every_sample_is_seen_once(tmp_path: Path, make) -> None:
    spec = make(tmp_path)
    whole = load(spec, split="train")
    kind, _, argument = spec.rpartition(":")
    stream = DATASETS[kind or "folder"](argument, split="train", memory_limit=0)
    assert isinstance(stream, ImageStream)
    for order in (None, torch.randperm(12, generator=torch.Generator().manual_seed(0))):
        images, labels = zip(*stream.batches(5, order), strict=True)
        rows = torch.arange(12) if order is None else order
        assert torch.equal(torch.cat(labels), whole.labels[rows])
        assert torch.equal(torch.cat(images).mul(255).round().byte(), whole.images[rows])


def test_streams_crop_as_they_decode_from_all_pixels(tmp_path: Path) -> None:
    """Parts of a picture of 96 pixels, made 24 large: torchvision's own, by seed and row, whatever the batches."""
    fine = (torch.arange(96)[:, None] // 2 + torch.arange(96) // 2) % 2 * 255  # finer than 24 pixels show
    for k in range(6):
        (tmp_path / "train" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        pixels = torch.stack([fine, torch.full_like(fine, 40 * k), torch.arange(96).expand(96, 96)], -1)
        Image.fromarray(pixels.byte().numpy()).save(tmp_path / "train" / "ab"[k % 2] / f"{k}.png")
    stream = load(str(tmp_path), split="train", resize=24, memory_limit=0)
    before = torch.get_rng_state()
    first, again, other = (next(stream.cropped(seed).batches(6))[0] for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.shape == (6, 3, 24, 24) and torch.equal(first, again) and not torch.equal(first, other)
    backwards = torch.cat([part for part, _ in stream.cropped(1).batches(4, torch.arange(6).flip(0))])
    assert torch.equal(backwards, first.flip(0))
    for row, image in enumerate(first):
        crop = v2.RandomResizedCrop(24)
        with torch.random.fork_rng(devices=[]), Image.open(io.BytesIO(stream.dataset.files[row].read())) as picture:
            torch.manual_seed(image_seed(1, str(row), "resized-crop"))
            wanted = v2.functional.pil_to_tensor(crop(picture)).float() / 255
        assert torch.equal(image, wanted)
    whole = next(stream.batches(6))[0]
    assert 5 * float(whole[:, 0].std()) < float(first[:, 0].std())  # fine detail shows in a part alone
    mine = ImageStream(Subset(stream.dataset, range(6)), stream.all_labels, ("a", "b"), (3, 24, 24), name="", split="")
    names = ("flip", "resized-crop")
    assert drawn_anew(mine, names) == (names, mine.redrawn)
    assert drawn_anew(stream.in_memory(), names) == (names, None)
    assert drawn_anew(stream, ("flip",)) == (("flip",), stream.redrawn)
    assert drawn_anew(stream, names) == (("flip",), stream.cropped)


def test_a_picture_of_another_size_is_refused_in_a_cropped_stream_too(tmp_path: Path) -> None:
    for k, (size, name) in enumerate((((9, 8), "a"), ((9, 8), "b"), ((12, 8), "b"))):
        (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name / f"{k}.png").write_bytes(png(k, size))
    stream = load(str(tmp_path), split="train", memory_limit=0)
    for each in (stream, stream.cropped(0)):
        with pytest.raises(UserError, match=r"2.png is 12x8 pixels, .*0.png is 9x8") as refused:
            next(each.batches(3))
        assert refused.value.code == "RCV-E049"
    resized = load(str(tmp_path), split="train", memory_limit=0, resize=6)
    assert next(resized.cropped(0).batches(3))[0].shape == (3, 3, 6, 6)


def test_training_on_a_stream_crops_from_all_pixels_and_resumes(tmp_path: Path) -> None:
    for k in range(8):
        (tmp_path / "set" / "train" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        noise = torch.randint(0, 256, (40, 40, 3), generator=torch.Generator().manual_seed(k), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(tmp_path / "set" / "train" / "ab"[k % 2] / f"{k}.png")
    stream = load(str(tmp_path / "set"), split="train", resize=20, memory_limit=0)
    seen = []

    def watched(classifier, images, labels, *, perturb, seeds, targets):
        seen.append(images.clone())
        return standard(classifier, images, labels, perturb=perturb, seeds=seeds, targets=targets)

    def net():
        torch.manual_seed(0)
        return build("small_cnn", classes=2, size=20)

    recipe = Recipe(epochs=2, batch_size=8, augment=(flip,), seed=3)
    options = {"objective": watched, "recipe": recipe, "redraw": stream.cropped}
    states, straight, resumed = [], net(), net()
    fit(straight, stream, stream, save_state=lambda state: states.append(copy.deepcopy(state)), **options)
    fit(resumed, stream, stream, state=states[0], **options)
    for epoch, images in zip((0, 1, 1), seen, strict=True):  # the second in both trainings
        generator = torch.Generator().manual_seed(3 * 1_000_003 + epoch)
        order = torch.randperm(8, generator=generator)
        parts, _ = next(stream.cropped(3 * 1_000_003 + epoch).batches(8, order))
        assert torch.equal(images, flip(parts, generator))
    for left, right in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(left, right)


class Noisy(Dataset[tuple[torch.Tensor, int]]):
    """A caller's own data set whose images are other ones each time."""

    targets = (0, 1, 0, 1)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return torch.rand(3, 20, 20), self.targets[row]


def test_what_is_random_in_ones_own_stream_follows_its_seed_alone(monkeypatch) -> None:
    stream = as_images(Noisy(), memory_limit=1)
    assert isinstance(stream, ImageStream)

    def drawn(stream: ImageStream, of_the_process: int) -> torch.Tensor:
        torch.manual_seed(of_the_process)
        before = torch.get_rng_state()
        images = next(stream.batches(4))[0]
        assert torch.equal(torch.get_rng_state(), before)
        return images

    assert torch.equal(drawn(stream, 1), drawn(stream, 2))  # validation and audits, in whichever process
    assert torch.equal(drawn(stream.redrawn(5), 1), drawn(stream.redrawn(5).take(torch.arange(4)), 2))
    assert not torch.equal(drawn(stream.redrawn(5), 1), drawn(stream.redrawn(6), 1))
    first = drawn(stream.redrawn(5), 1)
    monkeypatch.setattr(processes, "rank", lambda: 1)  # or images of two processes would share their noise
    assert not torch.equal(first, drawn(stream.redrawn(5), 1))


def test_training_draws_ones_own_stream_anew_in_every_epoch() -> None:
    stream, seen = as_images(Noisy(), memory_limit=1), []
    _, redraw = drawn_anew(stream, ("flip",))

    def watched(classifier, images, labels, *, perturb, seeds, targets):
        seen.append(images.sum((1, 2, 3)).sort().values)
        return standard(classifier, images, labels, perturb=perturb, seeds=seeds, targets=targets)

    def history(of_the_process: int, seed: int) -> list[tuple[float, int]]:
        torch.manual_seed(0)
        net = build("small_cnn", classes=2, size=20)
        torch.manual_seed(of_the_process)
        recipe = Recipe(epochs=2, batch_size=4, augment=(flip,), seed=seed)
        epochs = fit(net, stream, stream, objective=watched, recipe=recipe, redraw=redraw).epochs
        return [(each.loss, each.validation_correct) for each in epochs]

    assert history(1, 3) == history(2, 3) != history(1, 4)
    first, second, again, _, other, _ = seen
    assert torch.equal(first, again) and not torch.equal(first, second) and not torch.equal(first, other)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_loading_a_folder_moves_no_generator(tmp_path: Path, skip_bad: bool, monkeypatch) -> None:
    monkeypatch.setenv("ROBUSTCV_CACHE", str(tmp_path / "cache"))  # or another test may have decoded these files
    as_folder(tmp_path)
    before = torch.get_rng_state()
    load(str(tmp_path / "folder"), split="train", skip_bad=skip_bad)
    as_images([(torch.zeros(3, 4, 4), 0), (torch.ones(3, 4, 4), 1)])
    assert torch.equal(torch.get_rng_state(), before)


def test_json_labels_and_numbers_without_names(tmp_path: Path) -> None:
    spec = as_shards(tmp_path, form="json")
    assert load(spec).class_names == CLASSES
    (tmp_path / "shards" / "classes.txt").unlink()
    assert load(spec).class_names == ("0", "1", "2")


def test_patterns_name_shards(tmp_path: Path) -> None:
    as_shards(tmp_path)
    folder = tmp_path / "shards"
    names = [path.name for path in _paths(f"{folder}/train-{{000..001}}.tar")]
    assert names == ["train-000.tar", "train-001.tar"]
    assert len(_paths(f"{folder}/*.tar")) == 4
    with pytest.raises(UserError, match=r"train-002.tar does not exist"):
        _paths(f"{folder}/train-{{000..002}}.tar")


def test_svhn_is_read_from_its_own_files(tmp_path: Path) -> None:
    from scipy.io import savemat

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    savemat(tmp_path / "test_32x32.mat", {"X": pixels, "y": np.array([[1], [10], [3], [9], [2]])})
    found = load("svhn", data_dir=str(tmp_path))
    assert found.labels.tolist() == [1, 0, 3, 9, 2] and found.class_names == tuple("0123456789")
    assert np.array_equal(found.images[3].numpy(), pixels[..., 3].transpose(2, 0, 1)) and not found.flippable


def bomb() -> bytes:
    """Write the header of a PNG of 40,000 x 30,000 pixels."""
    header = struct.pack(">IIBBBBB", 40_000, 30_000, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("bad", [b"no image", bomb(), png(0)[:60]])
def test_bad_files_stop_the_run_or_are_left_out_and_counted(tmp_path: Path, bad: bytes, trained: Path) -> None:
    spec = as_folder(tmp_path)
    (tmp_path / "folder" / "test" / "bee" / "9.png").write_bytes(bad)
    with pytest.raises(UserError, match=r"bee/9.png cannot be decoded"):
        load(spec)
    found = load(spec, skip_bad=True)
    assert len(found) == 12 and found.skipped == 1 and found.take(torch.arange(3)).skipped == 1
    assert load(spec, skip_bad=True).skipped == 1  # from the cache too


def test_the_page_says_what_was_left_out(tmp_path: Path) -> None:
    spec = as_folder(tmp_path)
    (tmp_path / "folder" / "test" / "bee" / "9.png").write_bytes(b"no image")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    run = rc.audit(model, spec, skip_bad=True, eps="1/255", sweep=False, attacks=["fgsm"], explain=(), quiet=True,
                   out=tmp_path / "run")  # fmt: skip
    assert run.data.skipped == 1 and "1 files could not be decoded" in run.page.read_text()


def test_mistakes_in_tables_and_shards_are_named(tmp_path: Path) -> None:
    path = as_table(tmp_path)
    good = Path(path).read_text().splitlines()
    for lines, message in (
        (["file,label", "a.png,0"], "has no column 'path'"),
        (["path,label"], "names no image"),
        (["path,label", "nowhere.png,0"], "line 2: nowhere.png does not exist"),
        ([good[0], good[1].replace("train", "trian", 2).replace("folder/trian", "folder/train")], "no split 'trian'"),
        (["path,label", "folder/test/ant/0.png,"], "line 2: no label"),
        (["path,label", "folder/test/ant/0.png,0", "folder/test/ant/1.png,5"], "label 5 is outside 0 to 1"),
        (["path,label", "folder/test/ant/0.png,-1", "folder/test/ant/1.png,0"], "label -1 is outside"),
    ):
        Path(path).write_text("\n".join(lines))
        with pytest.raises(UserError, match=message):
            load(path)
    spec = as_shards(tmp_path)
    (tmp_path / "shards" / "classes.txt").write_text("ant\nbee")
    with pytest.raises(UserError, match="label 2 is outside 0 to 1"):
        load(spec)
    with tarfile.open(tmp_path / "shards" / "test-000.tar", "w") as archive:
        add(archive, "x.png", png(3))
    with pytest.raises(UserError, match="has no label"):
        load(spec)
    (tmp_path / "shards" / "test-000.tar").write_bytes(b"torn" * 300)
    with pytest.raises(UserError, match="cannot be read as a shard"):
        load(spec)
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(UserError, match="cannot be read as a"):
        load(str(tmp_path / "bad.zip"))
    with pytest.raises(UserError, match="could not be had"):
        load(f"hf:{tmp_path / 'folder'}")


def test_progress_is_not_needed(tmp_path: Path) -> None:
    from robustcv.data.table import table

    assert len(table(as_table(tmp_path), progress=Progress(quiet=True))) == 12


def test_nothing_is_lost_or_renumbered_without_a_word(tmp_path: Path) -> None:
    import datasets

    import robustcv.data.archives as archives

    path = tmp_path / "twice.zip"
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        for k in range(2):
            archive.writestr("test/a/0.png", png(k))
    with pytest.raises(UserError, match=r"test/a/0.png twice"):
        archives.scan_zip(path)
    folder = tmp_path / "bad"
    for name, members, message in (
        ("key", {"a.png": png(0), "a.jpg": png(1), "a.cls": b"0"}, "have one key"),
        ("alone", {"a.png": png(0), "a.cls": b"0", "b.cls": b"1"}, "a label and no image"),
        ("list", {"a.png": png(0), "a.json": b"[1]"}, "has no label"),
        ("below", {"a.png": png(0), "a.cls": b"-1"}, "labels begin at 0"),
    ):
        (folder / name).mkdir(parents=True)
        with tarfile.open(folder / name / "test-0.tar", "w") as archive:
            for member, data in members.items():
                add(archive, member, data)
        with pytest.raises(UserError, match=message):
            load(f"shards:{folder / name}")
    both = folder / "both"
    both.mkdir()
    with tarfile.open(both / "test-0.tar", "w") as archive:
        for k in range(2):
            for member, data in {f"{k}.png": png(k), f"{k}.cls": str(k).encode(), f"{k}.json": b"{}"}.items():
                add(archive, member, data)
    assert load(f"shards:{both}").labels.tolist() == [0, 1]
    for bad in ([-1, 0], [None, 0]):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        rows = [{"image": {"bytes": png(k), "path": None}, "label": label} for k, label in enumerate(bad)]
        place = str(tmp_path / f"hub {bad}")
        datasets.Dataset.from_list(rows, features=features).save_to_disk(place)
        with pytest.raises(UserError, match=f"row 0: label {bad[0]}"):
            load(f"hf:{place}")
    outside = tmp_path / "outside.png"
    outside.write_bytes(png(5))
    named = [{"image": {"bytes": None, "path": str(outside)}}]  # as a crafted folder could
    with pytest.raises(OSError, match="holds no image"):
        _Row(named, 0, "image", local=True)()
    assert _Row(named, 0, "image", local=False)() == png(5)


def test_a_new_order_of_classes_is_not_read_from_the_cache(tmp_path: Path) -> None:
    spec = as_shards(tmp_path)
    first = load(spec)
    (tmp_path / "shards" / "classes.txt").write_text("cat\nbee\nant\n")
    again = load(spec)
    assert first.class_names == CLASSES and again.class_names == ("cat", "bee", "ant")


def test_images_outside_the_splits_and_emptied_classes_are_told(tmp_path: Path) -> None:
    as_table(tmp_path)
    table = tmp_path / "some.csv"
    table.write_text("path,label,split\nfolder/test/ant/0.png,ant,test\nfolder/test/bee/0.png,bee,\n")
    with pytest.raises(UserError, match="is in no split"):
        load(str(table))
    table.write_bytes("path,label\nfolder/test/ant/0.png,\xe4\n".encode("latin-1"))
    with pytest.raises(UserError, match="cannot be read as a table"):
        load(str(table))
    for k in range(4):
        (tmp_path / "folder" / "test" / "bee" / f"{k}.png").write_bytes(b"")
    with pytest.raises(UserError, match="no file of class 'bee' can be decoded"):
        load(str(tmp_path / "folder"), skip_bad=True)
