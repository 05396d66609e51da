"""A LeRobot data set into a store: of CALVIN's robot, or of any that is described (`lerobot.describe`)."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from arvrm.config import bounded, check_bounds
from arvrm.episodes import Episode, EpisodeStore, EpisodeWriter
from arvrm.geometry import angle_difference
from arvrm.interface import UserError
from arvrm.robots import CALVIN, register
from arvrm.robots.calvin import ARM, relative_action
from arvrm.robots.described import DescribedRobot, described_as, load_description
from arvrm.sources.lerobot.dataset import DataSet, Part, text
from arvrm.sources.lerobot.describe import Facts, derive, edited, tell
from arvrm.sources.lerobot.layout import CAMERA_FEATURES
from arvrm.sources.lerobot.rows import matrix
from arvrm.sources.pipeline import LeftOut, encode_in_order, store_in_order

_TOP_NAMES = ("observation.images.top", "observation.images.static", "observation.images.rgb_static", "image")
_WRIST_NAMES = (
    *("observation.images.wrist", "observation.images.gripper", "observation.images.rgb_gripper"),
    "wrist_image",
)
_RELATIVE_NAMES = ("action.relative", "action.rel", "rel_actions")
_NEAR_M, _NEAR_RAD = 0.2, 1.0
"""An action that stays so near to the measured pose is a pose itself; CALVIN's targets lead by a few centimetres."""


@dataclass(frozen=True)
class ConvertLeRobotConfig:
    """What `arvrm convert lerobot` does.

    Attributes:
        input: the data set's folder, of format v3 or v2.
        output: the store's folder.
        robot: "calvin", or a JSON file that `arvrm describe lerobot` wrote; null: CALVIN's where the state has its 15
            numbers and the action its 7, else described by the data set and by `facts`.
        facts: what the data set does not tell of its robot (not of CALVIN's).
        top, wrist: features that become CALVIN's rgb_static and rgb_gripper; None: found by name.
        action: feature with CALVIN's relative actions; None: found by name, or worked out from absolute ones.
        instruction: the sentence of the episodes that have none.
        image_every: store every n-th image; a window's stride must be a multiple.
        image_side: store images as squares of so many pixels, as training would resize them; null: as they are.
        prefix: begins every id and group, so that the stores of several data sets can be merged.
        jpeg_quality: 1 to 100.
        workers: threads that write; 0: one per core (one thread decodes).
        resume, overwrite: continue or replace a store that exists.
    """

    input: str
    output: str
    robot: str | None = None
    facts: Facts = field(default_factory=Facts)
    top: str | None = None
    wrist: str | None = None
    action: str | None = None
    instruction: str | None = None
    image_every: int = bounded(1, least=1, most=10_000)
    image_side: int | None = bounded(None, least=8, most=4096)
    prefix: str = ""
    jpeg_quality: int = bounded(92, least=1, most=100)
    workers: int = bounded(0, least=0, most=1024)
    resume: bool = False
    overwrite: bool = False

    __post_init__ = check_bounds


@dataclass(frozen=True)
class LeRobotReport:
    """What became of a data set.

    Attributes:
        store, episodes, steps: the store and what it holds.
        left_out: id -> why an episode was left out.
        said: how the data set was understood, for a person.
    """

    store: str
    episodes: int
    steps: int
    left_out: dict[str, str] = field(default_factory=dict)
    said: tuple[str, ...] = ()


class _Reader(Protocol):
    """How one robot's episodes are made of a data set.

    Attributes:
        robot: its name.
        cameras: camera of the store -> feature.
        settings: what a store must have been made with to be continued.
        said: as in `LeRobotReport`.
        manifest: what stands in the store's manifest besides.
    """

    robot: str
    cameras: dict[str, str]
    settings: dict[str, Any]
    said: tuple[str, ...]
    manifest: dict[str, Any]

    def arrays(self, table: Any, steps: int) -> dict[str, np.ndarray]: ...


