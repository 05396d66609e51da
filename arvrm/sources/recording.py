"""Records a unit of demonstrations: what experts do at the play table, as robot episodes or as clips of a hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from arvrm import instructions
from arvrm.episodes import EncodedEpisode, Episode, encode_episode
from arvrm.geometry import intrinsics, look_at, project
from arvrm.interface import CONTROL_HZ
from arvrm.robots.calvin import LANDMARKS
from arvrm.sources.truth import JUDGE, camera_matrix, moments_of

if TYPE_CHECKING:
    from arvrm.sources.playtable import GenerateConfig

SOURCE = "playtable"
ATTEMPTS = 12
"""How often one slot is tried from new starts before it is left out."""
_STREAM = {"robot": 0, "human": 1}
_IDLE = 12
"""Steps that a finished expert is given until the oracle agrees; blocks may still be falling."""
_WORLDS_KEPT = 6


@dataclass(frozen=True)
class Unit:
    """What a worker does at a time: the tasks of episodes `first`, `first` + 1, ... in one scene."""

    number: int
    first: int
    scene: str
    variation: int | None
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class UnitResult:
    """A unit's episodes, failed attempts per task, and slots given up."""

    episodes: tuple[EncodedEpisode, ...]
    failed: dict[str, int]
    left_out: int


def episode_id(config: GenerateConfig, unit: Unit, slot: int) -> str:
    """Id of the episode in a unit's slot, such as robot-A-000123."""
    return f"{config.prefix}{config.embodiment}-{unit.scene}-{unit.first + slot:06d}"


def landmark_positions(fixtures: Any, block_order: Sequence[str], scene_obs: np.ndarray) -> np.ndarray:
    """World positions (m) of LANDMARKS.

    Args:
        scene_obs: (N, 24), blocks in `block_order`.
    Returns:
        (N, 7, 3) float32: centres of the blocks, slider handle, drawer handle, top of the button, bar of the switch.
    """
    points = np.empty((len(scene_obs), len(LANDMARKS), 3))
    for i, name in enumerate(LANDMARKS[:3]):
        at = 6 + 6 * list(block_order).index(name)
        points[:, i] = scene_obs[:, at : at + 3]
    for i, handle, direction, joint in (
        (3, fixtures.slider_handle, fixtures.slider_direction, 0),
        (4, fixtures.drawer_handle, fixtures.drawer_direction, 1),
        (6, fixtures.switch_bar, fixtures.switch_direction, 3),
    ):
        points[:, i] = np.asarray(handle) + scene_obs[:, joint, None] * np.asarray(direction)
    points[:, 5] = fixtures.button_top
    return points.astype(np.float32)


def landmark_pixels(points: np.ndarray, camera: Any, size: int) -> np.ndarray:
    """Project world points (N, P, 3) into a fixed camera's square image: (N, P, 2) float32 u, v; NaN outside it."""
    image = project(points, look_at(camera.eye, camera.target, camera.up), intrinsics(camera.fov, size, size))
    pixels = image[..., :2].astype(np.float32)
    inside = (image[..., 2] > 0) & (pixels >= 0).all(-1) & (pixels < size).all(-1)
    pixels[~inside] = np.nan
    return pixels


def stream(config: GenerateConfig, *key: str | int) -> np.random.Generator:
    """Return a generator of its own for every purpose, unit and attempt; robot and human streams never meet."""
    numbers = [int.from_bytes(k.encode(), "big") if isinstance(k, str) else k for k in key]
    return np.random.default_rng(np.random.SeedSequence([config.seed, _STREAM[config.embodiment], *numbers]))


def _sentences(config: GenerateConfig) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {task: () for task in config.all_tasks}
    if config.instructions in ("own", "both"):
        found = {task: instructions.training_instructions(task) for task in found}
    if config.instructions in ("calvin", "both"):
        theirs = instructions.calvin_instructions(str(config.calvin_root), "training")
        found = {task: found[task] + theirs[task] for task in found}
    return found


@dataclass(frozen=True)
class Recording:
    """One success: arrays with a row per step, images at every `image_stride`-th step."""

    task: str
    noise: float
    chain: int
    """Which of the unit's uninterrupted chains it is in."""
    place: int
    """How many tasks were done before it in that chain."""
    success_step: int
    """Row before which the oracle saw the task done."""
    arrays: dict[str, np.ndarray]
    images: dict[str, np.ndarray]
    image_steps: np.ndarray
    judge: dict[str, Any]
    """Rows of the true moments (`truth.moments_of`)."""


class Stopped(Exception):
    """The run ends; what this unit had so far is dropped."""


