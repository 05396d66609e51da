"""The figures of a report, as SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from importlib import resources
from typing import Any

from arvrm.interface import TASKS
from arvrm.results import wilson_interval
from arvrm.show.skeleton import OPEN_HAND

SERIES = ("#2f6fed", "#e8590c", "#2b8a3e", "#9c36b5", "#c2255c", "#0b7285")
CURVE_TITLES = {
    "loss": "loss (weighted sum)",
    "loss_arm": "arm: smooth L1",
    "loss_gripper": "gripper: cross-entropy",
    "arm_error": "arm: mean absolute error, action units",
    "gripper_accuracy": "gripper: share right",
    "moved_by_images": "how far another image moves the plan, action units",
    "moved_by_words": "how far another sentence moves the plan, action units",
    "loss_state": "next state: squared error",
    "loss_analogy": "analogy map",
    "loss_replay": "replay of retrieved clips",
    "loss_localisation": "landmarks: cross-entropy",
    "loss_geometry": "landmarks from the gripper: mean squared error",
    "loss_image": "predicted frames",
    "error_1": "keypoints 1 frame ahead, px of 224",
    "error_5": "keypoints 5 frames ahead, px of 224",
    "error_10": "keypoints 10 frames ahead, px of 224",
}
BASELINES = {"hold": "pose kept", "velocity": "motion kept"}


def page_template(name: str) -> str:
    """Return the package's template of a page, by its name."""
    return resources.files("arvrm").joinpath(f"resources/{name}.html.j2").read_text(encoding="utf-8")


def safe(svg: str) -> Any:
    """Return a figure of this module as what a template takes in as it is."""
    import markupsafe

    return markupsafe.Markup(svg)