def convert_lerobot(config: ConvertLeRobotConfig) -> LeRobotReport:
    """Convert a LeRobot data set into a store; episodes that cannot be read are left out.

    An episode in which the task changes becomes several, in one group: sentences are those of the frames.

    Raises:
        UserError: the data set is of another version, lacks a feature, cannot be read or does not tell all of its robot
            (what is missing is named); or the output exists.
    """
    data = DataSet(config.input)
    reader: _Reader = _Calvin(data, config) if _is_calvin(data, config) else _Described(data, config)
    settings = {**reader.settings, "robot_type": data.info.get("robot_type")}
    for name, usual in (("prefix", ""), ("instruction", None), ("image_every", 1), ("image_side", None)):
        if getattr(config, name) != usual:
            settings[name] = getattr(config, name)
    manifest = {"source": "lerobot", "settings": settings, "index_sha256": data.digest(), **reader.manifest}

    def read(part: Part) -> Episode:
        return _episode(data, reader, config, part)

    with EpisodeWriter(config.output, manifest, config.resume, config.overwrite, config.jpeg_quality) as writer:
        todo = [part for part in data.parts(config.prefix) if not writer.has(part.id)]
        # Videos are read from front to back, so one thread reads; more would make each other jump.
        results = encode_in_order(todo, read, lambda part: part.steps, config.jpeg_quality, workers=1)
        left_out = data.problems | {part.id: failure.reason for part, failure in store_in_order(writer, results)}
    data.close()
    counts = EpisodeStore(config.output).manifest["counts"]
    return LeRobotReport(config.output, counts["episodes"], counts["steps"], left_out, reader.said)


def _is_calvin(data: DataSet, config: ConvertLeRobotConfig) -> bool:
    if config.robot is not None or config.facts != Facts():
        return config.robot == CALVIN.name
    asked = config.top or config.wrist or config.action
    action = data.shape(config.action or "action") or data.shape(_RELATIVE_NAMES[0])
    return bool(asked) or (data.shape("observation.state") == (15,) and action in ((7,), ()))


def _episode(data: DataSet, reader: _Reader, config: ConvertLeRobotConfig, part: Part) -> Episode:
    """Return the episode of a part. Raises LeftOut where it cannot be read."""
    table = data.table(part)
    row, steps = part.row, part.steps
    instruction = _instruction(data, config, part, reader)
    times = data.times(table)
    arrays = reader.arrays(table, steps)
    image_steps = np.arange(steps, dtype=np.int32)
    if row.get("arvrm/image_steps"):
        stated = np.array(row["arvrm/image_steps"], np.int64)
        if stated.min() < 0 or stated.max() >= steps:
            raise LeftOut("image steps beyond its end")
        image_steps = stated.astype(np.int32)
    image_steps = image_steps[:: config.image_every]
    images: dict[str, Any] = {}
    for camera, feature in reader.cameras.items():
        found = data.images(part, feature, table, times, image_steps)
        if config.image_side is not None:
            found = _squares(found, config.image_side)
        images[camera] = found
    try:
        meta = json.loads(row.get("arvrm/meta") or "{}")
    except (ValueError, TypeError, RecursionError) as error:
        raise LeftOut(f"arvrm/meta is no JSON ({error})") from error
    return Episode(
        id=part.id,
        embodiment="robot",
        instruction=instruction,
        task=text(row, "arvrm/task", ""),
        scene=text(row, "arvrm/scene", ""),
        source=text(row, "arvrm/source", "lerobot"),
        group=config.prefix + text(row, "arvrm/group", f"lerobot/{row['episode_index']:06d}"),
        fps=data.fps,
        arrays=arrays,
        images=images,
        image_steps=image_steps,
        meta=meta,
        robot=reader.robot,
    )


def _squares(images: np.ndarray, side: int) -> np.ndarray:
    import torch

    from arvrm.resize import resize

    return np.concatenate([resize(torch.from_numpy(image[None]), side).numpy() for image in images])