class Recorder:
    """Records units in one process; keeps a few worlds, since making one takes as long as an episode."""

    def __init__(self, config: GenerateConfig, stop: Callable[[], bool] = lambda: False) -> None:
        self.config, self.stop = config, stop
        self.sentences = _sentences(config)
        self._worlds: dict[tuple[str, str, int | None], Any] = {}

    def world(self, kind: str, scene: str, variation: int | None) -> Any:
        """The PlayTableEnv ("robot") or HandScene ("human") of a layout. Both forget what happened before."""
        key = (kind, scene, variation)
        if key in self._worlds:
            self._worlds[key] = self._worlds.pop(key)
            return self._worlds[key]
        while len(self._worlds) >= _WORLDS_KEPT:
            self._worlds.pop(next(iter(self._worlds))).close()
        from arvrm.sim.env import PlayTableEnv
        from arvrm.sim.hand import HandScene

        config = self.config
        place = {
            "scene": scene,
            "assets": "official" if config.assets == "calvin" else config.assets,
            "calvin_root": config.calvin_root if config.assets == "calvin" else None,
            "variation": variation,
        }
        sizes = {"static_size": config.static_size, "gripper_size": config.gripper_size}
        make = HandScene(**place) if kind == "human" else PlayTableEnv(**place, **sizes, render_observations=False)
        self._worlds[key] = make
        return make

    def close(self) -> None:
        while self._worlds:
            self._worlds.popitem()[1].close()

    def record(self, unit: Unit) -> UnitResult:
        """Make a unit's episodes. Raises UserError where an episode would not be valid."""
        env = self.world("robot", unit.scene, unit.variation)
        recordings, failed = record_chains(env, unit.tasks, self.config, unit.number, self.stop)
        episodes = []
        for slot, recording in recordings.items():
            episodes.append(encode_episode(self._episode(unit, slot, recording, env), self.config.jpeg_quality))
        return UnitResult(tuple(episodes), dict(failed), len(unit.tasks) - len(episodes))

    def _episode(self, unit: Unit, slot: int, recording: Recording, env: Any) -> Episode:
        config = self.config
        rng = stream(config, "words", unit.number, slot)
        meta: dict[str, Any] = {}
        if config.embodiment == "human":
            scene = self.world("human", unit.scene, unit.variation)
            arrays, images, image_steps, meta = _as_human(recording, scene, config, rng)
        else:
            arrays, images, image_steps = dict(recording.arrays), recording.images, recording.image_steps
            meta["success_step"] = recording.success_step
            meta[JUDGE] = recording.judge | {"camera": camera_matrix(env.description.static_camera, config.static_size)}
            arrays["landmarks"] = landmark_positions(env.fixtures, env.block_order, arrays["scene_obs"])
            camera = env.description.static_camera
            arrays["landmark_pixels"] = landmark_pixels(arrays["landmarks"], camera, config.static_size)
        sentences = self.sentences[recording.task]
        return Episode(
            id=episode_id(config, unit, slot),
            embodiment=config.embodiment,
            instruction=sentences[rng.integers(len(sentences))],
            task=recording.task,
            scene=unit.scene,
            source=SOURCE,
            group=f"{config.prefix}{config.embodiment}-{unit.scene}-{unit.number:05d}-chain-{recording.chain}",
            fps=float(CONTROL_HZ),
            arrays=arrays,
            images=images,
            image_steps=image_steps,
            meta={
                "synthetic": True, "variation": unit.variation, "noise": round(recording.noise, 4),
                "place_in_chain": recording.place, **meta,
            },
        )  # fmt: skip


@dataclass
class _Attempt:
    """A task being done: where on the tape it began, and what the oracle compares with."""

    slot: int
    task: str
    begin: int
    start_info: Any
    noise: float
    chain: int
    place: int
    expert: Any = None
    success: int | None = None


class _Tape:
    """What happened since a reset, step by step; episodes are cut from it and may overlap."""

    def __init__(self, env: Any, config: GenerateConfig) -> None:
        self.env, self.stride = env, config.image_stride
        self.render = config.embodiment == "robot"
        self.rows: list[tuple[np.ndarray, ...]] = []
        self.infos = [env.task_info()]
        self.images: dict[int, dict[str, np.ndarray]] = {}

    def step(self, actor: Any, begins: Sequence[int]) -> Any:
        """Execute one action of an expert; render where an episode that began at one of `begins` needs it."""
        env, now = self.env, len(self.rows)
        if self.render and any((now - begin) % self.stride == 0 for begin in begins):
            self.images[now] = env.render_cameras()
        state = env.robot_obs(), env.scene_obs(), env.target_pose()
        executed = actor.act()
        self.rows.append((*state, actor.label, executed))
        self.infos.append(env.step(executed)[4])
        return self.infos[-1]

    def cut(self, attempt: _Attempt, end: int) -> Recording:
        rows = self.rows[attempt.begin : end]
        arrays = {}
        for name, values in zip(_ROWS, zip(*rows, strict=True), strict=True):
            arrays[name] = np.array(values, np.float32 if name in ("actions", "executed") else np.float64)
        at = np.arange(0, len(rows), self.stride, dtype=np.int32)
        frames = [self.images[attempt.begin + step] for step in at] if self.render else []
        images = {camera: np.stack([frame[camera] for frame in frames]) for camera in (frames[0] if frames else ())}
        success = int(attempt.success) - attempt.begin
        judge = moments_of(attempt.task, attempt.start_info, self.infos[attempt.begin :], arrays["scene_obs"], success)
        return Recording(attempt.task, attempt.noise, attempt.chain, attempt.place, success, arrays, images, at, judge)


