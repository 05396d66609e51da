"""What the pages say is there: files that the README's map names, links between pages."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_the_readmes_map_names_what_there_is_and_forgets_no_package():
    text = (ROOT / "README.md").read_text()
    block = text.split("## Where things are")[1].split("```")[1]
    package = block.split("train.py, evaluate.py")[0]
    named = set(re.findall(r"[\w/]+(?:\.py(?!\w)|/(?!\S))", package)) - {"arvrm/"}
    missing = [name for name in named if not (ROOT / "arvrm" / name).exists()]
    assert not missing, f"README.md names {missing}"
    there = {path.name + "/" for path in (ROOT / "arvrm").iterdir() if (path / "__init__.py").exists()}
    there |= {path.name for path in (ROOT / "arvrm").glob("[a-z]*.py")}
    assert not there - named, f"README.md does not name {sorted(there - named)}"
    for line in block.split("train.py, evaluate.py")[1].splitlines():
        for name in re.findall(r"^(\w+/) ", line):
            assert (ROOT / name).is_dir(), name


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not re.match(r"https?:|mailto:", target):
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"
