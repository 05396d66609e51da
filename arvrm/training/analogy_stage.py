"""Stage 2 by analogy: m and a library of motions from demonstrations. Nothing is trained."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from arvrm import processes
from arvrm.config import bounded, check_bounds, to_dict
from arvrm.files import replacing
from arvrm.interface import Robot, UserError
from arvrm.model.analogy_net import AnalogyNet, AnalogyNetConfig
from arvrm.model.checkpoint import load_checkpoint, write_checkpoint
from arvrm.model.metadata import CheckpointMetadata
from arvrm.model.text import TextEncoder
from arvrm.motions import (
    HandMap,
    Motion,
    RetrieveConfig,
    fit_map,
    fit_opening,
    predicted_gaps,
    read_camera,
    save_library,
)
from arvrm.training.agreement import MomentFinder, PlacesSeen
from arvrm.training.config import TrainResult
from arvrm.training.data import DataConfig, open_stores, open_table, split
from arvrm.training.motions import believed, clip_motions, robot_motions
from arvrm.training.runs import begin_run, metadata_of, trained_on
from arvrm.windows import EpisodeTable

if TYPE_CHECKING:
    from arvrm.training.finetuning import FinetuneConfig

_PLAIN = 1.0
"""Places' own token tells tasks apart; plain words, less, what it has not learnt."""
_END_COUNTS = 0.2
"""How much the end of a motion counts in fitting m, against its touch."""
_AWAY = 8
"""Steps from the touch at which the opening is compared."""


@dataclass(frozen=True)
class AnalogyFitConfig:
    """How m and the library of motions are made, with motion=analogy.

    Attributes:
        camera: JSON file of the static camera, calibrated (`motions.read_camera`), or calvin; null: it is fitted from
            where the demonstrations' grippers were and where the hand is predicted there.
        clips: stores of clips of hands, in the view of the robot's static camera, whose motions are carried over where
            no demonstration shows what is asked; they also tell which demonstrations do what words say.
        agree: moments of demonstrations and clips are those that stage 1's places speak for, too.
        clip_motions: of so many clips at most, one of each sentence first.
        seed: of the map's start.
        retrieve: weights of the terms by which a motion is chosen.
    """

    camera: str | None = None
    clips: tuple[str, ...] = ()
    agree: bool = True
    clip_motions: int = bounded(600, least=1, most=3000)
    seed: int = bounded(0, least=0)
    retrieve: RetrieveConfig = field(default_factory=RetrieveConfig)

    __post_init__ = check_bounds


@dataclass(frozen=True)
class Fitted:
    """A policy by analogy, made and not yet written.

    Attributes:
        net: with m; its config does not know the library yet.
        motions: the library.
        own: row of the table -> the motion of that demonstration.
        episodes, held_out: rows of the table, as `data` splits them.
        numbers: what there is to be said of it.
        finder: of their moments.
    """

    net: AnalogyNet
    motions: list[Motion]
    own: dict[int, Motion]
    episodes: np.ndarray
    held_out: np.ndarray
    numbers: dict[str, float]
    finder: MomentFinder

    def save_library(self, folder: Path) -> None:
        """Write the motions into a run's folder, and note them in the network's configuration."""
        library = save_library(folder, self.motions)
        self.net.config = dataclasses.replace(self.net.config, library=library)


def fit_analogy(config: FinetuneConfig, table: EpisodeTable, robot: Robot, progress: bool) -> TrainResult:
    """Make a policy by analogy of demonstrations and a stage 1 with places.

    Raises:
        UserError: as `analogy_of`.
    """
    begin = time.perf_counter()
    made = analogy_of(config, table, robot, progress)
    seconds = time.perf_counter() - begin
    folder = begin_run(config, "finetune", robot)
    if processes.is_main():
        made.save_library(folder)
        write_checkpoint(folder, made.net, metadata_of_analogy(config, table, made.episodes))
        line = {"step": 0, "split": "train", "seconds": round(seconds, 2), **made.numbers}
        with replacing(folder / "metrics.jsonl") as partial:
            partial.write_text(json.dumps(line) + "\n")
    return TrainResult(Path(config.output), 0, seconds, {"train": made.numbers})


