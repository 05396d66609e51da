"""The study's page: a bar a row with its interval, what hands add, and which tasks are weak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arvrm.files import replacing
from arvrm.show.figures import SERIES, line, page_template, safe, svg, words


def write_study(output: Path, rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> Path:
    """Write the page.

    Args:
        rows: of `study.rows_of`.
        titles: of the rows; one that has none is called by its name.
    """
    import jinja2

    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in rows:
        entry = {**row, "title": titles.get(row["row"], row["row"]), "weak": weakest(row["per_task"])}
        groups.setdefault((row["scene"], row["tasks"], row["chains"]), []).append(entry)
    shown = []
    for (scene, tasks, chains), lines in sorted(groups.items()):
        lines.sort(key=lambda entry: (_many(entry["demonstrations"]), -entry["average_length"]))
        title = f"scene {scene}, tasks: {tasks}, {chains} chains a seed"
        shown.append({"title": title, "lines": lines, "figure": safe(bars(lines))})
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    with replacing(output) as partial:
        partial.write_text(environment.from_string(page_template("study")).render(groups=shown), encoding="utf-8")
    return output


def weakest(per_task: Mapping[str, Sequence[int]], count: int = 4) -> list[str]:
    """Return the tasks that failed most, as "name 3 of 10"."""
    failed = sorted(per_task.items(), key=lambda item: item[1][0] - item[1][1])
    return [f"{task} {done} of {total}" for task, (done, total) in failed[:count] if done < total]


def bars(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a bar a line with its interval, as SVG."""
    width, left, step = 760, 330, 24
    height, scale = step * len(lines) + 34, (760 - 330 - 40) / 5
    counts = list(dict.fromkeys(entry["demonstrations"] for entry in lines))
    parts = [line(left + k * scale, 6, left + k * scale, height - 24) for k in range(6)]
    parts += [words(left + k * scale, height - 8, str(k), "middle") for k in range(6)]
    for number, entry in enumerate(lines):
        y = 10 + number * step
        colour = SERIES[counts.index(entry["demonstrations"]) % len(SERIES)]
        low, high = entry["ci95"]
        parts.append(words(left - 8, y + 12, f"{entry['title']}, {entry['demonstrations']}", "end", "label"))
        long = entry["average_length"] * scale
        parts.append(f'<rect x="{left}" y="{y}" width="{long:.1f}" height="15" rx="2" fill="{colour}"/>')
        parts.append(line(left + low * scale, y + 7.5, left + high * scale, y + 7.5, "whisker"))
    return svg(width, height, parts, "average length of each row")


def _many(demonstrations: str) -> int:
    return 10**6 if demonstrations == "all" else int(demonstrations)
