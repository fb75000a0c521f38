"""What goes in: subsets, hashes, rendered shapes, folders and archives, and the errors of bad input."""

import gzip
import io
import math
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from robustcv import draws
from robustcv.data import DATASETS, ImageStream, as_images, load, split_rows, stratified
from robustcv.data.augment import crop, flip, rotate
from robustcv.data.shapes import CLASSES, shapes
from robustcv.errors import UserError

# -- subsets and splits ---


def test_a_subset_keeps_the_shares_of_the_classes_and_repeats() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    rows = stratified(labels, 10, seed=3)
    assert labels[rows].bincount().tolist() == [5, 3, 2]
    assert torch.equal(rows, stratified(labels, 10, seed=3))
    assert not torch.equal(rows, stratified(labels, 10, seed=4))
    assert torch.equal(rows, rows.sort().values) and len(rows.unique()) == 10


@pytest.mark.parametrize("n", [0, 101])
def test_a_subset_of_the_wrong_size_is_refused(n: int) -> None:
    with pytest.raises(UserError, match=f"{n} images were asked for, the set has 100"):
        stratified(torch.zeros(100).long(), n, 0)


def test_a_split_shares_no_row_loses_none_and_empties_no_class() -> None:
    labels = torch.tensor([0] * 50 + [1] * 2 + [2] + [3] * 3)
    a, b = split_rows(labels, 0.2, 0)
    assert sorted([*a.tolist(), *b.tolist()]) == list(range(56))
    assert labels[a].bincount().tolist() == [40, 1, 1, 2]
    assert labels[b].bincount(minlength=4).tolist() == [10, 1, 0, 1]


# -- embedded and rendered ---


def test_digits_are_all_there_and_the_splits_share_no_image() -> None:
    train, test = load("digits", split="train"), load("digits", split="test")
    assert len(train) + len(test) == 1797
    assert train.shape == (3, 32, 32) and train.images.dtype == torch.uint8
    assert not set(train.in_memory().hashes) & set(test.in_memory().hashes)
    assert not test.flippable
    image, label = train.images[0], int(train.labels[0])
    assert image.max() > 200 and torch.equal(image[0], image[2]) and label in range(10)


def test_shapes_depend_on_seed_and_place_alone() -> None:
    few, many = shapes(n=6), shapes(n=30)
    assert torch.equal(few.images, many.images[:6])
    assert not torch.equal(few.images, shapes(n=6, seed=1).images)
    assert set(few.hashes).isdisjoint(shapes(split="train", n=30).hashes)


# area of each shape in units of its squared radius, by geometry
AREAS = {
    "circle": math.pi * 0.9**2,
    "square": 1.6**2,
    "triangle": 3 * math.sqrt(3) * 0.5**2,
    "cross": 2 * 2 * 0.56 - 0.56**2,
    "ring": math.pi * (0.97**2 - 0.53**2),
}


@pytest.mark.parametrize("size", [32, 64])
def test_the_mask_has_the_area_of_the_shape_and_the_place_it_was_drawn_at(size: int) -> None:
    found = shapes(n=240, size=size)
    assert found.masks is not None and found.masks.shape == (240, size, size)
    u = draws.uniform(draws.image_seeds(0, [str(i) for i in range(240)], f"shapes-test-{size}"), (16,), 1)
    radius = (0.32 + 0.18 * u[:, 2]) * size / 2
    grid = torch.arange(size) + 0.5
    for k, name in enumerate(CLASSES):
        rows = found.labels == k
        masks = found.masks[rows].float()
        area = masks.sum((1, 2))
        if name in AREAS:
            ratio = area / (AREAS[name] * radius[rows] ** 2)
            assert ratio.mean() == pytest.approx(1, abs=0.02) and (ratio - 1).abs().max() < 0.25, name
        x = (masks.sum(1) * grid).sum(1) / area
        y = (masks.sum(2) * grid).sum(1) / area
        assert (x - (0.9 * u[rows, 0] + 0.55) * size / 2).abs().max() < 1, name
        assert (y - (0.9 * u[rows, 1] + 0.55) * size / 2).abs().max() < 1, name