def words(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{html.escape(text)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "grid", style: str = "") -> str:
    style = f' style="{style}"' if style else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"{style}/>'


def svg(width: float, height: float, parts: list[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{html.escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )


def chain_figure(names: list[str], results: list[dict[str, Any]]) -> str:
    """Success rate of 1, 2, ... tasks in a row, with 95 % intervals, one line per results file."""
    longest = max((len(values["success_rates"]) for values in results), default=0)
    if longest < 2:
        return ""
    width, height, left, bottom, top, right = 560, 300, 44, 36, 14, 14
    span = (width - left - right) / longest

    def x(k: int, i: int) -> float:
        # Side by side, so that intervals do not hide each other.
        return left + span * (k + 0.5) + (i - (len(results) - 1) / 2) * min(10, 0.6 * span / len(results))

    def y(rate: float) -> float:
        return top + (1 - rate) * (height - top - bottom)

    parts = []
    for tick in range(0, 101, 25):
        at = y(tick / 100)
        parts += [line(left, at, width - right, at), words(left - 8, at + 4, f"{tick} %", "end")]
    for k in range(longest):
        parts.append(words(left + span * (k + 0.5), height - 12, f"{k + 1} in a row", "middle"))
    for i, values in enumerate(results):
        rates = values["success_rates"]
        colour = SERIES[i % len(SERIES)]
        if len(rates) < 2:
            continue
        count = len(values["chains"])
        points = " ".join(f"{x(k, i):.1f},{y(rate):.1f}" for k, rate in enumerate(rates))
        parts.append(f'<polyline points="{points}" class="series" style="stroke:{colour}"/>')
        intervals = values.get("success_rates_ci95") or [wilson_interval(round(rate * count), count) for rate in rates]
        for k, (rate, (low, high)) in enumerate(zip(rates, intervals, strict=True)):
            parts.append(line(x(k, i), y(low), x(k, i), y(high), "whisker", f"stroke:{colour}"))
            parts.append(f'<circle cx="{x(k, i):.1f}" cy="{y(rate):.1f}" r="4.5" style="fill:{colour}"/>')
            if len(results) == 1:
                parts.append(words(x(k, i) + 9, y(rate) - 7, f"{100 * rate:.0f} %", "start", "value"))
    return svg(width, height, parts, "success rate by number of tasks in a row")


def task_figure(names: list[str], results: list[dict[str, Any]]) -> str:
    """Success of each task, with 95 % Wilson intervals; one bar per results file."""
    found = {task for values in results for task in values["per_task"]}
    tasks = [task for task in TASKS if task in found] + sorted(found - set(TASKS))
    if not tasks:
        return ""
    bar, gap = (12, 10) if len(results) == 1 else (11, 9)
    row = bar * len(results) + gap
    width, left, right, top = 620, 190, 96, 20
    height = top + row * len(tasks) + 8

    def x(rate: float) -> float:
        return left + rate * (width - left - right)

    parts = []
    for tick in range(0, 101, 25):
        at = x(tick / 100)
        parts += [line(at, top - 4, at, height - 6), words(at, top - 8, f"{tick} %", "middle")]
    for number, task in enumerate(tasks):
        y0 = top + number * row + gap / 2
        parts.append(words(left - 10, y0 + bar * len(results) / 2 + 4, task.replace("_", " "), "end", "label"))
        for i, values in enumerate(results):
            count = values["per_task"].get(task)
            if count is None or not count["total"]:
                continue
            rate, colour = count["success"] / count["total"], SERIES[i % len(SERIES)]
            low, high = wilson_interval(count["success"], count["total"])
            y = y0 + i * bar
            parts.append(
                f'<rect x="{left}" y="{y:.1f}" width="{max(1.0, x(rate) - left):.1f}" height="{bar - 2}" rx="2" '
                f'style="fill:{colour};fill-opacity:.8"/>'
            )
            parts.append(line(x(low), y + bar / 2 - 1, x(high), y + bar / 2 - 1, "whisker dark"))
            said = f"{count['success']} of {count['total']}"
            parts.append(words(width - right + 12, y + bar / 2 + 3.5, said, "start", "small"))
    return svg(width, height, parts, "success rate by task")


def curve_figure(records: list[dict[str, Any]], key: str) -> str:
    """One number over the updates: training and validation, with the baselines of keypoint errors; "" if absent."""
    lines: list[tuple[str, str, list[tuple[float, float]]]] = []
    for split, colour in (("train", "#8aa4d6"), ("validation", SERIES[0])):
        points = [
            (record["step"], record[key])
            for record in records
            if record.get("split") == split and isinstance(record.get(key), (int, float)) and math.isfinite(record[key])
        ]
        if points:
            lines.append((split, colour, points))
    if not lines:
        return ""
    kind, _, ahead = key.partition("_")
    if kind == "error":
        for (name, text), colour in zip(BASELINES.items(), ("#adb5bd", "#868e96"), strict=True):
            points = [(r["step"], r[f"{name}_{ahead}"]) for r in records if f"{name}_{ahead}" in r]
            if points:
                lines.append((text, colour, points))
        if not any(value > 0 for _, _, points in lines for _, value in points):
            return ""  # no clip was long enough to judge this far ahead
    width, height, left, bottom, top, right = 300, 190, 56, 42, 26, 12
    steps = [step for _, _, points in lines for step, _ in points]
    values = [value for _, _, points in lines for _, value in points]
    low, high = min(0.0, min(values)), max(values)
    if key == "gripper_accuracy":
        low, high = min(values), 1.0
    if high <= low:
        high = low + 1.0
    first, last = min(0, *steps) if len(steps) > 1 else 0, max(steps)

    def x(step: float) -> float:
        return left + (step - first) / max(1, last - first) * (width - left - right)

    def y(value: float) -> float:
        return top + (high - value) / (high - low) * (height - top - bottom)

    parts = [words(left, 14, CURVE_TITLES.get(key, key), "start", "label")]
    for part in (0.0, 0.5, 1.0):
        value = low + part * (high - low)
        parts.append(line(left, y(value), width - right, y(value)))
        parts.append(words(left - 6, y(value) + 4, f"{value:.3g}", "end", "small"))
    parts.append(words(left, height - bottom + 15, f"{first:.0f}", "start", "small"))
    parts.append(words(width - right, height - bottom + 15, f"{last:.0f} updates", "end", "small"))
    at = float(left)
    for name, colour, points in lines:
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        parts.append(f'<polyline points="{path}" class="series thin" style="stroke:{colour}"/>')
        parts.append(f'<circle cx="{x(points[-1][0]):.1f}" cy="{y(points[-1][1]):.1f}" r="2.5" style="fill:{colour}"/>')
        parts.append(line(at, height - 10, at + 12, height - 10, "series thin", f"stroke:{colour}"))
        parts.append(words(at + 16, height - 6, name, "start", "small"))
        at += 26 + 6.2 * len(name)
    return svg(width, height, parts, CURVE_TITLES.get(key, key))


def hand_positions(keypoints: Sequence[str]) -> list[tuple[float, float]]:
    """Where each keypoint, named as in `interface.KEYPOINTS`, is drawn; percent of a square."""
    joints = {"1": 0, "2": 1, "3": 2, "tip": 3}
    places = []
    for name in keypoints:
        finger, _, joint = name.partition("_")
        u, v = OPEN_HAND[finger][joints.get(joint, 0)]
        places.append((100 * u, 100 * v))
    return places


def map_figure(component: str, weights: Sequence[float], keypoints: Sequence[str]) -> str:
    """One row of the analogy map over a hand: a dot's area is the weight's size, blue above zero, orange below.

    Two hands (42 weights) are drawn side by side, left then right.
    """
    hands = len(weights) // len(keypoints)
    width, height = 120 * hands, 168
    largest = max(map(abs, weights)) or 1.0
    places = hand_positions(keypoints)
    parts = []
    for hand in range(hands):
        # The left hand is the right one's mirror image.
        mirrored = hands == 2 and hand == 0
        points = [(120 * hand + 10 + ((100 - px) if mirrored else px), 22 + 1.05 * py) for px, py in places]
        for k in range(1, len(points)):
            parent = 0 if (k - 1) % 4 == 0 else k - 1
            parts.append(line(*points[parent], *points[k], "bone"))
        for k, (px, py) in enumerate(points):
            weight = weights[hand * len(keypoints) + k]
            radius = 9.0 * math.sqrt(abs(weight) / largest)
            colour = SERIES[0] if weight >= 0 else SERIES[1]
            parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="1.6" class="joint"/>')
            parts.append(
                f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{radius:.2f}" style="fill:{colour};fill-opacity:.72">'
                f"<title>{html.escape(keypoints[k])}: {weight:.4f}</title></circle>"
            )
    parts.insert(0, words(width / 2, 13, component, "middle", "label"))
    top = max(range(len(weights)), key=lambda k: abs(weights[k]))
    strongest = f"{keypoints[top % len(keypoints)].replace('_', ' ')} {weights[top]:.3f}"
    parts.append(words(width / 2, height - 18, strongest, "middle", "small"))
    parts.append(words(width / 2, height - 5, f"{min(weights):.3f} to {max(weights):.3f}", "middle", "small"))
    return svg(width, height, parts, f"map row of {component}")
