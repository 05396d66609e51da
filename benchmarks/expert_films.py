"""One film per task of the scripted expert, and a contact sheet of them: `python benchmarks/expert_films.py`.

With `--assets calvin` (CALVIN_ROOT set) in the official scene. Films are kept as OUTPUT/TASK.mp4; the sheet shows the
start, the middle and the end of each.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from arvrm.evaluation import FILM_TAIL, EvaluateConfig, evaluate, film_folder
from arvrm.films import CAPTION_PX, PAPER, STATIC_PX, read_film
from arvrm.interface import TASKS, UserError
from arvrm.results import load_results

SHOWN, COLUMNS, PIXELS, LABEL = 3, 4, 104, 16
SEEDS = 4


def film_tasks(output: Path, assets: str, scene: str, tasks: tuple[str, ...], workers: int) -> list[str]:
    """Film every task; where the expert fails, from another start. Return the tasks that never succeeded."""
    missing = [task for task in tasks if not (output / f"{task}.mp4").exists()]
    for seed in range(SEEDS):
        if not missing:
            break
        config = EvaluateConfig(
            output=str(output / f"results_{seed}.json"), policy="expert", protocol="single", starts=1, scene=scene,
            assets=assets, tasks=tuple(missing), seed=seed, workers=workers, overwrite=True,
            film_successes=len(missing),
        )  # fmt: skip
        path = evaluate(None, config)
        for chain in load_results(path)["chains"]:
            if chain["completed"]:
                (film_folder(path) / chain["film"]).replace(output / f"{chain['tasks'][0]}.mp4")
        shutil.rmtree(film_folder(path), ignore_errors=True)
        missing = [task for task in missing if not (output / f"{task}.mp4").exists()]
    return missing


def contact_sheet(folder: Path, tasks: list[str]) -> Image.Image:
    """Draw the static camera's first, middle and last frame of each task's film."""
    rows = -(-len(tasks) // COLUMNS)
    cell = (SHOWN * PIXELS + 8, PIXELS + LABEL + 4)
    sheet = Image.new("RGB", (COLUMNS * cell[0], rows * cell[1]), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, task in enumerate(tasks):
        left, top = number % COLUMNS * cell[0] + 4, number // COLUMNS * cell[1]
        draw.text((left, top + 1), task.replace("_", " "), fill="white", font=font)
        frames = read_film(folder / f"{task}.mp4")
        for place, index in enumerate(np.linspace(0, len(frames) - FILM_TAIL, SHOWN).round().astype(int)):
            picture = Image.fromarray(frames[index][CAPTION_PX:, :STATIC_PX])
            picture = picture.resize((PIXELS, PIXELS), Image.Resampling.LANCZOS)
            sheet.paste(picture, (left + place * PIXELS, top + LABEL))
    return sheet


def main() -> int:
    """Film, draw the sheet, print where they are; exit code 1 if a task has no film."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", choices=("builtin", "calvin"), default="builtin")
    parser.add_argument("--scene", default="D")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS, metavar="TASK")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/expert_films"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    missing = film_tasks(arguments.output, arguments.assets, arguments.scene, tuple(arguments.tasks), arguments.workers)
    for task in missing:
        print(f"no film of {task}: the expert failed from {SEEDS} starts", file=sys.stderr)
    sheet = arguments.output / "contact_sheet.jpg"
    contact_sheet(arguments.output, [task for task in arguments.tasks if task not in missing]).save(sheet, quality=74)
    print(sheet)
    return 1 if missing else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"expert_films: {error}")
