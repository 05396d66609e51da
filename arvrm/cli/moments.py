"""The verb that says when the episodes of a store touch, and when they are done."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from arvrm.config import bounded, check_bounds
from arvrm.episodes import EpisodeStore
from arvrm.files import write_json
from arvrm.interface import UserError


@dataclass(frozen=True)
class MomentsConfig:
    """Which store, and what to write.

    Attributes:
        store: folder of an episode store, of hands or of a robot.
        output: the JSON file: for each episode the steps of touch (or release) and end, each with its confidence.
        judge: compare with the truth that synthetic stores keep, a row a task.
        pictures: draw so many episodes, a PNG each, into the folder of `output`.
        limit: only so many episodes, spread evenly over the store; 0: all.
        overwrite: replace existing files.
    """

    store: str
    output: str = "moments.json"
    judge: bool = False
    pictures: int = bounded(0, least=0, most=10**4)
    limit: int = bounded(0, least=0, most=10**9)
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)


def moments(config: MomentsConfig) -> Path:
    """Find the moments and write them; with `judge`, print the table to stderr too."""
    from arvrm.moments import judged
    from arvrm.moments.find import episode_signals, found_in, moments_entry
    from arvrm.moments.network import load_scorer

    output = Path(config.output)
    if output.exists() and not config.overwrite:
        raise UserError(f"{output}: exists; pass --overwrite or choose another --output")
    store = EpisodeStore(config.store)
    ids = store.ids
    if config.limit and len(ids) > config.limit:
        ids = tuple(ids[round(i * (len(ids) - 1) / max(config.limit - 1, 1))] for i in range(config.limit))
    if not ids:
        raise UserError(f"{store.path}: has no episodes; nothing touches")
    drawn = {
        ids[round(i * (len(ids) - 1) / max(config.pictures - 1, 1))] for i in range(min(config.pictures, len(ids)))
    }
    episodes, against = {}, {"touch": [], "end": []}
    for id in ids:
        header = store.header(id)
        scorer = load_scorer(header.embodiment)
        signals = episode_signals(store, header)
        found = found_in(signals, header.instruction, scorer, header.embodiment)
        episodes[id] = moments_entry(header, found)
        if config.judge:
            arrays = store.arrays(id, ("robot_obs",)) if "robot_obs" in header.arrays else {}
            for moment, list_ in against.items():
                row, said = getattr(found, moment), getattr(found, f"{moment}_confidence")
                one = judged.judge(header, signals, arrays, moment, row, said)
                if one is not None:
                    list_.append(one)
        if id in drawn:
            from arvrm.show.moments import draw_moments

            picture = output.parent / f"{output.stem}_{id}.png"
            if picture.exists() and not config.overwrite:
                raise UserError(f"{picture}: exists; pass --overwrite or choose another --output")
            draw_moments(store, id, found, picture)
    content: dict = {"store": str(store.path), "episodes": episodes}
    if config.judge:
        if not against["touch"] and not against["end"]:
            raise UserError(f"{store.path}: keeps no truth to judge by; only newly generated synthetic stores do")
        content["judge"] = {moment: judged.table(list_) for moment, list_ in against.items() if list_}
        for moment, rows in content["judge"].items():
            print(f"{moment}\n{judged.text(rows)}", file=sys.stderr)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, content)
    return output
