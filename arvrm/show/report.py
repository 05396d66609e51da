"""Results, training runs and exhibits as one self-contained page: films and pictures are data URIs."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arvrm.files import HTML, claimed, inside, replacing
from arvrm.interface import UserError
from arvrm.results import load_results, scene_changes
from arvrm.runfiles import read_metrics, read_run
from arvrm.show.exhibit_files import read_exhibits
from arvrm.show.figures import SERIES, chain_figure, curve_figure, map_figure, page_template, safe, task_figure

CURVES = (
    "loss", "loss_arm", "loss_gripper", "arm_error", "gripper_accuracy", "moved_by_images", "moved_by_words",
    "loss_state", "loss_analogy", "loss_replay", "loss_localisation", "loss_geometry", "loss_image",
    "error_1", "error_5", "error_10",
)  # fmt: skip


def write_report(
    results: Sequence[str | Path],
    output: str | Path,
    runs: Sequence[str | Path] = (),
    exhibits: str | Path | None = None,
    title: str = "arvrm report",
    overwrite: bool = False,
    explained: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the page; it appears whole or not at all.

    Args:
        results: files written by `arvrm evaluate`, to be compared; films of the first that has any are shown.
        runs: folders of training runs, for their curves.
        exhibits: folder written by `arvrm exhibit`.
        explained: what the page opens with, each of `explain.entry_of`.
    Raises:
        UserError: the page exists (without `overwrite`), something else is at its place, another process is writing
            it, or an input is missing or damaged.
    """
    with claimed(output, overwrite, HTML):
        page = _page(results, runs, exhibits, title, explained)
        with replacing(output) as partial:
            partial.write_text(page, encoding="utf-8")
    return Path(output)


def _page(
    results: Sequence[str | Path],
    runs: Sequence[str | Path],
    exhibits: str | Path | None,
    title: str,
    explained: Sequence[Mapping[str, Any]],
) -> str:
    import jinja2

    loaded = [(Path(path), load_results(path)) for path in results]
    names = result_names([path for path, _ in loaded], [values for _, values in loaded])
    shown = [values for _, values in loaded]
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    named = list(zip(names, shown, strict=True))
    return environment.from_string(page_template("report")).render(
        title=title,
        explained=explained,
        rows=[summary_row(name, values, SERIES[i % len(SERIES)]) for i, (name, values) in enumerate(named)],
        curve=safe(chain_figure(names, shown)),
        tasks=safe(task_figure(names, shown)),
        films=[f for (path, values), name in zip(loaded, names, strict=True) for f in film_entries(path, values, name)],
        runs=[run_entry(Path(folder)) for folder in runs],
        exhibits=exhibit_entries(Path(exhibits)) if exhibits else None,
        details=[(name, detail_rows(values), json.dumps(values["config"], indent=1)) for name, values in named],
    )


# ---------------------------------------------------------------------------------------------------------------------
# What is said of results
# ---------------------------------------------------------------------------------------------------------------------


def result_names(paths: list[Path], values: list[dict[str, Any]]) -> list[str]:
    """Short names that tell the results apart: policy and scene, else with the file's name."""
    plain = [describe(one) for one in values]
    if len(set(plain)) == len(plain):
        return plain
    return [f"{path.parent.name}/{path.stem}" if path.parent.name else path.stem for path in paths]


def describe(values: dict[str, Any]) -> str:
    """One line: who acted where."""
    config = values["config"]
    who = {"checkpoint": "learnt policy", "expert": "scripted expert", "random": "random actions"}
    table = f"{'official' if config.get('assets') == 'calvin' else 'built-in'} scene {config.get('scene')}"
    where = config.get("world") or table
    said = config.get("instructions")
    words = "" if said == "validation" else f", {said} instructions"
    if changes := scene_changes(config):
        words += f", {changes}"
    return f"{who.get(config.get('policy'), config.get('policy', 'policy'))}, {where}{words}"


def summary_row(name: str, values: dict[str, Any], colour: str) -> dict[str, Any]:
    """What the cards and the comparison table show of one results file."""
    low, high = values["average_length_ci95"]
    longest = len(values["success_rates"])
    return {
        "name": name,
        "colour": colour,
        "chains": len(values["chains"]),
        "single": longest == 1,
        "longest": longest,
        "average": f"{values['average_length']:.2f}",
        "interval": f"{low:.2f} to {high:.2f}",
        "rates": [f"{100 * rate:.0f}" for rate in values["success_rates"]],
        "crashed": values.get("crashed", 0),
        "tasks": len(values["per_task"]),
    }


