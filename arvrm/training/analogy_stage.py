"""Stage 2 by analogy: m and a library of motions from demonstrations. Nothing is trained; two minutes for a hundred."""

from __future__ import annotations

import dataclasses
import json
import time
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
from arvrm.model.encoders import TextEncoder
from arvrm.model.places import predict_hands
from arvrm.model.words import sentence_words
from arvrm.moments import moments_of_store
from arvrm.motions import HandMap, Motion, RetrieveConfig, fit_map, path_of, read_camera, save_library
from arvrm.training.config import TrainResult
from arvrm.training.data import split
from arvrm.training.log import progress_bar
from arvrm.training.runs import begin_run, metadata_of
from arvrm.windows import EpisodeTable, store_fingerprint

if TYPE_CHECKING:
    from arvrm.training.finetuning import FinetuneConfig

_PLAIN = 1.0
"""Places' own token tells tasks apart; plain words, less, what it has not learnt."""
_END_COUNTS = 0.2
"""How much the end of a motion counts in fitting m, against its touch."""


@dataclass(frozen=True)
class AnalogyFitConfig:
    """How m and the library of motions are made, with motion=analogy.

    Attributes:
        camera: JSON file of the static camera, calibrated (`motions.read_camera`), or calvin; null: it is fitted from
            where the demonstrations' grippers were and where the hand is predicted there.
        seed: of the map's start.
        retrieve: weights of the terms by which a motion is chosen.
    """

    camera: str | None = None
    seed: int = bounded(0, least=0)
    retrieve: RetrieveConfig = field(default_factory=RetrieveConfig)

    __post_init__ = check_bounds


def fit_analogy(config: FinetuneConfig, table: EpisodeTable, robot: Robot, progress: bool) -> TrainResult:
    """Make a policy by analogy of demonstrations and a stage 1 with places.

    Raises:
        UserError: no stage 1 is given, or it has no places; the robot is not moved by poses; no demonstration touches.
    """
    begin = time.perf_counter()
    if config.pretrained is None:
        raise UserError("motion=analogy: pretrained is null; give a stage 1 that was trained with places")
    stage1 = load_checkpoint(config.pretrained, kind="keypoint_vlm")
    settings = config.analogy
    given = None if settings.camera is None else read_camera(settings.camera)
    episodes, _ = split(table, config.data)
    retrieve = {name: float(value) for name, value in to_dict(settings.retrieve).items()}
    net = AnalogyNet(AnalogyNetConfig(stage1.config, "", retrieve, _PLAIN), robot).eval()
    net.vlm.load_state_dict(stage1.model.state_dict(), strict=True)
    motions = read_motions(net, table, episodes, progress, config.data.cache)
    tcp = np.concatenate([[one.path.tcp_touch, one.path.tcp_end] for one in motions])
    hands = np.concatenate([one.hand for one in motions])
    # When something is done is less clear than when it is touched.
    confidence = np.concatenate([np.square(one.confidence) * (1.0, _END_COUNTS) for one in motions])
    turn = np.concatenate([[one.turn, np.zeros(2)] for one in motions])
    fitted = fit_map(hands, tcp, confidence, turn, given, settings.seed)
    net.keep(dataclasses.asdict(fitted))
    seconds = time.perf_counter() - begin
    values = numbers_of(fitted, len(motions))
    folder = begin_run(config, "finetune", robot)
    if processes.is_main():
        metadata = metadata_of(config, table, episodes, "finetune")
        metadata = dataclasses.replace(metadata, history=1, execute_steps=None, pretrained=config.pretrained)
        net.config = dataclasses.replace(net.config, library=save_library(folder, motions))
        write_checkpoint(folder, net, metadata)
        line = {"step": 0, "split": "train", "seconds": round(seconds, 2), **values}
        with replacing(folder / "metrics.jsonl") as partial:
            partial.write_text(json.dumps(line) + "\n")
    return TrainResult(Path(config.output), 0, seconds, {"train": values})


def numbers_of(fitted: HandMap, motions: int) -> dict[str, float]:
    """What there is to be said of a fit, in numbers."""
    return {
        "motions": float(motions),
        "map_error_cm": round(100 * fitted.error, 3),
        "map_tips_mass": round(fitted.tips_mass, 4),
        "map_yaw_degrees": round(float(np.degrees(fitted.deviation)), 2),
    }


def read_motions(
    net: AnalogyNet, table: EpisodeTable, episodes: np.ndarray, progress: bool, cache: str | None = None
) -> list[Motion]:
    """Make the motions of a table's robot episodes.

    Args:
        cache: folder that keeps the stores' moments, shared by runs; None: they are found anew.

    Raises:
        UserError: there is none that has a touch.
    """
    robot, text = net.robot, TextEncoder(net.config.vlm.text)
    camera, found = robot.cameras[0].name, []
    files = [cache and Path(cache) / f"moments-{store_fingerprint(store)[:32]}.json" for store in table.stores]
    known = [moments_of_store(store, file) for store, file in zip(table.stores, files, strict=True)]
    with progress_bar("motions", len(episodes), progress) as bar:
        for episode in episodes:
            store, name = table.stores[table.store[episode]], str(table.ids[episode])
            header = store.header(name)
            moments = known[table.store[episode]][name]
            bar.update(1)
            if moments.touch_confidence <= 0:
                continue
            arrays = store.arrays(name)
            path = path_of(robot, arrays, moments.touch, moments.end)
            image = store.frames(name, camera, [0])
            hands = predict_hands(net.vlm, text, image, [header.instruction])
            words = sentence_words(net.vlm, text, [header.instruction], net.config.plain)[0]
            start = np.asarray(arrays["robot_obs"][0, :7], np.float64)
            seen = hands.keypoints[0], hands.confidence[0], hands.motion[0], hands.turn[0]
            found.append(Motion(name, "robot", header.instruction, path, start, *seen, words))
    if not found:
        raise UserError(f"motion=analogy: none of {len(episodes)} demonstrations touches anything; look at the stores")
    return found