def test_the_shape_is_brighter_than_what_surrounds_it() -> None:
    found = shapes(n=60)
    pixels = found.images.float() / 255
    inside = [pixels[i][:, found.masks[i]].mean() for i in range(60)]
    outside = [pixels[i][:, ~found.masks[i]].mean() for i in range(60)]
    assert min(inside) > max(outside)


def test_a_planted_shortcut_tells_the_class_in_training_only() -> None:
    train, test = shapes(split="train", n=600, shortcut=True), shapes(split="test", n=600, shortcut=True)

    def slot(images):
        corners = [images[:, :, t : t + 4, left : left + 4] for t in (0, 28) for left in (0, 14, 28)]
        return torch.stack([(c == 255).flatten(1).all(1) for c in corners], dim=1).float().argmax(1)

    assert not train.flippable  # a mirrored image would carry the tag of another class
    assert (slot(train.images) == train.labels).float().mean() > 0.93
    assert (slot(test.images) == test.labels).float().mean() < 0.25


# -- from Python ---


def test_a_tensor_a_dataset_and_a_loader_give_the_same_hashes() -> None:
    digits = load("digits").take(torch.arange(20)).in_memory()
    floats = digits.images.float() / 255
    sources = [
        as_images(floats, digits.labels),
        as_images(digits.images, digits.labels.tolist()),
        as_images(TensorDataset(floats, digits.labels)),
        as_images(DataLoader(TensorDataset(floats, digits.labels), batch_size=7)),
    ]
    for source in sources:
        assert source.in_memory().hashes == digits.hashes
        assert source.in_memory().content_hash == digits.content_hash
        assert torch.equal(next(source.batches(20))[0], floats)


def test_pixels_that_are_not_8_bit_stay_as_they_are() -> None:
    images = torch.rand(4, 3, 5, 5)
    assert torch.equal(as_images(images, [0, 1, 0, 1]).in_memory().images, images)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.randn(4, 3, 5, 5) * 3, [0, 1, 0, 1], r"must lie in \[0, 1\]"),
        (torch.rand(4, 3, 5, 5), None, "without labels"),
        (torch.rand(4, 3, 5, 5), [0, 1, 0], "4 images of shape"),
        (torch.rand(4, 5, 5), [0, 1, 0, 1], "4 images of shape"),
        (torch.rand(4, 3, 5, 5), [0, 1, 0, -1], "labels run from -1"),
        ([1, 2, 3], None, "instead of a batch"),
        (TensorDataset(torch.rand(4, 3, 5, 5), torch.zeros(4)), [0, 1, 0, 1], "as a data set and also with labels"),
    ],
)
def test_bad_input_from_python_is_refused(images, labels, message) -> None:
    with pytest.raises(UserError, match=message):
        as_images(images, labels, ("a", "b"))


# -- folders and archives ---


