"""The import table of docs/architecture.md, enforced."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "arvrm"
BASE = {"interface", "geometry", "config"}
ALLOWED = {
    "interface": set(),
    "geometry": {"interface"},
    "config": {"interface"},
    "processes": {"interface"},
    "results": {"interface"},
    "instructions": {"interface"},
    "episodes": BASE,
    "sim": BASE,
    "hands": BASE,
    "model": BASE,
    "windows": BASE | {"episodes", "model.encoders"},
    "nearest": set(),
    "retrieval": BASE | {"episodes", "model.encoders", "windows", "nearest"},
    "sources": BASE | {"episodes", "sim", "hands", "instructions"},
    "training": BASE | {"processes", "windows", "retrieval", "episodes", "model", "instructions"},
    "policy": BASE | {"model", "retrieval", "windows"},
    "films": {"interface"},
    "evaluation": BASE | {"processes", "sim", "results", "instructions", "films"},
    "exhibits": BASE | {"model", "retrieval", "episodes", "hands"},
    "look": BASE | {"model", "windows", "sources", "episodes", "hands", "films"},
    "report": {"results", "interface"},
    "paper": BASE | {"processes", "training", "model", "windows", "episodes"},
}
FREE = {"cli", "demo", "__main__", "__init__"}


def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "arvrm":
            tail = node.module.split(".")[1:]
            found |= {".".join(tail)} if tail else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {".".join(a.name.split(".")[1:]) for a in node.names if a.name.startswith("arvrm.")}
    return found - {"", "__version__"}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_module_imports_only_what_the_table_allows(file):
    unit = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    imported = imports_of(file)
    if unit == "__main__":
        return
    assert not {name for name in imported if name.split(".")[0] == "cli"}, "nobody imports the command line"
    if unit in FREE:
        return
    assert unit in ALLOWED, f"{unit} is not in the import table; add it to docs/architecture.md and here"
    for name in imported:
        top = name.split(".")[0]
        assert top == unit or top in ALLOWED[unit] or name in ALLOWED[unit], f"{file.name} imports arvrm.{name}"
