"""Which chains are filmed, and how: outcomes are unknown beforehand, so more are filmed than are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from arvrm.evaluation.config import EvaluateConfig
from arvrm.files import inside
from arvrm.films import FilmWriter, compose_frame, draw_over
from arvrm.interface import Drawing, Job
from arvrm.results import ChainRecord

FILM_STRIDE = 3
"""Control steps per film frame; `films.FPS` plays it at the speed of life."""
FILM_TAIL = 6
"""Film frames that show a task's outcome."""


def film_folder(output: Path) -> Path:
    """Where an evaluation keeps its films: beside the results file."""
    return output.with_name(f"{output.stem}_films")


def filmed(job: Job, config: EvaluateConfig) -> Job:
    """Return the job with a place for its film, if it is one of the early chains that are filmed."""
    if job.index >= 2 * (config.film_successes + config.film_failures):
        return job
    return replace(job, film=str(film_folder(Path(config.output)) / f"chain_{job.index:05d}.mp4"))


def discard_films(output: Path) -> None:
    """Delete the films of an evaluation that is begun anew; other files in their folder stay."""
    for film in film_folder(output).glob("chain_*.mp4"):
        film.unlink()


def keep_films(records: list[ChainRecord], config: EvaluateConfig, output: Path) -> tuple[list[ChainRecord], list[str]]:
    """Keep the films of the chains that came farthest and of those that failed first; delete the others.

    Returns: the records, with a film only where there is one, and the names of the kept films.
    """
    folder = film_folder(output)
    place = f"{output.with_suffix('.chains.jsonl')}: film"
    there = [record for record in records if record.film and inside(folder, record.film, (".mp4",), place).exists()]
    there.sort(key=lambda record: record.index)
    best = sorted((r for r in there if r.completed > 0), key=lambda r: -r.completed)[: config.film_successes]
    failed = [r for r in there if r.completed < len(r.tasks) and r not in best]
    worst = sorted(failed, key=lambda r: r.completed)[: config.film_failures]
    kept = [record.film for record in best + worst if record.film]
    for record in there:
        if record.film and record.film not in kept:
            (folder / record.film).unlink(missing_ok=True)
    return [record if record.film in kept else replace(record, film=None) for record in records], kept


class Film:
    """Frames of one chain on their way into a file; the writer is made with the first frame."""

    def __init__(self, path: str):
        self.writer = FilmWriter(path)

    def show(
        self,
        images: dict[str, np.ndarray],
        drawing: Drawing | None,
        instruction: str,
        title: str,
        step: int,
        replanned: bool,
        outcome: bool | None = None,
        repeat: int = 1,
    ) -> None:
        if drawing is not None and drawing.camera in images:
            drawn = draw_over(images[drawing.camera], drawing.strokes, drawing.caption)
            images = {**images, drawing.camera: drawn}
        frame = compose_frame(images, instruction, title, step, replanned, outcome)
        for _ in range(repeat):
            self.writer.add(frame)

    def close(self) -> str | None:
        path = self.writer.close()
        return None if path is None else path.name

    def discard(self) -> None:
        self.writer.discard()
