"""Files from strangers: whatever is in them, they are read, or refused in three lines; no code of theirs runs."""

import ast
import io
import json
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import tomllib
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_data import png

from robustcv import runs
from robustcv.cli import Origins, build
from robustcv.data import load
from robustcv.errors import UserError, first_line, printable
from robustcv.models import checkpoint
from robustcv.verbs.parse import parse_eps, parse_options, parse_sweep

FUZZ = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Runs:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def pickled(mark: Path) -> bytes:
    return pickle.dumps({"state_dict": {"a": Runs(mark)}})


def zipped(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": Runs(mark)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("make", [pickled, zipped])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors"])
def test_a_canary_never_runs(make, suffix: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / f"weights{suffix}"
    path.write_bytes(make(mark))
    with pytest.raises(UserError, match=r"was refused|is not a safetensors file"):
        checkpoint.load_weights(path)
    assert not mark.exists()
    if suffix == ".pt":
        with pytest.raises(UserError, match=r"it needs .*pathlib"):  # what it wanted is named
            checkpoint.load_weights(path)


def test_every_load_of_the_package_asks_for_weights_only() -> None:
    for path in (Path(__file__).parent.parent / "robustcv").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), path
            assert not (
                isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "pickle.load", "pickle.loads")
            ), path


def lying(header: dict, body: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


@pytest.mark.parametrize(
    "data",
    [
        lying({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
        lying({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}, b"1234"),
        lying({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"1234", length=1 << 62),
        lying({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
        b"",
        b"\xff" * 64,
    ],
)
def test_headers_that_lie_about_sizes_are_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    with pytest.raises(UserError, match="is not a safetensors file"):
        checkpoint.load_weights(path)


def test_torch_files_that_lie_about_sizes_are_refused_before_allocation(tmp_path: Path, monkeypatch) -> None:
    def never(*args, **kwargs):
        raise AssertionError("torch.load was called")

    honest = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, honest)
    with zipfile.ZipFile(honest) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data if not name.endswith("data/0") else b"\0" * 30_000_000)
    old = tmp_path / "old.pt"
    torch.save({"a": torch.zeros(3)}, old, _use_new_zipfile_serialization=False)
    data = old.read_bytes()
    assert checkpoint.load_weights(old)["a"].shape == (3,)
    old.write_bytes(data.replace(b"K\x03", b"\x8a\x06\x00\x00\x00\x00\x00\x10", 1))  # 3 values become 2^44
    monkeypatch.setattr(torch, "load", never)
    for path in (bomb, old):
        with pytest.raises(UserError, match="declares more than it holds"):
            checkpoint.load_weights(path)


@pytest.mark.parametrize("opcode", [b"\x8e", b"\x8d"])  # bytes and text with a length of eight bytes
def test_an_argument_longer_than_the_file_is_refused_before_there_is_room_for_it(opcode, tmp_path) -> None:
    path = tmp_path / "w.pt"
    for length in (1 << 34, 1 << 56):
        path.write_bytes(opcode + length.to_bytes(8, "little") + b"abc")
        tracemalloc.start()
        with pytest.raises(UserError, match="declares more than it holds"):
            checkpoint.load_weights(path)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 1 << 24


@FUZZ
@given(data=st.binary(max_size=400), suffix=st.sampled_from([".safetensors", ".pt"]))
@example(data=b"\x8e\x00\x00\x00\x00\x00\x00\x00\x01", suffix=".pt")
@example(data=b"\x8d\x00\x00\x00\x00\x00\x00\x00\x01", suffix=".pt")
def test_any_bytes_as_weights_are_refused(data: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(data)
    with pytest.raises(UserError):
        checkpoint.load_weights(path)


@FUZZ
@given(cut=st.integers(0, 10_000), place=st.integers(0, 10_000), value=st.integers(0, 255))
@example(cut=0, place=1640, value=128)  # a name that is no UTF-8
def test_damaged_torch_files_are_read_or_refused(cut: int, place: int, value: int, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(5.0), "b": torch.zeros(2, 2)}, buffer)
    data = bytearray(buffer.getvalue())
    data[place % len(data)] = value
    path = tmp_path / "w.pt"
    path.write_bytes(bytes(data[: max(1, len(data) - cut % 300)]))
    try:
        assert all(isinstance(tensor, torch.Tensor) for tensor in checkpoint.load_weights(path).values())
    except UserError:
        pass


def archive_of(kind: str) -> bytes:
    buffer = io.BytesIO()
    files = {f"{split}/{name}/{i}.png": png(i) for split in ("train", "test") for name in "ab" for i in range(2)}
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


ARCHIVES = {kind: archive_of(kind) for kind in ("zip", "tar")}


@FUZZ
@given(kind=st.sampled_from(["zip", "tar"]), changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)),
                                                             min_size=1, max_size=6))  # fmt: skip
@example(kind="zip", changes=[(402763, 6)])
@example(kind="zip", changes=[(8556, 64)])  # a version of zip that is not known
def test_damaged_archives_are_read_or_refused(kind: str, changes: list[tuple[int, int]], tmp_path: Path) -> None:
    data = bytearray(ARCHIVES[kind])
    for place, value in changes:
        data[place % len(data)] = value
    path = tmp_path / f"set.{kind}"
    path.write_bytes(data)
    try:
        load(str(path))
    except UserError as error:
        assert len(str(error).splitlines()) == 3


@FUZZ
@given(data=st.binary(max_size=300))
def test_any_bytes_as_an_image_are_refused(data: bytes, tmp_path: Path) -> None:
    for name in ("a/0.png", "a/1.png", "b/0.jpg", "b/1.jpg"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data + name.encode())
    with pytest.raises(UserError, match=r"cannot be decoded|is the same file"):
        load(str(tmp_path / "set"))


@FUZZ
@given(text=st.text(max_size=30) | st.from_regex(r"-?\d{0,4}(\.\d{0,4})?(/\d{0,4})?(e-?\d{1,3})?", fullmatch=True))
def test_any_text_as_an_eps_is_a_number_or_an_error(text: str) -> None:
    try:
        value = parse_eps(text)
        assert isinstance(value, float)
        (first, *_), every = parse_sweep(text, "linf", sweep=True)
        assert first == value and 0 < min(every) and max(every) <= 1
    except UserError as error:
        assert len(str(error).splitlines()) == 3


@FUZZ
@given(text=st.text(max_size=40))
def test_any_text_as_an_option_is_read_or_an_error(text: str) -> None:
    from robustcv.attacks import ATTACKS

    for given_text in (text, f"pgd.{text}", f"pgd.steps={text}", f"pgd.step_size={text}"):
        try:
            parse_options([given_text], ATTACKS)
        except UserError as error:
            assert len(str(error).splitlines()) == 3


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@FUZZ
@given(
    content=JSON | st.dictionaries(st.sampled_from(["format", "verb", "metrics", "gates", "cases", "verdict"]), JSON)
)
def test_any_json_as_a_report_is_refused(content, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(UserError):
        runs.load(tmp_path)


@FUZZ
@given(data=st.data())
def test_a_report_with_one_wrong_value_is_read_or_refused(data, audited: Path, tmp_path: Path) -> None:
    from robustcv import report

    raw = json.loads((audited / "report.json").read_text())
    here = raw
    while isinstance(here, dict | list) and here:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(here[key], dict | list) or data.draw(st.booleans()):
            here[key] = data.draw(JSON)
            break
        here = here[key]
    (tmp_path / "report.json").write_text(json.dumps(raw))
    try:
        record = runs.load(tmp_path)
    except UserError as error:
        assert len(str(error).splitlines()) == 3
    else:
        files = runs.load_files(audited)
        for name in ("md", "junit", "card", "csv"):
            drawn(lambda name=name: report.FORMATS[name](record, files))
        drawn(lambda: report.render(record, files))


def drawn(work) -> None:
    """Draw something, or refuse it in three lines."""
    from robustcv import report

    try:
        with report.as_a_mistake("run"):
            assert work()
    except UserError as error:
        assert error.code == "RCV-E117" and len(str(error).splitlines()) == 3


@FUZZ
@given(text=st.text(max_size=60))
def test_any_text_as_a_config_is_read_or_an_error(text: str, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(text, encoding="utf-8", errors="surrogateescape")
    app = build(config, ["list", "attacks"])
    try:
        app(["report", "/nowhere"], exit_on_error=False, print_error=False)
    except UserError as error:
        assert len(str(error).splitlines()) == 3
    except Exception as error:  # cyclopts tells of keys it does not know
        assert "cyclopts" in type(error).__module__, error
    assert Origins(config, []).config == config and (tomllib or True)


@given(st.text(max_size=600))
def test_what_is_printed_cannot_move_the_cursor_or_turn_the_line(text: str) -> None:
    safe = printable(text)
    assert safe.isprintable() and len(safe) <= 405


def test_there_is_no_network_here() -> None:
    with pytest.raises(AssertionError, match="no test may use the network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(AssertionError, match="no test may use the network"):
        socket.getaddrinfo("example.org", 80)
    for code in ("socket.socket().connect_ex(('192.0.2.1', 80))", "socket.getaddrinfo('example.org', 80)"):
        run = subprocess.run([sys.executable, "-c", f"import socket; {code}"], capture_output=True, text=True)
        assert "no test may use the network" in run.stderr


@pytest.mark.parametrize(
    ("error", "told"),
    [(OSError(), "OSError"), (ValueError("\n \n"), "ValueError"), (ValueError("\n why\nmore"), "why"),
     (KeyError(), "KeyError"), (ValueError("x" * 500), "x" * 100)],
)  # fmt: skip
def test_the_first_line_of_any_exception_is_told(error: Exception, told: str) -> None:
    assert first_line(error, 100) == told
