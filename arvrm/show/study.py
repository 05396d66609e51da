"""The study's page: a bar a row with its interval, what hands add, and which tasks are weak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arvrm.files import replacing
from arvrm.show.figures import SERIES, line, safe, svg, words

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>arvrm study</title>
<style>
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5b6575; --faint: #e4e8ee; --paper: #f6f7f9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaf0; --soft: #9aa4b5; --faint: #2c323d; --paper: #14171c; } }
body { margin: 0 auto; max-width: 1000px; padding: 32px 20px 80px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
p { color: var(--soft); max-width: 74ch; } table { border-collapse: collapse; width: 100%; font-size: 13px; }
td, th { text-align: left; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--faint);
  font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; font: 12px system-ui, "Segoe UI", Roboto, sans-serif; }
svg text { fill: var(--soft); } svg .label { fill: var(--ink); } svg .grid { stroke: var(--faint); }
svg .whisker { stroke: var(--ink); stroke-width: 1.4; opacity: .7; }
</style></head><body>
<h1>arvrm study</h1>
<p>Tasks done in a row of five, mean over seeds; whiskers are 95 % intervals (seeds are drawn, then chains within each).
Demonstrations are scripted and clips are of an animated hand: nothing here was filmed.</p>
{% for group in groups %}
<h2>{{ group.title }}</h2>
{{ group.figure }}
<table><tr><th>row</th><th>demonstrations a task</th><th>average length</th><th>95 % interval</th><th>by seed</th>
<th>1 to 5 in a row</th><th>weakest tasks</th></tr>
{% for line in group.lines %}
<tr><td>{{ line.title }}</td><td>{{ line.demonstrations }}</td><td>{{ "%.2f"|format(line.average_length) }}</td>
<td>{{ "%.2f to %.2f"|format(*line.ci95) }}</td>
<td>{% for one in line.by_seed %}{{ "%.2f"|format(one) }} {% endfor %}</td>
<td>{% for one in line.success_rates %}{{ "%.2f"|format(one) }} {% endfor %}</td>
<td>{% for one in line.weak %}{{ one }}<br>{% endfor %}
{% if line.crashed %}{{ line.crashed }} crashed{% endif %}</td></tr>
{% endfor %}</table>
{% endfor %}
</body></html>
"""


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
        partial.write_text(environment.from_string(_PAGE).render(groups=shown), encoding="utf-8")
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