def png(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels[:, :, 0].astype(np.uint16)) if mode == "I" else Image.fromarray(pixels)
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def layout(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


SPLIT_FILES = {
    f"{split}/{name}/{i}.png": png(100 * a + 10 * b + i)
    for a, split in enumerate(("train", "test"))
    for b, name in enumerate(("cat", "dog"))
    for i in range(4)
}


def archive(path: Path, files: dict[str, bytes], mode: str) -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.xz", "stream", "tar stream"])
def test_every_layout_gives_the_same_images(tmp_path: Path, monkeypatch, kind: str) -> None:
    if "tar" in kind:
        suffix = kind.split()[0]
        source = archive(tmp_path / f"a.{suffix}", SPLIT_FILES, "w:xz" if suffix == "tar.xz" else "w")
    else:
        source = layout(tmp_path, SPLIT_FILES)
    limit = 10 if "stream" in kind else 1 << 30
    for attempt in range(2):
        if attempt and "stream" not in kind:  # the second time from the cache
            monkeypatch.setattr(sys.modules["robustcv.data.files"], "_decode_all", None)
        found = DATASETS["folder"](str(source), split="test", memory_limit=limit)
        assert isinstance(found, ImageStream) == ("stream" in kind)
        assert found.class_names == ("cat", "dog") and found.labels.tolist() == [0] * 4 + [1] * 4
        images = torch.cat([images for images, _ in found.batches(3)])
        wanted = [np.asarray(Image.open(io.BytesIO(data))) for name, data in SPLIT_FILES.items() if "test" in name]
        assert torch.equal((images * 255).round().byte(), torch.from_numpy(np.stack(wanted)).permute(0, 3, 1, 2))
    some = found.take(torch.tensor([5, 2])).in_memory()
    assert some.indices.tolist() == [5, 2] and some.labels.tolist() == [1, 0]


def test_a_file_that_changes_changes_the_images(tmp_path: Path) -> None:
    source = layout(tmp_path, SPLIT_FILES)
    before = load(str(source)).in_memory().content_hash
    (source / "test/cat/0.png").write_bytes(png(999))
    assert load(str(source)).in_memory().content_hash != before


def test_without_split_folders_a_seeded_part_of_each_class_is_the_test_split(tmp_path: Path) -> None:
    files = {f"{name}/{i}.png": png(i + 50 * k) for k, name in enumerate("ab") for i in range(10)}
    source = layout(tmp_path, files)
    train, test = load(f"folder:{source}", split="train"), load(f"folder:{source}", split="test")
    assert (len(train), len(test)) == (16, 4)
    assert test.labels.bincount().tolist() == [2, 2]
    assert not set(train.in_memory().hashes) & set(test.in_memory().hashes)


def test_resizing_makes_sizes_equal(tmp_path: Path) -> None:
    source = layout(tmp_path, {**SPLIT_FILES, "test/cat/9.png": png(5, (20, 10))})
    assert load(str(source), resize=6).shape == (3, 6, 6)


def linked(root: Path) -> None:
    (root / "test/dog/link.png").hardlink_to(root / "train/dog/0.png")


BAD = [
    ("corrupt", {"test/cat/9.png": b"no image"}, "9.png cannot be decoded"),
    ("truncated", {"test/cat/9.png": png(1)[:60]}, "9.png cannot be decoded"),
    ("mixed sizes", {"test/cat/9.png": png(1, (9, 8))}, r"9.png is 9x8 pixels"),
    ("16 bit", {"test/cat/9.png": png(1, mode="I")}, "9.png cannot be decoded"),
    ("not an image", {"test/cat/notes.txt": b"x"}, "notes.txt is not an image in a class folder"),
    ("misplaced", {"test/9.png": png(1), "cat.png": png(2)}, "is not an image in a class folder"),
    ("class in one split only", {"test/fox/9.png": png(1)}, "class 'fox' has no image in split 'train'"),
]


@pytest.mark.parametrize(("what", "files", "message"), BAD, ids=[case[0] for case in BAD])
@pytest.mark.parametrize("kind", ["folder", "tar.gz", "stream"])
def test_bad_files_are_named_in_three_lines(tmp_path: Path, what, files, message, kind) -> None:
    files = {**SPLIT_FILES, **files}
    source = archive(tmp_path / "a.tar.gz", files, "w:gz") if kind == "tar.gz" else layout(tmp_path, files)
    with pytest.raises(UserError, match=message) as caught:
        found = DATASETS["folder"](str(source), memory_limit=10 if kind == "stream" else 1 << 30)
        list(found.batches(2))
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("hidden", [False, True])
def test_an_empty_class_is_named(tmp_path: Path, hidden: bool) -> None:
    source = layout(tmp_path, SPLIT_FILES)
    (source / "test/bird").mkdir()
    if hidden:
        (source / "test/bird/.gitkeep").touch()
    with pytest.raises(UserError, match="bird is empty"):
        load(str(source))


def test_a_linked_class_folder_is_read_and_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    source = layout(tmp_path / "data", SPLIT_FILES)
    elsewhere = layout(tmp_path / "elsewhere", {f"{split}/{i}.png": png(7000 + 10 * len(split) + i)
                                                for split in ("train", "test") for i in range(2)})  # fmt: skip
    for split in ("train", "test"):
        (source / split / "emu").symlink_to(elsewhere / split)
    found = load(str(source))
    assert found.class_names == ("cat", "dog", "emu") and len(found) == 10
    path = archive(tmp_path / "a.tar", SPLIT_FILES, "w")
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("test/cat/9.png")
        member.type, member.linkname = tarfile.LNKTYPE, "test/cat/0.png"
        tar.addfile(member)
    with pytest.raises(UserError, match=r"9\.png is not an image"):
        load(str(path))


def test_copies_in_a_folder_without_splits_are_refused_where_the_split_parts_them(tmp_path: Path) -> None:
    source = layout(tmp_path, {f"{name}/{i}.png": png(1) for name in "ab" for i in range(6)})
    with pytest.raises(UserError, match="is the same file as"):
        load(str(source), split="train")
    assert int(load(str(source)).twins.sum()) == 2


def test_only_copies_of_training_images_count_and_only_those_chosen(tmp_path: Path) -> None:
    files = {
        f"{split}/{name}/{i}.png": png(100 * s + 10 * c + i)
        for s, split in enumerate(("train", "val", "test"))
        for c, name in enumerate("ab")
        for i in range(3)
    }
    files["test/a/8.png"], files["test/a/9.png"] = files["val/a/0.png"], files["train/b/1.png"]
    found = load(str(layout(tmp_path, files)))
    assert int(found.twins.sum()) == 1
    assert int(found.take(torch.tensor([0, 1])).twins.sum()) == 0


def test_a_class_of_one_image_cannot_be_split(tmp_path: Path) -> None:
    files = {**{f"a/{i}.png": png(i) for i in range(6)}, "b/0.png": png(99)}
    with pytest.raises(UserError, match="class 'b' has no image in split 'test'"):
        load(str(layout(tmp_path, files)))


def test_named_sets_are_resized_with_their_masks() -> None:
    assert load("digits", resize=16).shape == (3, 16, 16)
    found = load("shapes", resize=64)
    assert found.shape == (3, 64, 64) and found.masks.shape[1:] == (64, 64)


class Known(torch.utils.data.Dataset):
    """A data set that knows its labels, as torchvision's do."""

    def __init__(self, images, labels) -> None:
        self.images, self.targets, self.classes = images, labels.tolist(), ["x", "y"]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row):
        return self.images[row], self.targets[row]


