"""The command line: made from the signatures, honest exit codes, no traceback for a user's mistake."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from robustcv import api, cli, runs

COMMAND = [sys.executable, "-m", "robustcv.cli"]


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process; gives exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


AUDIT = ("--data", "digits", "-n", "30", "--eps", "16/255", "--no-sweep", "--cases", "2", "-q")


def test_an_audit_writes_its_page_and_prints_the_path_last(capsys, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, printed, talk = call(capsys, "audit", "--model", str(trained), *AUDIT, "-o", str(out))
    assert code == 0 and talk == ""
    assert printed.splitlines()[-1] == str(out / "report.html") and (out / "report.html").exists()
    config = tomllib.loads((out / "config.toml").read_text())
    assert config["eps"] == ["16/255"] and config["n"] == 30 and config["data"] == "digits" and config["seed"] == 0
    assert "n = 30  # command line" in (out / "config.toml").read_text()
    assert "seed = 0  # default" in (out / "config.toml").read_text()


def test_the_config_of_a_run_repeats_it_and_flags_win(capsys, trained: Path, tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in "abc")
    call(capsys, "audit", "--model", str(trained), *AUDIT, "--set", "apgd.steps=3", "-o", str(first))
    config = str(first / "config.toml")
    assert call(capsys, "audit", "--config", config, "-q", "-o", str(second))[0] == 0
    records = [runs.load(folder) for folder in (first, second)]
    assert records[0].metrics == records[1].metrics and records[0].attacks[1].options["steps"] == 3
    assert "n = 30  # config" in (second / "config.toml").read_text()
    call(capsys, "audit", "--config", config, "-n", "20", "-q", "-o", str(third))
    assert runs.load(third).data.n == 20


@pytest.mark.parametrize(
    ("gate", "code", "verdict"),
    [
        ("clean_accuracy=0.5", 0, "PASS"),
        ("robust_accuracy=0.999", 3, "FAIL"),
        ("clean_accuracy=0.93", 4, "INCONCLUSIVE"),
    ],
)
def test_exit_codes_of_gates(capsys, trained: Path, tmp_path: Path, gate, code, verdict) -> None:
    found, printed, _ = call(
        capsys, "audit", "--model", str(trained), *AUDIT, "--fail-under", gate, "--json", "-o", str(tmp_path / "run")
    )
    raw = json.loads(printed)
    assert (found, raw["verdict"], raw["exit_code"]) == (code, verdict, code)


def test_a_drop_is_gated_against_an_earlier_audit(capsys, trained: Path, tmp_path: Path) -> None:
    before, now = tmp_path / "before", tmp_path / "now"
    call(capsys, "audit", "--model", str(trained), *AUDIT, "-o", str(before))
    gate = ("--baseline", str(before), "--max-drop", "robust_accuracy=0.4", "clean_accuracy=0.4")
    code, _, talk = call(capsys, "audit", "--model", str(trained), *AUDIT, *gate, "-o", str(now))
    record = runs.load(now)
    assert code == 0, talk
    assert record.verdict == "PASS" and [gate.value for gate in record.gates] == [0.0, 0.0]
    assert "against the baseline" in (now / "report.html").read_text()


_AUDIT_HERE = ("audit", "--model", "MODEL", "--data", "digits")
MISTAKES = [
    (("audit", "--model", "py:CODE:broken", "--data", "digits"), "fails when it is run"),
    (("audit", "--model", "py:CODE:needs", "--data", "digits"), "fails when it is run"),
    (("audit", "--model", "py:CODE:picky", "--data", "digits"), "cannot take images"),
    (("audit", "--model", "py:CODE:tupled", "--data", "digits"), "gives a tuple for two images"),
    (("audit", "--model", "py:NOCODE:f", "--data", "digits"), "SyntaxError"),
    (("audit", "--model", "~nobody-of-that-name/x", "--data", "digits"), "a path cannot be used"),
    (("audit", "--model", "a" * 5000, "--data", "digits"), "a path cannot be used"),
    (("audit", "--model", "MODEL", "--data", "a" * 5000), "a path cannot be used"),
    (("verify", "a" * 5000), "a path cannot be used"),
    ((*_AUDIT_HERE, "--eps", "1e10000000"), "outside (0, 1]"),
    ((*_AUDIT_HERE, "--norm", "l2", "--eps", "inf"), "eps inf is outside"),
    ((*_AUDIT_HERE, "--batch-size", "99999999999999999999"), "above 1,000,000"),
    ((*_AUDIT_HERE, "--resize", "999999"), "above 8,192"),
    ((*_AUDIT_HERE, "--config", "DEEPTOML"), "is not valid TOML"),
    ((*_AUDIT_HERE, "--config", "NOEPS"), "no eps was given"),
    ((*_AUDIT_HERE, "--set", "apgd.step_size=nan"), "option of apgd|finite number|not above 0"),
    ((*_AUDIT_HERE, "--attacks", "pgd", "--set", "pgd.step_size=nan"), "is not a finite number"),
    ((*_AUDIT_HERE, "--certify", "smoothing", "--set", "smoothing.sigma=-0.25"), "is not between 0 and inf"),
    ((*_AUDIT_HERE, "--certify", "smoothing", "--set", "smoothing.alpha=2"), "is not between 0 and 0.5"),
    ((*_AUDIT_HERE, "--certify", "bounds", "--eot", "2"), "do not go together"),
    (("report", "DEEPJSON"), "report.json cannot be read"),
    (("report", "FOLDERJSON"), "holds no report.json"),
    (("audit", "--model", "MODEL", "--data", "LONGNAMETAR"), "cannot be read as a tar archive"),
    (("audit", "--data", "digits"), "--model"),
    (("audit", "--model", "MODEL", "--data", "digts"), "did you mean 'digits'"),
    (("audit", "--model", "MODEL", "--data", "digits", "--esp", "8/255"), "--eps"),
    (("audit", "--model", "MODEL", "--data", "digits", "--eps", "8"), "did you mean 8/255"),
    (("audit", "--model", "MODEL", "--data", "digits", "--eps", "8/255", "x"), "'x' is not a number"),
    (("audit", "--model", "MODEL", "--data", "digits", "-n", "many"), "many"),
    (("audit", "--model", "MODEL", "--data", "digits", "--attacks", "fgsm,pdg"), "did you mean 'pgd'"),
    (("audit", "--model", "MODEL", "--data", "digits", "--set", "pgd.step=3"), "did you mean 'steps'"),
    (("audit", "--model", "MODEL", "--data", "digits", "--config", "/nowhere.toml"), "/nowhere.toml does not exist"),
    (("audit", "--model", "MODEL", "--data", "digits", "--config", "BADKEY"), "atacks"),
    (("audit", "--model", "MODEL", "--data", "digits", "--config", "BADTOML"), "config.toml"),
    (("audit", "--model", "/nowhere", "--data", "digits"), "there is no model"),
    (("audit", "--model", "small_cnn", "--data", "digits"), "train it first"),
    (("audit", "--model", "torchvision:resnet1", "--data", "digits"), "resnet18"),
    (("audit", "--model", "py:/nowhere.py:f", "--data", "digits"), "names no file"),
    (("audit", "--model", "MODEL", "--data", "digits", "--device", "gpu"), "gpu"),
    (("audit", "--model", "MODEL", "--data", "digits", "--weights", "/nowhere.pt"), "cannot be put into"),
    (("audit", "--model", "MODEL", "--data", "digits", "--config=/nowhere.toml"), "/nowhere.toml does not exist"),
    (("audit", "--model", "torchvision:resnet18@V9", "--data", "digits"), "no version of resnet18 called 'V9'"),
    (("train", "--data", "digits", "--epochs", "0"), "--epochs 0 is below 1"),
    (("compare", "MODEL", "MODEL", "--names", "a"), "1 names for two runs"),
    (("audit", "--model", "MODEL", "--data", "/nowhere"), "no data set called"),
    (("audit", "--model", "MODEL", "--data", "shapes"), "the data has 6 classes"),
    (("audit", "--model", "MODEL", "--data", "cifar10", "--data-dir", "EMPTY"), "could not be downloaded"),
    (("train", "--data", "digits", "--model", "small_cn"), "did you mean 'small_cnn'"),
    (("train", "--data", "digits", "--objective", "pgd"), "did you mean 'pgd-at'"),
    (("train", "--data", "digits", "--augment", "flop"), "did you mean 'flip'"),
    (("harden", "--model", "MODEL", "--eps", "300/255"), "outside (0, 1]"),
    (("explain", "--model", "MODEL", "--data", "digits", "--method", "gradcam"), "no explainer called"),
    (("compare", "/nowhere", "/nowhere"), "holds no report.json"),
    (("report", "/nowhere"), "holds no report.json"),
    (("list", "attack"), "did you mean 'attacks'"),
    (("audti",), "audit"),
    (("train", "--data", "digits", "--epochs", "3", "-o", "MODEL"), "is not empty"),
    (("audit", "--model", "MODEL", "--data", "digits", "--eps", "0"), "eps 0 is outside"),
    (("audit", "--model", "MODEL", "--data", "digits", "--eps=-1/255"), "is outside"),
    (("audit", "--model", "MODEL", "--data", "digits", "--eps", "nan"), "is not a number"),
    (("audit", "--model", "MODEL", "--data", "digits", "--eps", "1/0"), "is not a number"),
    (("audit", "--model", "MODEL", "--data", "digits", "--norm", "linfinity"), "did you mean 'linf'"),
    (("audit", "--model", "MODEL", "--data", "digits", "--norm", "l0", "--eps", "1.5"), "what L0 allows"),
    (("audit", "--model", "MODEL", "--data", "digits", "--effort", "max"), "no effort called 'max'"),
    (("audit", "--model", "MODEL", "--data", "digits", "--also", "fog"), "no threat called 'fog'"),
    (("audit", "--model", "MODEL", "--data", "digits", "--certify", "bond"), "no certificate called 'bond'"),
    (("audit", "--model", "MODEL", "--data", "digits", "--attacks", ""), "no attack was named"),
    (("audit", "--model", "MODEL", "--data", "digits", "-n", "0"), "-n 0 is below 1|--n 0 is below 1"),
    (("audit", "--model", "MODEL", "--data", "digits", "-n", "999999"), "999999 images were asked for"),
    (("audit", "--model", "MODEL", "--data", "digits", "--batch-size", "-4"), "--batch-size -4 is below 1"),
    (("audit", "--model", "MODEL", "--data", "digits", "--seed", "-1"), "--seed -1 is below 0"),
    (("audit", "--model", "MODEL", "--data", "digits", "--split", "tset"), "has no split 'tset'"),
    (("audit", "--model", "MODEL", "--data", "digits", "--set", "pgd"), "the form is METHOD.OPTION=VALUE"),
    (("audit", "--model", "MODEL", "--data", "digits", "--set", "pgd.steps=many"), "pgd.steps=many cannot be used"),
    (("audit", "--model", "MODEL", "--data", "digits", "--set", "fab.steps=5"), "fab does not run here"),
    (("audit", "--model", "MODEL", "--data", "digits", "--fail-under", "accuracy=0.5"), "no metric called 'accuracy'"),
    (("audit", "--model", "MODEL", "--data", "digits", "--fail-under", "clean_accuracy=90"), "is not a share"),
    (("audit", "--model", "MODEL", "--data", "digits", "--fail-under", "robust_accuracy@l2:1=0.5"), "does not attack"),
    (("audit", "--model", "MODEL", "--data", "digits", "--max-drop", "clean_accuracy=0.1"), "nothing to compare with"),
    (("audit", "--model", "MODEL", "--data", "digits", "--baseline", "MODEL"), "not of `audit`"),
    (("audit", "--model", "MODEL", "--data", "digits", "--baseline", "/nowhere"), "holds no report.json"),
    (("audit", "--model", "MODEL", "--data", "digits", "--gate-on", "mean"), "mean"),
    (("audit", "--model", "MODEL", "--data", "digits", "--device", "cuda:99"), "cuda:99"),
    (("audit", "--model", "MODEL", "--data", "digits", "-o", "/proc/here"), "could not be written"),
    (("audit", "--model", "MODEL", "--data", "csv:/nowhere.csv"), "nowhere.csv"),
    (("audit", "--model", "MODEL", "--data", "shards:/nowhere/{0..99999999999}.tar"), "too many shards"),
    (("audit", "--model", "MODEL", "--data", "LYINGZIP"), "names a place outside the archive"),
    (("audit", "--model", "MODEL", "--data", "LYINGTAR"), "names a place outside the archive"),
    (("audit", "--model", "MODEL", "--data", "LINKTAR"), "is not an image in a class folder"),
    (("audit", "--model", "MODEL", "--data", "BOMBZIP"), "unpacks to"),
    (("audit", "--model", "MODEL", "--data", "TEXT"), "TEXT"),
    (("audit", "--model", "TEXT", "--data", "digits"), "there is no model"),
    (("audit", "--model", "torchvision:resnet18", "--weights", "TEXT", "--data", "digits"), "was refused|state dict"),
    (
        ("audit", "--model", "torchvision:resnet18", "--weights", "HUGE", "--data", "digits"),
        "is not a safetensors file",
    ),
    (("audit", "--model", "torchvision:resnet18", "--weights", "LYINGPT", "--data", "digits"), "declares more than it"),
    (("audit", "--model", "py:TEXT:f", "--data", "digits"), "TEXT"),
    (("audit", "--model", "py:CODE:nothing", "--data", "digits"), "no function called 'nothing'"),
    (("audit", "--model", "py:CODE:number", "--data", "digits"), "returned int"),
    (("audit", "--model", "onnx:TEXT", "--data", "digits"), "TEXT"),
    (("explain", "--model", "MODEL"), "there is nothing to explain"),
    (("explain", "--model", "MODEL", "--images", "TEXT"), "TEXT"),
    (("explain", "--model", "MODEL", "--data", "digits", "--targets", "99"), "are not all classes"),
    (("explain", "--model", "MODEL", "--data", "digits", "--measures", "roar"), "no measure called 'roar'"),
    (("train", "--data", "digits", "--learning-rate", "-1"), "is no rate"),
    (("train", "--data", "digits", "--minutes", "0"), "--minutes 0"),
    (("train", "--data", "digits", "--objective", "trades", "--against", "fog"), "no threat called 'fog'"),
    (("train", "--data", "digits", "--export", "onx"), "did you mean 'onnx'"),
    (("harden", "--model", "MODEL", "--objective", "awp"), "no objective called 'awp'"),
    (("verify", "MODEL"), "holds no evidence"),
    (("verify", "/nowhere"), "holds no report.json"),
    (("report", "OLD"), "has format 99"),
    (("report", "TORN"), "cannot be read"),
    (("doctor", "--model", "MODEL", "--data", "nothing"), "no data set called"),
    (("compare", "MODEL", "MODEL"), "not of `audit`"),
]


_CODE = """
import torch