def analogy_of(config: FinetuneConfig, table: EpisodeTable, robot: Robot, progress: bool) -> Fitted:
    """Make m and the motions of a policy by analogy.

    Raises:
        UserError: no stage 1 is given, or it has no places; the robot is not moved by poses; no demonstration touches.
    """
    if config.pretrained is None:
        raise UserError(f"motion={config.motion}: pretrained is null; give a stage 1 that was trained with places")
    stage1 = load_checkpoint(config.pretrained, kind="keypoint_vlm")
    settings = config.analogy
    given = None if settings.camera is None else read_camera(settings.camera)
    episodes, held_out = split(table, config.data)
    retrieve = {name: float(value) for name, value in to_dict(settings.retrieve).items()}
    residual = config.residual.network if config.motion == "residual" else None
    net = AnalogyNet(AnalogyNetConfig(stage1.config, "", retrieve, _PLAIN, residual=residual), robot).eval()
    net.vlm.load_state_dict(stage1.model.state_dict(), strict=True)
    clips = open_table(DataConfig(settings.clips, cache=config.data.cache), "human", 1) if settings.clips else None
    finder = MomentFinder.of(config.data, table, *([] if clips is None else [clips]), progress=progress)
    assert net.vlm.places is not None
    places, text, camera = net.vlm.places, TextEncoder(stage1.config.text), given
    while True:
        # A camera that is fitted is so from moments which no place could speak for; then they are found with it.
        seen = PlacesSeen(places, text, camera) if settings.agree and camera is not None else None
        finder = dataclasses.replace(finder, seen=seen)
        found = robot_motions(net, table, episodes, progress, finder)
        if not found:
            raise UserError(
                f"motion={config.motion}: none of {len(episodes)} demonstrations touches anything; look at the stores"
            )
        motions = list(found.values())
        fitted = _fitted(motions, given, settings.seed)
        if seen is not None or not settings.agree:
            break
        camera = fitted.camera
    edge, right = fit_opening(*gaps_of(motions))
    fitted = dataclasses.replace(fitted, opening=edge)
    net.keep(dataclasses.asdict(fitted))
    values = numbers_of(fitted, len(motions)) | {"map_opening_right": round(right, 4)}
    if clips is not None:
        some = clip_motions(net, fitted, motions, clips, settings.clip_motions, progress, finder)
        shown = len(motions)
        motions = believed(fitted.camera, [*motions, *some])
        of_hands = [one for one in motions if one.embodiment == "human"]
        values |= {
            "motions_not_believed": float(shown - len(motions) + len(of_hands)),
            "hand_motions": float(len(of_hands)),
            "hand_motions_own_way": float(sum(not one.by for one in of_hands)),
            "hand_motions_not_believed": float(len(some) - len(of_hands)),
        }
    return Fitted(net, motions, found, episodes, held_out, values, finder)


def _fitted(motions: Sequence[Motion], camera: np.ndarray | None, seed: int) -> HandMap:
    """m of demonstrations' motions; the camera is fitted where none is given."""
    tcp = np.concatenate([[one.path.tcp_touch, one.path.tcp_end] for one in motions])
    hands = np.concatenate([one.hand for one in motions])
    # When something is done is less clear than when it is touched.
    confidence = np.concatenate([np.square(one.confidence) * (1.0, _END_COUNTS) for one in motions])
    turn = np.concatenate([[one.turn, np.zeros(2)] for one in motions])
    return fit_map(hands, tcp, confidence, turn, camera, seed)


def metadata_of_analogy(config: FinetuneConfig, table: EpisodeTable, episodes: np.ndarray) -> CheckpointMetadata:
    """What the checkpoint says of how it was made."""
    metadata = metadata_of(config, table, episodes, "finetune")
    clips = trained_on(open_stores(config.analogy.clips)) if config.analogy.clips else ()
    stores = (*metadata.stores, *clips)
    return dataclasses.replace(metadata, history=1, execute_steps=None, pretrained=config.pretrained, stores=stores)


def numbers_of(fitted: HandMap, motions: int) -> dict[str, float]:
    """What there is to be said of a fit, in numbers."""
    return {
        "motions": float(motions),
        "map_error_cm": round(100 * fitted.error, 3),
        "map_tips_mass": round(fitted.tips_mass, 4),
        "map_yaw_degrees": round(float(np.degrees(fitted.deviation)), 2),
    }


def gaps_of(motions: Sequence[Motion]) -> tuple[np.ndarray, np.ndarray]:
    """Return gaps (n,) between predicted tips (pixels of 96) and the gripper's commands (n,) at the same steps, of all
    demonstrations; not so near to the touch that gripper or hand may be closing."""
    gaps, commands = [], []
    for one in motions:
        steps, predicted = predicted_gaps(one.motion)
        for step, gap in zip(steps, predicted, strict=True):
            row = one.path.touch + step
            if abs(step) >= _AWAY and 0 <= row < len(one.path.gripper):
                gaps.append(gap)
                commands.append(one.path.gripper[row])
    return np.array(gaps), np.array(commands)