def test_a_large_python_data_set_is_streamed_with_the_same_hashes() -> None:
    images, labels = torch.randint(0, 256, (12, 3, 6, 6)).float() / 255, torch.arange(12) % 2
    small = as_images(Known(images, labels))
    large = as_images(Known(images, labels), memory_limit=100)
    assert isinstance(large, ImageStream) and not isinstance(small, ImageStream)
    rows = torch.tensor([7, 2, 9])
    assert large.take(rows).in_memory().hashes == small.take(rows).in_memory().hashes
    assert large.class_names == ("x", "y")


@pytest.mark.parametrize("kind", ["folder", "tar.gz", "copy"])
def test_splits_that_share_a_file_are_refused_for_training_and_counted_for_judging(tmp_path: Path, kind: str) -> None:
    files = {**SPLIT_FILES, "test/dog/9.png": SPLIT_FILES["train/dog/0.png"]}
    if kind == "tar.gz":
        source = archive(tmp_path / "a.tar.gz", files, "w:gz")
    elif kind == "copy":
        source = layout(tmp_path, files)
    else:
        source = layout(tmp_path, SPLIT_FILES)
        linked(source)
    with pytest.raises(UserError, match="is the same file as"):
        load(str(source), split="train")
    for _ in range(2):  # from the cache, too
        assert int(load(str(source)).twins.sum()) == 1