def _instruction(data: DataSet, config: ConvertLeRobotConfig, part: Part, reader: _Reader) -> str:
    try:
        found = data.instruction(part)
    except LeftOut:
        if config.instruction is None:
            raise
        found = ""
    if not found.strip() and reader.robot != CALVIN.name and config.instruction is None:
        raise LeftOut("has no sentence; give one with --instruction")
    return found if found.strip() else config.instruction or found


class _Described:
    """See `_Reader`: a robot that a description says all of."""

    def __init__(self, data: DataSet, config: ConvertLeRobotConfig) -> None:
        for name in ("top", "wrist", "action"):
            if getattr(config, name) is not None:
                raise UserError(f"--{name} is CALVIN's alone; say facts.{'action' if name == 'action' else 'static'}")
        self.data, said = data, []
        if config.robot is None:
            description, notes = derive(data, config.facts)
            said, place = tell(description, notes), f"{data.root} (say facts.KEY=VALUE, or --robot FILE.json)"
        elif config.robot.endswith(".json"):
            description, place = edited(load_description(config.robot), config.facts), config.robot
        else:
            raise UserError(f"--robot {config.robot}: give calvin, or a file that `arvrm describe lerobot` wrote")
        description = _with_features(data, description, place)
        robot = DescribedRobot(description, place)
        register(robot)
        known = robot.description
        self.robot, self._known, self.said = robot.name, robot, tuple(said)
        self.cameras = {camera.name: camera.feature for camera in known.cameras}
        self.manifest = {"robot_description": described_as(robot)}
        self.settings: dict[str, Any] = {}
        data.want({*known.state.features, *known.action.features, *self._inline()}, list(self.cameras.values()))

    def _inline(self) -> set[str]:
        return {feature for feature in self.cameras.values() if not self.data.is_video(feature)}

    def arrays(self, table: Any, steps: int) -> dict[str, np.ndarray]:
        known = self._known.description
        actions = self.data.values(table, known.action.features)
        if not np.isfinite(actions).all():
            raise LeftOut(f"{', '.join(known.action.features)} holds NaN or infinity")
        return {
            "state": self.data.values(table, known.state.features),
            "actions": self._known.recorded(actions.astype(np.float32)),
        }


def _with_features(data: DataSet, description: Any, place: str) -> Any:
    """Return a description whose features are named, and are this data set's; raises UserError where they are not."""
    cameras = []
    for camera in description.cameras:
        tries = (camera.feature, f"observation.images.{camera.name}", f"observation.{camera.name}", camera.name)
        feature = next((name for name in tries if name in data.cameras), None)
        if feature is None:
            have = ", ".join(data.cameras) or "none"
            raise UserError(f"{place}: camera {camera.name}: {data.root} has no such feature; it has {have}")
        cameras.append(dataclasses.replace(camera, feature=feature))
    changed: dict[str, Any] = {"cameras": tuple(cameras)}
    for key, usual in (("state", "observation.state"), ("action", "action")):
        numbers = getattr(description, key)
        features = numbers.features or (usual,)
        missing = [name for name in features if name not in data.features]
        if missing:
            raise UserError(f"{place}: {key}: {data.root} has no feature {missing[0]!r}; name it in {key}.features")
        count = sum(math.prod(data.shape(name)) for name in features)
        if count != len(numbers.names):
            raise UserError(
                f"{place}: {key} names {len(numbers.names)} numbers, {', '.join(features)} of {data.root} has {count}"
            )
        changed[key] = dataclasses.replace(numbers, features=features)
    if data.fps != description.control_hz:
        raise UserError(f"{place}: control_hz is {description.control_hz:g}, {data.root} has {data.fps:g}; correct it")
    return dataclasses.replace(description, **changed)