class Picky(torch.nn.Linear):
    def forward(self, images):
        torch._assert(images.shape[-1] == 224, "Wrong image height! Expected 224!")

class Tupled(torch.nn.Linear):
    def forward(self, images):
        return (super().forward(images.flatten(1)),)

def number():
    return 3

def broken():
    raise ValueError("no weights here")

def needs(a):
    return a

def picky():
    return Picky(64, 10)

def tupled():
    return Tupled(3072, 10)
"""


def bad_files(folder: Path) -> dict[str, str]:
    """Write files that are not what they should be; gives their places by name."""
    import gzip
    import io
    import struct
    import tarfile
    import zipfile

    places = {name: folder / f"{name.lower()}{suffix}" for name, suffix in {
        "TEXT": ".txt", "CODE": ".py", "HUGE": ".safetensors", "LYINGPT": ".pt", "LYINGZIP": ".zip", "BOMBZIP": ".zip",
        "LYINGTAR": ".tar", "LINKTAR": ".tar.gz", "OLD": "", "TORN": "",
        "NOCODE": ".py", "DEEPTOML": ".toml", "NOEPS": ".toml", "DEEPJSON": "", "FOLDERJSON": "",
        "LONGNAMETAR": ".tar.gz"}.items()}  # fmt: skip
    places["TEXT"].write_text("only words\n")
    places["HUGE"].write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with zipfile.ZipFile(places["LYINGPT"], "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", b"\0" * 50_000_000)
    with zipfile.ZipFile(places["LYINGZIP"], "w") as archive:
        archive.writestr("../../etc/cat/0.png", b"x")
    with (
        zipfile.ZipFile(places["BOMBZIP"], "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("test/a/0.png", "w") as out,
    ):
        for _ in range(300):
            out.write(b"\0" * (1 << 20))
    with tarfile.open(places["LYINGTAR"], "w") as archive:
        archive.addfile(tarfile.TarInfo("/etc/passwd.png"), io.BytesIO(b""))
    with tarfile.open(places["LINKTAR"], "w:gz") as archive:
        link = tarfile.TarInfo("test/a/0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    places["NOCODE"].write_text("def f(:\n")
    places["CODE"].write_text(_CODE)
    places["DEEPTOML"].write_text("a = " + "[" * 20_000)
    places["NOEPS"].write_text("eps = []\n")
    (places["FOLDERJSON"] / "report.json").mkdir(parents=True)
    header = tarfile.TarInfo("././@LongLink")  # declares a name of 600 MB, all zeros: 2 MB when packed, here cut off
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 600_000_000
    with gzip.open(places["LONGNAMETAR"], "wb") as packed:
        packed.write(header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
    for name, text in (("OLD", '{"format": 99}'), ("TORN", "{"), ("DEEPJSON", "[" * 20_000)):
        places[name].mkdir()
        (places[name] / "report.json").write_text(text)
    return {name: str(path) for name, path in places.items()}


@pytest.fixture(scope="module")
def bad_inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Write the bad files once, for they take two seconds."""
    folder = tmp_path_factory.mktemp("inputs")
    return folder, bad_files(folder)