def detail_rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Versions, hardware, times and the like, as (what, value)."""
    versions, rows = values["versions"], []
    rows.append(("commit", versions.get("commit") or "unknown (no git checkout)"))
    rows.append(("hardware", versions.get("hardware", "")))
    software = [f"{name} {versions[name]}" for name in ("python", "torch", "pybullet") if versions.get(name)]
    rows.append(("software", ", ".join(software)))
    for key, text in (
        ("robot", "robot"),
        ("simulator", "simulator"),
        ("assets", "scene files, hash"),
        ("renderer", "renderer"),
    ):
        if versions.get(key):
            rows.append((text, versions[key]))
    rows.append(("seed", str(values["config"].get("seed"))))
    for owner in ("policy", "world"):
        identity = values.get(f"{owner}_identity") or {}
        if "hash" in identity:
            rows.append(("checkpoint, hash", identity["hash"][:16]))
        elif "sha256" in identity:
            rows.append((f"{owner}, hash of its file", f"{identity['name']}, {identity['sha256'][:16]}"))
    rows.append(("time", f"{clock(values.get('seconds', 0))}, {values.get('chains_per_hour') or 0:.0f} chains an hour"))
    if values.get("time_share"):
        share = sorted(values["time_share"].items(), key=lambda item: -item[1])
        rows.append(("simulators' time", ", ".join(f"{kind} {100 * part:.0f} %" for kind, part in share)))
    if values.get("planning"):
        of = values["planning"]
        plans, batch, cost = (of.get(name) for name in ("plans", "mean_batch", "ms_per_plan"))
        rows.append(("planning", f"{plans} plans, {batch} at once, {cost} ms each"))
    if values.get("stage_seconds"):
        rows.append(("stages", ", ".join(f"{stage} {clock(s)}" for stage, s in values["stage_seconds"].items())))
    return rows


def clock(seconds: float) -> str:
    """Seconds as minutes:seconds."""
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def film_entries(path: Path, values: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Films of a results file, successes first, as data URIs; films that are gone are left out."""
    by_film = {file.name: file for film in values.get("films", []) if (file := film_file(path, film))}
    entries = []
    for chain in values["chains"]:
        file = by_film.get(chain.get("film", ""))
        if file is None or not file.is_file():
            continue
        done, tasks = chain["completed"], chain["tasks"]
        entries.append(
            {
                "source": data_uri(file, "video/mp4"),
                "name": name,
                "chain": chain["index"],
                "completed": done,
                "total": len(tasks),
                "tasks": [
                    (task.replace("_", " "), "done" if i < done else "failed" if i == done else "open")
                    for i, task in enumerate(tasks)
                ],
            }
        )
    return sorted(entries, key=lambda entry: -entry["completed"])


def film_file(results: Path, film: object) -> Path:
    """Return the path of a film that a results file names as FOLDER/NAME.mp4, the folder lying beside it.

    Raises:
        UserError: it names anything else.
    """
    folder, _, name = str(film).rpartition("/")
    beside = results.parent / folder
    if Path(folder).name != folder or folder in ("", "..") or beside.is_symlink():
        raise UserError(f"{results}: film {str(film)[:80]!r} is no file of a folder beside it; correct the name")
    return inside(beside, name, (".mp4",), f"{results}: film")


def data_uri(file: Path, kind: str) -> str:
    """The file as a data URI of this media type."""
    try:
        return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; make it again") from error


def picture_uri(folder: Path, name: object) -> str:
    """A picture that `exhibits.json` names as a data URI; raises UserError if it is no PNG of the folder."""
    return data_uri(inside(folder, name, (".png",), f"{folder}/exhibits.json"), "image/png")


def run_entry(folder: Path) -> dict[str, Any]:
    """Curves and configuration of a training run.

    Raises:
        UserError: the folder holds no metrics, or they are damaged.
    """
    records = [{"step": line.step, "split": line.split, **line.values} for line in read_metrics(folder)]
    run = read_run(folder) if (folder / "run.json").exists() else None
    stage = {"pretrain": "Stage 1: keypoints of human clips", "finetune": "Stage 2: the robot's policy"}
    figures = [safe(figure) for key in CURVES if (figure := curve_figure(records, key))]
    last = max((record["step"] for record in records), default=0)
    seconds = max((record.get("seconds", 0.0) for record in records), default=0.0)
    return {
        "name": stage[run.stage] if run else folder.name,
        "note": f"{last} updates in {clock(seconds)}",
        "figures": figures,
        "config": json.dumps(run.config if run else {}, indent=1),
    }


def exhibit_entries(folder: Path) -> dict[str, Any]:
    """Retrieved clips and the map.

    Raises:
        UserError: no exhibits there.
    """
    found = read_exhibits(folder)
    queries = [
        {
            **vars(query),
            "picture": picture_uri(folder, query.picture),
            "clips": [{**vars(clip), "picture": picture_uri(folder, clip.picture)} for clip in query.clips],
        }
        for query in found.retrieval
    ]
    maps = []
    if found.map is not None:
        for sentence, weights in (found.map.by_sentence or {"": found.map.weights}).items():
            figures = [
                safe(map_figure(component, row, found.keypoints))
                for component, row in zip(found.components, weights, strict=True)
            ]
            maps.append({"sentence": sentence, "figures": figures})
    return {"queries": queries, "maps": maps, "map": found.map}