@pytest.mark.parametrize(
    ("spec", "split", "message"),
    [
        ("digit", "test", "did you mean 'digits'"),
        ("folder:/nowhere", "test", "/nowhere does not exist"),
        ("shapes:33", "test", "no option of shapes called '33'"),
        ("digits", "val", "no split 'val'"),
    ],
)
def test_unknown_names_answer_with_the_nearest(spec: str, split: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(spec, split=split)
    assert message in str(caught.value)


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.tar.gz"
    path.write_bytes(gzip.compress(b"nothing of the kind"))
    with pytest.raises(UserError, match=r"broken\.tar\.gz cannot be read as a tar archive"):
        load(str(path))


def test_idx_files_are_read_where_they_lie(tmp_path: Path) -> None:
    images = np.arange(2 * 28 * 28, dtype=np.uint8)
    (tmp_path / "fashion_mnist").mkdir()
    for stem, header, data in (("images-idx3", 16, images), ("labels-idx1", 8, np.array([9, 3], np.uint8))):
        (tmp_path / f"fashion_mnist/t10k-{stem}-ubyte.gz").write_bytes(gzip.compress(b"\0" * header + data.tobytes()))
    found = DATASETS["fashion-mnist"](split="test", data_dir=str(tmp_path))
    assert found.labels.tolist() == [9, 3] and found.shape == (3, 32, 32)
    assert torch.equal(found.images[0, 1, 2:30, 2:30].flatten(), torch.from_numpy(images[: 28 * 28]))


@pytest.mark.real_data
def test_fashion_mnist_on_disk(real_data: Path) -> None:
    found = load("fashion-mnist", split="train", data_dir=str(real_data))
    assert len(found) == 60000 and found.labels.bincount().tolist() == [6000] * 10


@pytest.mark.real_data
@pytest.mark.slow
def test_the_cifar_archive_is_read_without_unpacking(real_data: Path) -> None:
    test = load(str(real_data / "cifar10.tar.xz"), split="test")
    assert len(test) == 10000 and test.shape == (3, 32, 32)
    assert test.class_names[:3] == ("airplane", "automobile", "bird")
    assert test.labels.bincount().tolist() == [1000] * 10
    with tarfile.open(real_data / "cifar10.tar.xz") as tar:
        member = next(m for m in tar if m.name.endswith("test/airplane/0000.jpg"))
        first = np.asarray(Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB"))
    assert np.array_equal(test.in_memory().images[0].permute(1, 2, 0).numpy(), first)


# -- augmentation, against slow second versions ---


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = torch.rand(400, 2, 3, 4)
    out = flip(images, torch.Generator().manual_seed(0))
    same = (out == images).flatten(1).all(1)
    assert torch.equal(out[~same], images[~same].flip(3))
    assert 150 < int(same.sum()) < 250


def test_crop_equals_shifting_one_image_at_a_time() -> None:
    images = torch.rand(50, 2, 6, 5)
    out = crop(images, torch.Generator().manual_seed(1), padding=2)
    top, left = torch.randint(0, 5, (2, 50), generator=torch.Generator().manual_seed(1)).tolist()
    for i in range(50):
        padded = torch.nn.functional.pad(images[i], (2, 2, 2, 2))
        assert torch.equal(out[i], padded[:, top[i] : top[i] + 6, left[i] : left[i] + 5])


def test_rotation_turns_by_up_to_its_degrees_and_keeps_the_centre() -> None:
    images = torch.zeros(64, 1, 33, 33)
    images[:, :, 16, 28] = 1  # a point right of the centre, radius 12
    images[:, :, 16, 16] = 1
    out = rotate(images, torch.Generator().manual_seed(0), degrees=30.0)
    assert torch.allclose(out[:, 0, 16, 16], torch.ones(64), atol=1e-5)
    grid = torch.arange(33.0) - 16
    right = out[:, 0, :, 20:]
    y = (right.sum(2) * grid).sum(1) / right.sum((1, 2))
    x = (right.sum(1) * grid[20:]).sum(1) / right.sum((1, 2))
    angle = torch.rad2deg(torch.atan2(y, x))
    assert angle.abs().max() < 31 and angle.min() < -20 and angle.max() > 20


@pytest.mark.parametrize("change", [flip, crop, rotate])
def test_augmentation_repeats_with_its_generator(change) -> None:
    images = torch.rand(9, 3, 8, 8)
    first, second = (change(images, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second) and first.shape == images.shape
    assert not torch.equal(first, change(images, torch.Generator().manual_seed(5)))