@pytest.mark.parametrize(("arguments", "wanted"), MISTAKES, ids=[" ".join(case[0])[:60] for case in MISTAKES])
def test_a_mistake_is_answered_without_a_traceback(
    capsys, monkeypatch, trained, bad_inputs, tmp_path, arguments, wanted
) -> None:
    import torchvision

    def offline(*args, **kwargs):
        raise RuntimeError("offline")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    inputs, files = bad_inputs
    (tmp_path / "work").mkdir()
    (tmp_path / "key.toml").write_text('atacks = ["pgd"]\n')
    (tmp_path / "config.toml").write_text("eps = [\n")
    places = {
        "MODEL": str(trained), "EMPTY": str(tmp_path), "BADKEY": str(tmp_path / "key.toml"),
        "BADTOML": str(tmp_path / "config.toml"),
    }  # fmt: skip
    monkeypatch.chdir(tmp_path / "work")
    before = sorted([*tmp_path.rglob("*"), *inputs.rglob("*")])

    def with_places(word: str) -> str:
        for name, path in {**files, **places}.items():
            word = re.sub(rf"(?<![A-Z]){name}(?![A-Z])", path, word)
        return word

    started = time.process_time()  # not of the clock: a busy machine is no mistake
    code, _, talk = call(capsys, *map(with_places, arguments))
    assert code == 2, talk
    assert re.search("|".join(map(with_places, map(re.escape, wanted.split("|")))), " ".join(talk.split())), talk
    assert "Traceback" not in talk
    assert sorted([*tmp_path.rglob("*"), *inputs.rglob("*")]) == before, "a file was left behind"
    lines = talk.strip().splitlines()
    assert lines[-3].startswith("error RCV-E") and lines[-2].startswith("  ") and lines[-1].startswith("  fix: "), talk
    assert sum(line.startswith(("error", "  ")) for line in lines) == 3, talk
    assert time.process_time() - started < 5, "a mistake should be told at once"