class _Calvin:
    """See `_Reader`: CALVIN's robot, as the community names its features."""

    robot = CALVIN.name
    manifest: dict[str, Any] = {}

    def __init__(self, data: DataSet, config: ConvertLeRobotConfig) -> None:
        if config.facts != Facts():
            raise UserError("facts: CALVIN's robot is known; leave them out, or --robot")
        self.data = data
        self.names = self._choose(config)
        self.cameras = {camera: self.names[camera] for camera in CAMERA_FEATURES}
        self.settings: dict[str, Any] = {"features": self.names}
        wanted = {*self.names.values(), "action.absolute", *(f"arvrm.{name}" for name in CALVIN.arrays)}
        data.want(wanted, list(self.cameras.values()))
        self.said: tuple[str, ...] = ()
        if config.robot is None:
            self.said = ("read as CALVIN's robot, by its 15 numbers of state; another one: --robot FILE.json",)

    def _choose(self, config: ConvertLeRobotConfig) -> dict[str, str]:
        root, features, cameras = self.data.root, self.data.features, self.data.cameras
        chosen = {}
        for array, option, wanted, known in (
            ("rgb_static", "top", config.top, _TOP_NAMES),
            ("rgb_gripper", "wrist", config.wrist, _WRIST_NAMES),
        ):
            found = [wanted] if wanted else [name for name in known if name in cameras]
            if not found or found[0] not in cameras:
                have = ", ".join(cameras) or "none"
                raise UserError(f"{root}: no camera for {array}; pass --{option} with one of: {have}")
            chosen[array] = found[0]
        if self.data.shape("observation.state") != CALVIN.arrays["robot_obs"].shape:
            shape = features.get("observation.state", {}).get("shape")
            raise UserError(f"{root}: observation.state has shape {shape}; CALVIN's has 15 values")
        if config.action and config.action not in features:
            raise UserError(f"{root}: no feature {config.action!r}; it has {', '.join(features)}")
        relative = [config.action] if config.action else [n for n in _RELATIVE_NAMES if n in features]
        chosen["actions"] = relative[0] if relative else "action"
        if chosen["actions"] not in features:
            raise UserError(f"{root}: has no action; pass --action with one of: {', '.join(features)}")
        for array, feature in (("scene_obs", "observation.environment_state"), ("absolute_actions", "action.absolute")):
            if self.data.shape(feature) == CALVIN.arrays[array].shape:
                chosen[array] = feature
        return {**chosen, "robot_obs": "observation.state"}

    def arrays(self, table: Any, steps: int) -> dict[str, np.ndarray]:
        arrays = {}
        for name, spec in CALVIN.arrays.items():
            column = next((c for c in (f"arvrm.{name}", self.names.get(name, "")) if c in table.column_names), None)
            if column is not None:
                values = matrix(self.data.pa, table[column], column, math.prod(spec.shape))
                arrays[name] = values.reshape(steps, *spec.shape).astype(spec.dtype)
        arrays["actions"] = self._actions(table, arrays)
        arrays.setdefault("executed", arrays["actions"])
        return arrays

    def _actions(self, table: Any, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """Return relative actions: those stored, or what follows from absolute ones and the measured pose."""
        name, width = self.names["actions"], ARM + 1
        if name not in table.column_names or "robot_obs" not in arrays:
            raise LeftOut(f"lacks column {name if name not in table.column_names else self.names['robot_obs']!r}")
        actions, state = matrix(self.data.pa, table[name], name, width), arrays["robot_obs"]
        if not np.isfinite(actions).all():
            raise LeftOut(f"{name} holds NaN or infinity")
        # The community's default action is the absolute one, and then both columns agree.
        same = "action.absolute" in table.column_names and np.array_equal(
            actions, matrix(self.data.pa, table["action.absolute"], "action.absolute", width)
        )
        distance = np.abs(actions[:, :3] - state[:, :3]).max()
        turn = np.abs(angle_difference(actions[:, 3:ARM], state[:, 3:ARM])).max()
        if (same and name == "action") or (distance < _NEAR_M and turn < _NEAR_RAD):
            return relative_action(state, actions, actions[:, ARM]).astype(np.float32)
        if (largest := np.abs(actions[:, :ARM]).max()) > 1 + 1e-6:
            raise LeftOut(
                f"{name} reaches {largest:g}, so it is no relative action, and it is far from the measured pose; name "
                "the right feature with --action or make relative actions of it (clipping would make nonsense)"
            )
        return actions.astype(np.float32)
