"""The direction of imports, read from the syntax trees."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "robustcv"

LINES: list[set[str]] = [
    {"errors", "stats", "records", "runs", "launch", "stopping", "options"},
    {"classifier", "runtime", "draws", "processes"},
    {"folding", "reduced"},
    {"compiled"},
    {"data"},
    {"models"},
    {"attacks", "explainers", "measures", "training"},
    {"certificates"},
    {"evaluation"},
    {"verbs"},
    {"report"},
    {"running"},
    {"api"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
METHODS = {
    "errors",
    "classifier",
    "runtime",
    "draws",
    "processes",
    "folding",
    "stopping",
}  # all that attacks, explainers and training may use
ONLY = {
    "report": {"errors", "stats", "records", "runs"},
    "attacks": METHODS,
    "certificates": METHODS | {"stats", "attacks"},
    "explainers": METHODS,
    "measures": METHODS,
    "training": METHODS,
}
TORCH_FREE = (
    "errors",
    "stats",
    "records",
    "runs",
    "launch",
    "stopping",
    "options",
    "report",
    "running",
    "api",
    "cli",
    "__init__",
)


def room_of(path: Path) -> str:
    """Name the room a file belongs to: its package, or itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def rank(room: str) -> int:
    """Give the line a room stands on."""
    return next(i for i, line in enumerate(LINES) if room in line)


def imports(path: Path, *, everywhere: bool) -> set[str]:
    """List the modules a file imports: at import time only, or inside functions too; never those for type checkers."""
    found = set()
    stack: list[ast.AST] = [ast.parse(path.read_text())]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef) and not everywhere:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        stack += list(ast.iter_child_nodes(node))
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_the_lines_above_its_own(path: Path) -> None:
    room = room_of(path)
    for name in imports(path, everywhere=True):
        if not name.startswith("robustcv."):
            continue
        other = name.split(".")[1]
        if other == room or other.startswith("__"):
            continue
        if other not in set().union(*LINES):
            assert (room, other) in {("verbs", "version")}, f"{path} imports the unknown {name}"
            continue
        assert rank(other) < rank(room) or (rank(other) == rank(room) and rank(room) < 2), f"{room} must not use {name}"
        if room in ONLY:
            assert other in ONLY[room], f"{room} must not use {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_room_is_missing_from_the_lines(path: Path) -> None:
    assert room_of(path) in set().union(*LINES)


@pytest.mark.parametrize("room", TORCH_FREE)
def test_these_rooms_do_not_import_torch(room: str) -> None:
    paths = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").exists() else list((PACKAGE / room).rglob("*.py"))
    for path in paths:
        everywhere = room not in ("running", "api", "cli")  # these import verbs inside functions
        assert not any(name.split(".")[0] in ("torch", "torchvision") for name in imports(path, everywhere=everywhere))


def test_every_file_says_what_it_is_for_in_its_first_line() -> None:
    for path in PACKAGE.rglob("*.py"):
        first = path.read_text().splitlines()[0]
        assert first.startswith('"""'), path
        assert len(first) > 20, path
