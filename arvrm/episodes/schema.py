"""What an episode is, and the check that one is whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from arvrm import robots
from arvrm.interface import KEYPOINTS, LONGEST_SENTENCE, ArraySpec, UserError
from arvrm.robots import CALVIN

EMBODIMENTS = ("robot", "human")
HAND_CAMERAS = ("rgb_static",)
HAND_KEYPOINTS = (len(KEYPOINTS), 2 * len(KEYPOINTS))
HAND_ARRAYS: Mapping[str, ArraySpec] = {
    "keypoints": ArraySpec("float32", (None, 3)),
    "visible": ArraySpec("bool", (None,)),
    "grippers": ArraySpec("float32", (2, 8), required=False),
    "grippers_seen": ArraySpec("bool", (2,), required=False),
    "camera_pose": ArraySpec("float64", (7,), required=False),
}
"""What a human episode holds, N rows each; a robot's arrays and cameras are the robot's own (`interface.Robot`)."""


@dataclass(frozen=True)
class EpisodeHeader:
    """What an episode is, without its data.

    Attributes:
        id: unique in the store.                      embodiment: "robot" or "human".
        instruction: one sentence, "": play.          task: one of interface.TASKS, or "" where unknown.
        scene: "A".."D" or another place's name.      source: what made it, e.g. "playtable".
        group: what must stay on one side of a split. fps: steps a second.
        steps: N, rows of each array.                 image_steps: (F,) int32, steps that have images, ascending.
        cameras: camera -> (height, width) of its F images.
        arrays: name -> (dtype, shape) as stored.     meta: JSON-able details of the source.
    """

    id: str
    embodiment: str
    instruction: str
    task: str
    scene: str
    source: str
    group: str
    fps: float
    steps: int
    image_steps: np.ndarray
    cameras: dict[str, tuple[int, int]]
    arrays: dict[str, tuple[str, tuple[int, ...]]]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        """F, stored images per camera."""
        return len(self.image_steps)

    def frame_at(self, step: int) -> int:
        """Row of the latest image at or before a step; the first one for earlier steps."""
        return max(int(np.searchsorted(self.image_steps, step, side="right")) - 1, 0)

    @property
    def depth_scale(self) -> str:
        """Which of `hands.coordinates.DEPTH_SCALES` a clip's keypoints have."""
        return str(self.meta.get("depth_scale") or ("measured" if self.meta.get("synthetic") else "unstated"))


@dataclass(frozen=True)
class EncodedImages:
    """F images of `height` x `width` pixels, each as `encode_image` made it."""

    height: int
    width: int
    jpegs: tuple[bytes, ...]


@dataclass(frozen=True)
class Episode:
    """One instruction, demonstrated once; attributes as in EpisodeHeader.

    Attributes:
        arrays: name -> (N, ...) array; names, dtypes and shapes are the robot's, or HAND_ARRAYS.
        images: camera -> (F, H, W, 3) uint8 RGB; cameras are the robot's, or HAND_CAMERAS. Who makes an episode piece
            by piece may encode its images on the way: EncodedImages.
        image_steps: (F,) int32, the step at which each image was taken, ascending.
        robot: name of the robot; of a robot episode that says nothing "calvin", of a human one "".
    """

    id: str
    embodiment: str
    instruction: str
    task: str
    scene: str
    source: str
    group: str
    fps: float
    arrays: dict[str, np.ndarray]
    images: dict[str, np.ndarray | EncodedImages]
    image_steps: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)
    robot: str = ""

    def __post_init__(self) -> None:
        if self.embodiment == "robot" and not self.robot:
            object.__setattr__(self, "robot", CALVIN.name)

    @property
    def steps(self) -> int:
        """N, rows of each array."""
        return len(next(iter(self.arrays.values())))


def arrays_of(episode: Episode) -> Mapping[str, ArraySpec]:
    """Return what the arrays of an episode like this must be, in the order of the store."""
    if episode.embodiment == "human":
        return HAND_ARRAYS
    return robots.named(episode.robot, f"episode {episode.id!r}").arrays


def cameras_of(episode: Episode) -> tuple[str, ...]:
    """Return the names of the cameras that an episode like this must have."""
    if episode.embodiment == "human":
        return HAND_CAMERAS
    return tuple(camera.name for camera in robots.named(episode.robot, f"episode {episode.id!r}").cameras)


