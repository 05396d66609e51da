"""Code on the pages of docs/, for tests to run: a block that begins with a comment that names a file is that file."""

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def files_of(page: str, section: str) -> dict[str, str]:
    """Return file name -> text of the blocks of a section (its heading without ##) of docs/`page`."""
    text = (DOCS / page).read_text()
    part = text.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"^```\w*\n(?:#|//) (\S+)\n(.*?)^```$", part, re.M | re.S)
    return dict(blocks)


def write_files(page: str, section: str, folder: Path) -> list[Path]:
    """Write those files into `folder`; return their paths, in the order of the page."""
    written = []
    for name, text in files_of(page, section).items():
        (folder / name).write_text(text)
        written.append(folder / name)
    assert written, f"docs/{page}, {section!r}: no file on the page"
    return written
