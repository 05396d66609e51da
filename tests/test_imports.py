"""The import table of docs/architecture.md, enforced."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "arvrm"
PAGE = "docs/architecture.md"


sys.path.insert(0, str(ROOT / "docs"))
import house  # noqa: E402

TABLE, _ = house.read_table((ROOT / PAGE).read_text())


def units() -> set[str]:
    return {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}


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
    if unit in ("__main__", "__init__"):
        return
    assert unit in TABLE, f"{unit} is not in the import table of {PAGE}"
    allowed = TABLE[unit]
    for name in imports_of(file):
        top = name.split(".")[0]
        assert top == unit or top != "cli", "nobody imports the command line"
        fits = allowed is None or top == unit or top in allowed or name in allowed
        assert fits, f"{file.relative_to(PACKAGE)} imports arvrm.{name}"


def test_table_names_what_there_is():
    named = set(TABLE) | {name.split(".")[0] for allowed in TABLE.values() for name in allowed or ()}
    assert named <= units(), f"{PAGE} names {sorted(named - units())}"


def test_table_has_no_circle():
    done: set[str] = set()

    def visit(package: str, path: tuple[str, ...]) -> None:
        assert package not in path, f"circle in {PAGE}: {' -> '.join((*path, package))}"
        if package not in done:
            for name in TABLE.get(package) or ():
                top = name.split(".")[0]
                if top != package:
                    visit(top, (*path, package))
            done.add(package)

    for package in TABLE:
        visit(package, ())


def test_picture_of_the_house_is_that_of_the_table():
    assert house.PICTURE.read_text() == house.draw(house.PAGE.read_text()), "run `make house`"