def test_running_a_file_of_yours_is_said_before_it_is_done(capsys, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("import sys\nprint('RAN', file=sys.stderr)\nraise SystemExit(7)\n")
    _, _, talk = call(capsys, "doctor", "--model", f"py:{path}:f", "--data", "digits")
    assert talk.index(f"running {path}: its code can do whatever you can") < talk.index("RAN")


def test_every_option_of_a_verb_is_on_the_command_line_and_explained(capsys) -> None:
    for verb in (api.train, api.audit, api.harden, api.explain, api.compare):
        code, printed, _ = call(capsys, verb.__name__, "--help")
        assert code == 0
        for name in inspect.signature(verb).parameters:
            if name not in ("labels", "images", "classifier", "folders"):
                assert f"--{name.replace('_', '-')}" in printed, (verb, name)
    code, printed, _ = call(capsys, "--help")
    assert all(verb in printed for verb in ("train", "audit", "harden", "explain", "compare", "report", "list", "demo"))


def test_several_values_are_given_with_commas_or_apart(capsys, trained: Path, tmp_path: Path) -> None:
    for k, methods in enumerate((["saliency,rise"], ["saliency", "rise"], ["saliency", "--method", "rise"])):
        arguments = ["explain", "--model", str(trained), "--data", "digits", "--methods", *methods, "-n", "2", "-q"]
        assert call(capsys, *arguments, "-o", str(tmp_path / str(k)))[0] == 0
        assert [each.method for each in runs.load(tmp_path / str(k)).explanations] == ["saliency", "rise"]


def test_the_lists_name_every_method(capsys) -> None:
    from robustcv.attacks import ATTACKS
    from robustcv.explainers import EXPLAINERS

    _, printed, _ = call(capsys, "list")
    assert all(f"  {name} " in printed for name in (*ATTACKS, *EXPLAINERS))
    _, printed, _ = call(capsys, "list", "attacks")
    assert "pgd" in printed and "digits" not in printed


def test_report_renders_the_same_bytes_again(capsys, audited: Path) -> None:
    before = (audited / "report.html").read_bytes()
    assert call(capsys, "report", str(audited)) == (0, f"{audited / 'report.html'}\n", "")
    assert (audited / "report.html").read_bytes() == before


@pytest.mark.slow
def test_the_demo_tells_its_stages_and_ends_with_a_page(capsys, tmp_path: Path) -> None:
    from robustcv.demo import EXPECTED

    code, printed, talk = call(capsys, "demo", "-n", "30", "--epochs", "1", "-o", str(tmp_path / "demo"))
    assert code == 0 and printed.splitlines()[-1] == str(tmp_path / "demo/compare/report.html")
    numbered = [line for line in talk.splitlines() if line.startswith("[")]
    assert [line.split("]")[0] for line in numbered] == [f"[{k + 1}/{len(EXPECTED)}" for k in range(len(EXPECTED))]
    assert "s left in all" in numbered[-1]
    pages = sorted(path.parent.name for path in (tmp_path / "demo").rglob("report.html"))
    assert pages == ["audit", "audit-hardened", "compare", "harden", "train"]


def test_help_does_not_import_torch() -> None:
    lines = ("import sys", "from robustcv import cli", "try: cli.main(['--help'])", "except SystemExit: pass")
    code = "\n".join([*lines, "assert 'torch' not in sys.modules"])
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill", "code"),
    [
        (signal.SIGKILL, -9),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.every_case),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.every_case),
    ],
)
def test_training_survives_being_killed_and_resumes_to_the_same_weights(tmp_path: Path, kill, code) -> None:
    """The kill comes when the state of an epoch is on disk; the rest is done by --resume."""
    arguments = ["train", "--data", "digits", "--epochs", "3", "-q"]
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    subprocess.run([*COMMAND, *arguments, "-o", str(straight)], check=True, env=environment, capture_output=True)
    process = subprocess.Popen(
        [*COMMAND, *arguments, "-o", str(killed)], env=environment, stderr=subprocess.PIPE, text=True
    )
    while not (killed / "state/training.pt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(kill)
    talk = process.communicate()[1]
    assert process.returncode == code
    assert (kill != signal.SIGINT) or "--resume" in talk
    assert "Traceback" not in talk and (killed / "model.safetensors").exists() == (kill == signal.SIGINT)
    again = subprocess.run(
        [*COMMAND, *arguments, "-o", str(killed), "--resume"], env=environment, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    first, second = (runs.load(folder) for folder in (straight, killed))
    assert first.model.sha256 == second.model.sha256 and first.metrics == second.metrics
    assert (straight / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()
