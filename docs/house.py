"""Draws docs/house.svg, the packages and who imports whom, from the table of docs/architecture.md.

    python docs/house.py        (or: make house)
"""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).with_name("architecture.md")
PICTURE = Path(__file__).with_name("house.svg")
BOX_W, BOX_H, GAP_X, GAP_Y, MARGIN, BASE_H = 132, 40, 26, 58, 24, 46


def read_table(text: str) -> tuple[dict[str, set[str] | None], set[str]]:
    """Return package -> what it may import of ours (None: everything), and the names of the base."""
    section = text.split("## Who may import whom")[1].split("\n## ")[0]
    base = _names(re.search(r"^Base: ([^.]+)\.", section, re.M)[1])
    table: dict[str, set[str] | None] = {}
    for packages, allowed in re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", section, re.M)[1:]:
        names = _names(allowed)
        names = (names | base if "base" in names else names) - {"base", "nothing"}
        table |= {package: None if names == {"everything"} else names for package in sorted(_names(packages))}
    return table, base


def _names(cell: str) -> set[str]:
    return {name.strip() for name in re.sub(r"\([^)]*\)", "", cell).split(",")} - {""}


def edges(table: dict[str, set[str] | None], base: set[str]) -> dict[str, set[str]]:
    """Return the imports above the base, those that another path already says left out."""
    direct = {
        package: {name.split(".")[0] for name in (set(table) if allowed is None else allowed)} - base - {package}
        for package, allowed in table.items()
        if package not in base
    }
    direct = {package: {name for name in names if table.get(name) is not None} for package, names in direct.items()}

    def reached(package: str) -> set[str]:
        return {name for first in direct[package] for name in {first} | reached(first)}

    return {
        package: {name for name in names if not any(name in reached(other) for other in names)}
        for package, names in direct.items()
    }


def levels(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Return the packages in rows, the highest first; each stands above all that it imports."""

    def height(package: str) -> int:
        return 1 + max((height(name) for name in arrows[package]), default=-1)

    heights = {package: height(package) for package in arrows}
    return [sorted(p for p, h in heights.items() if h == row) for row in range(max(heights.values()), -1, -1)]


def draw(text: str) -> str:
    """Return the picture as SVG."""
    table, base = read_table(text)
    arrows = edges(table, base)
    rows = levels(arrows)
    width = 2 * MARGIN + max(len(row) for row in rows) * (BOX_W + GAP_X) - GAP_X
    height = 2 * MARGIN + len(rows) * (BOX_H + GAP_Y) + BASE_H
    place = {}
    for number, row in enumerate(rows):
        left = (width - len(row) * (BOX_W + GAP_X) + GAP_X) / 2
        place |= {name: (left + i * (BOX_W + GAP_X), MARGIN + number * (BOX_H + GAP_Y)) for i, name in enumerate(row)}
    parts = []
    for package, names in arrows.items():
        for name in sorted(names):
            (x1, y1), (x2, y2) = place[package], place[name]
            start, end = (x1 + BOX_W / 2, y1 + BOX_H), (x2 + BOX_W / 2, y2)
            bend = (end[1] - start[1]) / 2
            parts.append(
                f'<path d="M{start[0]:.0f} {start[1]:.0f} C{start[0]:.0f} {start[1] + bend:.0f} {end[0]:.0f} '
                f'{end[1] - bend:.0f} {end[0]:.0f} {end[1] - 6:.0f}" class="arrow"/>'
            )
    for name, (x, y) in place.items():
        parts.append(f'<rect x="{x:.0f}" y="{y:.0f}" width="{BOX_W}" height="{BOX_H}" rx="7" class="box"/>')
        parts.append(f'<text x="{x + BOX_W / 2:.0f}" y="{y + BOX_H / 2 + 5:.0f}">{name}</text>')
    floor = height - MARGIN - BASE_H
    parts.append(
        f'<rect x="{MARGIN}" y="{floor}" width="{width - 2 * MARGIN}" height="{BASE_H}" rx="7" class="base"/>'
        f'<text x="{width / 2:.0f}" y="{floor + 28}">base, under all: {", ".join(sorted(base))}</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        'role="img" aria-label="Packages of arvrm; an arrow points to what is imported">\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#5c6470"/></marker></defs>\n'
        "<style>text{font:14px sans-serif;text-anchor:middle;fill:#16181d}.box{fill:#e8f0fe;stroke:#2f6fed}"
        ".base{fill:#f1f3f5;stroke:#868e96}.arrow{fill:none;stroke:#5c6470;marker-end:url(#tip)}</style>\n"
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(PAGE.read_text()))
    print(PICTURE)