_ROWS = ("robot_obs", "scene_obs", "target_pose", "actions", "executed")


def record_chains(
    env: Any, tasks: Sequence[str], config: GenerateConfig, number: int, stop: Callable[[], bool] = lambda: False
) -> tuple[dict[int, Recording], Counter[str]]:
    """Do a unit's tasks, one after the other where the state admits it, from a new start where it does not.

    A task begins in the state in which the oracle saw the one before done, as in CALVIN's evaluation; the steps in
    which the expert finishes the former motion belong to both episodes.

    Args:
        number: the unit's, which decides all that is random.
        stop: asked before each task; True ends it all with an exception.

    Returns: slot (index into `tasks`) -> recording, in order of slots; and failed attempts per task.
    """
    from arvrm.sim.experts import Expert
    from arvrm.sim.starts import admissible_tasks, fresh_start
    from arvrm.sim.tasks import TaskOracle

    rng, oracle = stream(config, "unit", number), TaskOracle()
    remaining, tries = list(range(len(tasks))), Counter[int]()
    found: dict[int, Recording] = {}
    failed: Counter[str] = Counter()
    chain = -1

    def give_up_or_retry(slot: int) -> None:
        failed[tasks[slot]] += 1
        tries[slot] += 1
        if tries[slot] >= ATTEMPTS:
            remaining.remove(slot)

    def begin(slot: int, tape: _Tape, info: Any, place: int) -> _Attempt:
        return _Attempt(slot, tasks[slot], len(tape.rows), info, float(rng.uniform(0, config.noise)), chain, place)

    while remaining:
        slot = int(rng.choice(remaining))
        if not fresh_start(env, tasks[slot], rng):
            give_up_or_retry(slot)
            continue
        chain += 1
        tape = _Tape(env, config)
        attempt: _Attempt | None = begin(slot, tape, env.task_info(), 0)
        last = None
        while attempt is not None:
            if stop():
                raise Stopped
            attempt.expert = Expert(attempt.task, env, rng, attempt.noise, last)
            idle = 0
            while attempt.success is None and idle < _IDLE and len(tape.rows) - attempt.begin < config.max_steps:
                info = tape.step(attempt.expert, [attempt.begin])
                idle += attempt.expert.finished
                if oracle.completed(attempt.start_info, info, (attempt.task,)):
                    attempt.success = len(tape.rows)
            if attempt.success is None:
                give_up_or_retry(attempt.slot)
                break
            remaining.remove(attempt.slot)
            goes_on = attempt.place + 1 < config.chain_length
            options = [s for s in remaining if tasks[s] in admissible_tasks(env)] if goes_on else []
            following = None
            if options:
                # The motion goes on while it is recorded past success, and the next task has begun meanwhile.
                slot = int(rng.choice(_preferred(options, tasks, rng)))
                following = begin(slot, tape, info, attempt.place + 1)
            begins = [attempt.begin] + ([following.begin] if following else [])
            for _ in range(config.after_success_steps):
                if following and attempt.expert.finished:
                    break
                info = tape.step(attempt.expert, begins)
                if following and following.success is None:
                    if oracle.completed(following.start_info, info, (following.task,)):
                        following.success = len(tape.rows)
            found[attempt.slot] = tape.cut(attempt, len(tape.rows))
            attempt, last = following, attempt.expert
    return {slot: found[slot] for slot in sorted(found)}, failed


def _preferred(options: list[int], tasks: Sequence[str], rng: np.random.Generator) -> list[int]:
    """Mostly keep lifts for last: what follows a lift can only be putting the block somewhere."""
    others = [slot for slot in options if not tasks[slot].startswith("lift")]
    return others if others and rng.random() < 0.7 else options


def _as_human(
    recording: Recording, scene: Any, config: GenerateConfig, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray, dict[str, Any]]:
    """Film the motion with a hand: arrays, images, image steps, and what of the style is no secret of the camera's."""
    from arvrm.sim.hand_body import HandTrajectory

    seed = int(rng.integers(2**31 - 1))
    trajectory = HandTrajectory.from_arrays(recording.arrays)
    clip = scene.render(trajectory, seed, config.static_size, config.image_stride)
    arrays = {"keypoints": clip["keypoints"], "visible": clip["visible"]}
    style = {name: clip["meta"][name] for name in ("style_seed", "side", "speed")}
    # A clip plays at a speed of its own: the true moments move with it.
    rows = clip["source_rows"]
    at = {
        name: int(np.abs(rows - recording.judge[name]).argmin()) for name in ("touch", "end") if name in recording.judge
    }
    style[JUDGE] = recording.judge | at
    return arrays, {"rgb_static": clip["images"]}, clip["image_steps"], style