def validate_episode(episode: Episode) -> None:
    """Check an episode against what its robot, or a human, is to hold.

    Raises:
        UserError: the robot is unknown, or a name, dtype, shape or value is another.
    """
    place = f"episode {episode.id!r}"
    if not episode.id or not episode.id.isprintable() or len(episode.id.encode()) > 300:
        raise UserError(f"{place}: an id has 1 to 300 bytes and no control characters; choose another")
    if episode.embodiment not in EMBODIMENTS:
        raise UserError(f"{place}: embodiment {episode.embodiment!r} is unknown; use {' or '.join(EMBODIMENTS)}")
    if episode.embodiment == "human" and episode.robot:
        raise UserError(f"{place}: robot is {episode.robot!r}; a human episode has none, leave it empty")
    for name in ("source", "group", *(("instruction",) if episode.task else ())):
        if not isinstance(getattr(episode, name), str) or not getattr(episode, name).strip():
            raise UserError(f"{place}: {name} is {getattr(episode, name)!r}; give a text that is not empty")
    for name in ("task", "scene", "instruction"):
        if not isinstance(getattr(episode, name), str):
            raise UserError(f"{place}: {name} is {getattr(episode, name)!r}; give a text, empty where unknown")
    if len(episode.instruction) > LONGEST_SENTENCE:
        raise UserError(f"{place}: instruction has {len(episode.instruction)} letters; give at most {LONGEST_SENTENCE}")
    if not (isinstance(episode.fps, (int, float)) and math.isfinite(episode.fps) and episode.fps > 0):
        raise UserError(f"{place}: fps is {episode.fps!r}; give the steps per second")
    table = arrays_of(episode)
    for name in episode.arrays:
        if name not in table:
            raise UserError(f"{place}: a {episode.embodiment} has no array {name!r}; known: {', '.join(table)}")
    for name, spec in table.items():
        if name in episode.arrays:
            _validate_array(place, name, episode.arrays[name], spec)
        elif spec.required:
            raise UserError(f"{place}: array {name!r} is missing; a {episode.embodiment} episode needs it")
    lengths = {name: len(array) for name, array in episode.arrays.items()}
    steps = next(iter(lengths.values()))
    if len(set(lengths.values())) != 1:
        raise UserError(f"{place}: arrays differ in length ({lengths}); record one row per step")
    if steps == 0:
        raise UserError(f"{place}: it has no steps; leave it out")
    if episode.embodiment == "robot":
        robot = robots.named(episode.robot, place)
        for name in ("actions", "executed"):
            if name in episode.arrays:
                robot.check_actions(f"{place}: {name}", episode.arrays[name])
    elif episode.arrays["keypoints"].shape[1] != episode.arrays["visible"].shape[1]:
        shapes = f"{episode.arrays['keypoints'].shape[1]} and {episode.arrays['visible'].shape[1]}"
        raise UserError(f"{place}: keypoints and visible have {shapes} columns; give one flag per keypoint")
    _validate_images(place, episode, steps)


def _validate_array(place: str, name: str, array: object, spec: ArraySpec) -> None:
    wanted = f"({', '.join(['N', *('21 or 42' if s is None else str(s) for s in spec.shape)])})"
    if not isinstance(array, np.ndarray):
        raise UserError(f"{place}: {name} is {type(array).__name__}; give a NumPy array {spec.dtype} {wanted}")
    fits = array.ndim == 1 + len(spec.shape) and all(
        have in HAND_KEYPOINTS if want is None else have == want
        for have, want in zip(array.shape[1:], spec.shape, strict=False)
    )
    if not fits or array.dtype != np.dtype(spec.dtype):
        raise UserError(f"{place}: {name} is {array.dtype} {array.shape}; it must be {spec.dtype} {wanted}")
    if spec.finite and spec.dtype.startswith("float") and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise UserError(f"{place}: {name} has a NaN or infinity in row {row}; mend the recording or leave it out")


def _validate_images(place: str, episode: Episode, steps: int) -> None:
    cameras = cameras_of(episode)
    if set(episode.images) != set(cameras):
        have = ", ".join(sorted(episode.images)) or "none"
        raise UserError(f"{place}: cameras are {have}; a {episode.embodiment} episode has {', '.join(cameras)}")
    at = episode.image_steps
    if not isinstance(at, np.ndarray) or at.dtype != np.int32 or at.ndim != 1 or len(at) == 0:
        shown = f"{at.dtype} {at.shape}" if isinstance(at, np.ndarray) else repr(at)
        raise UserError(f"{place}: image_steps is {shown}; it must be int32 (F,) with F at least 1")
    if (np.diff(at) <= 0).any() or at[0] < 0 or at[-1] >= steps:
        raise UserError(f"{place}: image_steps {at.tolist()} must ascend within 0..{steps - 1}")
    for camera, images in episode.images.items():
        if isinstance(images, EncodedImages):
            if len(images.jpegs) != len(at):
                raise UserError(f"{place}: {camera} has {len(images.jpegs)} JPEGs, image_steps {len(at)}; give all")
            continue
        good = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4
        if not good or images.shape[0] != len(at) or images.shape[3] != 3 or 0 in images.shape:
            shown = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else repr(type(images))
            raise UserError(f"{place}: {camera} is {shown}; it must be uint8 ({len(at)}, H, W, 3)")
