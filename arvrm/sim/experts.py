"""Scripted experts for all 34 tasks: closed-loop motions through the 7-D relative action, from privileged state.

An expert is a program of *moves*. A move servoes the controller's target pose (not the measured TCP, which lags behind
it) towards a goal that is recomputed from the state at every step, so noise, slips and pushes are corrected where they
happen; a program checks what its moves achieved and tries again where they failed. Everything about the layout comes
from `env.fixtures` and the blocks' sizes: the same code solves every scene.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import numpy as np

from arvrm.geometry import angle_difference, euler_to_matrix, matrix_to_euler, quaternion_to_matrix
from arvrm.interface import BLOCKS, TASKS, UserError
from arvrm.robots.calvin import EULER_STEP_RAD, POSITION_STEP_M

OPEN, CLOSE = 1.0, -1.0
FORWARD = np.pi / 2
"""The gripper's yaw at which its fingers open along world x, and about which the wrist has most room."""

TRAVEL_SPEED = 0.016
"""Metres a step in free space."""
SPEED = 0.013
SLOW = 0.008
TURN = 0.045
"""Radians a step."""
LEASH = 0.045
"""How far (m) the target may run ahead of the measured TCP; a blocked arm is not pushed harder than this."""
TIP = 0.02
"""The fingertips are this far (m) below the TCP."""
ABOVE_CENTRE = 0.006
"""A grasp's TCP height over the block's centre."""
HOVER = 0.07
TRAVEL_HEIGHT = 0.57
_PUSH_SPEED, _SLIDE = 0.016, 0.019
_DOOR_HALF, _HAND_HALF = 0.14, 0.105
_PALM = 0.11
"""The hand's widest part is this far (m) above the fingertips."""
_MOST_ASIDE = 0.25
"""Radians that open fingers may lean to a side: with more, one of them passes over the block."""
_DOOR = ("table", "slide_link")
_HANDLE_HALF, _HANDLE_REACH = 0.022, 0.045
"""Half the width of the door's handle and how far in front of its grasp point (y) nothing is below it (m)."""
FRONT = -0.105
"""World y (m) at which a vertical hand passes the sliding door's handle."""
CABINET_TILT = 0.55
SWITCH_TILT = 0.65

Pose = tuple[np.ndarray, float, "float | np.ndarray"]
"""Position (3, m), yaw and tilt (rad) of a goal: the gripper points down, turned by yaw, then leaning as `_Motion.lean`
makes of the tilt."""
Program = Generator[np.ndarray, None, bool]


class _Failed(Exception):
    """A move could not do what its program needs; the program starts again."""


@dataclass(frozen=True)
class _BlockState:
    name: str
    position: np.ndarray
    rotation: np.ndarray
    size: np.ndarray

    @property
    def vertical(self) -> int:
        """Which of the block's own axes points up or down."""
        return int(np.argmax(np.abs(self.rotation[2])))

    @property
    def half_height(self) -> float:
        return float(np.abs(self.rotation[2]) @ self.size) / 2

    @property
    def top(self) -> float:
        return float(self.position[2]) + self.half_height

    @property
    def bottom(self) -> float:
        return float(self.position[2]) - self.half_height

    def extent(self, direction) -> float:
        """Half the block's extent (m) along a world direction."""
        return float(np.abs(self.rotation.T @ np.asarray(direction, dtype=float)) @ self.size) / 2

    def corners(self) -> np.ndarray:
        signs = np.array(list(itertools.product((-0.5, 0.5), repeat=3)))
        return self.position + (signs * self.size) @ self.rotation.T

    def distance(self, point) -> float:
        """Horizontal distance (m) from a point to the block's outline; 0 inside."""
        axes = [i for i in range(3) if i != self.vertical]
        local = self.rotation.T @ (np.asarray(point, dtype=float) - self.position)
        outside = np.maximum(np.abs(local) - self.size / 2, 0)[axes]
        return float(np.hypot(*outside))


class _View:
    """The privileged state at this step."""

    def __init__(self, env):
        robot, scene = np.asarray(env.robot_obs()), np.asarray(env.scene_obs())
        self.tcp, self.euler, self.width, self.last_gripper = robot[:3], robot[3:6], float(robot[6]), float(robot[14])
        self.target = np.asarray(env.target_pose(), dtype=float)
        self.slider, self.drawer, self.button, self.switch = (float(v) for v in scene[:4])
        self.bulb, self.led = bool(round(float(scene[4]))), bool(round(float(scene[5])))
        sizes = {block.name: np.array(block.size) for block in env.description.blocks}
        self.blocks = {
            name: _BlockState(name, scene[6 + 6 * i : 9 + 6 * i], euler_to_matrix(scene[9 + 6 * i : 12 + 6 * i]),
                              sizes[name])
            for i, name in enumerate(env.block_order)
        }  # fmt: skip

    def held(self) -> str | None:
        """Return the block between the closed fingers, if any."""
        if self.last_gripper > 0 or not 0.012 < self.width < 0.079:
            return None
        name = min(self.blocks, key=lambda n: np.linalg.norm(self.blocks[n].position - self.tcp))
        return name if np.linalg.norm(self.blocks[name].position - self.tcp) < 0.045 else None


def lean_matrix(lean) -> np.ndarray:
    """Return the rotation (3, 3) that makes fingers pointing down point towards (x, y) = `lean` (rad)."""
    x, y = (float(part) for part in lean)
    angle = np.hypot(x, y)
    half = angle / 2
    scale = np.sin(half) / angle if angle > 1e-9 else 0.5
    return quaternion_to_matrix([y * scale, -x * scale, 0.0, np.cos(half)])


def grip_matrix(yaw: float, lean) -> np.ndarray:
    """Return the (3, 3) orientation of a downward gripper with this yaw (rad), leaning as `lean_matrix` says."""
    return lean_matrix(lean) @ euler_to_matrix([np.pi, 0, yaw])


def _yaw_and_lean(rotation: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the yaw and lean of which `grip_matrix` makes this orientation."""
    approach = rotation[:, 2]
    across = np.hypot(approach[0], approach[1])
    lean = np.arctan2(across, -approach[2]) * approach[:2] / max(across, 1e-9)
    upright = lean_matrix(lean).T @ rotation @ euler_to_matrix([np.pi, 0, 0])
    return float(np.arctan2(upright[1, 0], upright[0, 0])), lean


class Expert:
    """Does one task. Call `act` once per control step and execute what it returns; stop when `finished`.

    Args:
        task: one of interface.TASKS.
        env: a PlayTableEnv with relative actions; read at every `act`.
        rng: the source of noise.
        noise: 0 acts cleanly. 1 adds smooth action noise and, now and then, a short shove off the path; `label` keeps
            the clean action from the same state. Noise is small while something is held or pushed.
        after: the expert of the previous task. If it is not finished, this one lets it finish first: CALVIN's oracle
            ends an instruction at a threshold, with a drawer half open and the hand still in it.

    Attributes:
        finished: the whole motion is over, the hand is in a clear pose (it keeps holding a lifted block).
        acts: how often it has acted.
        finished_at: the number of the `act` at which it finished, counted from 1.
        label: (7,) float64, the clean action of the last `act`.

    Raises:
        UserError: unknown task.
    """

    def __init__(self, task: str, env, rng: np.random.Generator, noise: float = 0.0, after: Expert | None = None):
        if task not in TASKS:
            raise UserError(f"task: {task!r} is unknown; choose one of arvrm.interface.TASKS")
        self.task, self.env, self.finished = task, env, False
        self.label = np.array([0, 0, 0, 0, 0, 0, OPEN])
        self._after = after if after is not None and not after.finished else None
        self._noise = _Noise(rng, noise)
        self._motion = _Motion(env)
        self._program: Program | None = None
        self.acts = 0
        self.finished_at = 0

    def act(self) -> np.ndarray:
        """Return the (7,) float64 relative action for the state the environment is in now."""
        self.acts += 1
        if self._after is not None:
            if not self._after.finished:
                action = self._after.act()
                self.label = self._after.label
                if not self._after.finished:
                    return action
            self._after = None
        if self._program is None:
            self._program = self._motion.run(self.task)
        self._motion.look()
        if self.finished:
            self.label = self._motion.rest()
        else:
            try:
                self.label = next(self._program)
            except StopIteration:
                self.finished, self.finished_at = True, self.acts
                self.label = self._motion.rest()
        return self._noise.disturb(self.label, self._motion.delicate or self.finished)


class _Noise:
    """Smooth action noise and short shoves."""

    def __init__(self, rng: np.random.Generator, level: float):
        self.rng, self.level = rng, float(level)
        self.smooth, self.shove, self.left = np.zeros(6), np.zeros(6), 0

    def disturb(self, action: np.ndarray, delicate: bool) -> np.ndarray:
        if self.level <= 0:
            return action
        # The same draws whatever happens, so that a changed motion does not change the noise after it.
        draw, start, length = self.rng.normal(size=6), self.rng.random(), int(self.rng.integers(4, 9))
        kick = self.rng.normal(size=6)
        self.smooth = 0.7 * self.smooth + 0.7 * draw
        if self.left == 0 and start < 0.012 * self.level and not delicate:
            self.left = length
            self.shove = np.concatenate([0.7 * kick[:3] / np.linalg.norm(kick[:3]), 0.2 * kick[3:]])
        scale = np.array([0.12] * 3 + [0.08] * 3) * self.level * (0.25 if delicate else 1.0)
        disturbed = action[:6] + scale * self.smooth
        if self.left > 0:
            self.left -= 1
            if not delicate:
                disturbed = disturbed + self.shove
        return np.concatenate([np.clip(disturbed, -1, 1), action[6:]])


class _Motion:
    """The programs and the moves they are made of. `look` must be called before each step of a program."""

    def __init__(self, env):
        self.env, self.fixtures = env, env.fixtures
        self.delicate = False
        self.attempt = 0
        self.wanted: str | None = None
        # Blocks that nothing but the table touches: those that CALVIN lets one push into the drawer from here.
        touched = {name: block["contacts"] for name, block in env.task_info()["blocks"].items()}
        self.free = {name for name, contacts in touched.items() if contacts == {("table", "base_link")}}
        # A block that touches the door on the table must touch it after a push too.
        self.at_door = {name for name, contacts in touched.items() if contacts == {("table", "base_link"), _DOOR}}
        self.pushed_from: dict[str, np.ndarray] = {}
        self._gripper: float | None = None
        self.look()

    def look(self) -> None:
        self.view = _View(self.env)

    # -- single steps ----------------------------------------------------------------------------------------------

    def rest(self) -> np.ndarray:
        """Stand still."""
        gripper = self._gripper if self._gripper is not None else np.sign(self.view.last_gripper) or OPEN
        return np.array([0, 0, 0, 0, 0, 0, gripper])

    def toward(self, pose: Pose, gripper: float, speed: float = SPEED) -> np.ndarray:
        """Return the action that brings the target a step nearer to a pose."""
        position, yaw, tilt = pose
        target, tcp = self.view.target, self.view.tcp
        delta = np.asarray(position, dtype=float) - target[:3]
        length = np.linalg.norm(delta)
        if length > speed:
            delta *= speed / length
        lead = target[:3] + delta - tcp
        ahead = np.linalg.norm(lead)
        if ahead > LEASH:
            delta = tcp + lead * (LEASH / ahead) - target[:3]
        euler = matrix_to_euler(grip_matrix(yaw, self.lean(position, tilt)))
        other = np.array([euler[0] + np.pi, np.pi - euler[1], euler[2] + np.pi])
        turn = min((angle_difference(e, target[3:6]) for e in (euler, other)), key=np.linalg.norm)
        angle = np.linalg.norm(turn)
        if angle > TURN:
            turn = turn * (TURN / angle)
        self._gripper = gripper
        motion = np.concatenate([delta / POSITION_STEP_M, turn / EULER_STEP_RAD])
        return np.append(np.clip(motion, -1, 1), gripper)

    def lean(self, position, tilt) -> np.ndarray:
        """Return how the fingers lean at a position: towards +y by `tilt` at least, and outwards near the arm's reach.

        A vertical hand reaches 0.74 m from the base's axis, one that leans outwards by 0.35 rad some 0.1 m more. Give
        an array (2,) as `tilt` to keep that lean wherever the hand is.
        """
        if isinstance(tilt, np.ndarray):
            return tilt
        out = np.asarray(position[:2], dtype=float) - self.env.description.robot_position[:2]
        distance = np.linalg.norm(out)
        amount = np.clip(2.8 * (distance - 0.735 + 0.3 * (position[2] - 0.465)), 0, 0.36)
        lean = out / max(distance, 1e-9) * amount
        return np.array([lean[0], max(lean[1], tilt)])

    def _missing(self, pose: Pose) -> tuple[float, float, float]:
        """Distance of target and TCP from a pose (m) and the target's angle from it (rad)."""
        position, yaw, tilt = pose
        wanted, actual = grip_matrix(yaw, self.lean(position, tilt)), euler_to_matrix(self.view.target[3:6])
        angle = np.arccos(np.clip((np.trace(wanted.T @ actual) - 1) / 2, -1, 1))
        return (
            float(np.linalg.norm(self.view.target[:3] - position)),
            float(np.linalg.norm(self.view.tcp - position)),
            float(angle),
        )

    # -- moves -----------------------------------------------------------------------------------------------------

    def move(
        self,
        pose: Pose | Callable[[], Pose],
        gripper: float,
        speed: float = SPEED,
        tolerance: float = 0.012,
        until: Callable[[], bool] | None = None,
        limit: int = 120,
    ) -> Program:
        """Servo to a pose. Return True on arrival or when `until` holds, False when blocked or out of time."""
        still, last, waited = 0, self.view.tcp, 0
        for _ in range(limit):
            if until is not None and until():
                return True
            goal = pose() if callable(pose) else pose
            target, tcp, angle = self._missing(goal)
            if until is None and target < 0.002 and angle < 0.02:
                waited += 1
                if tcp < tolerance or waited > 8:
                    return tcp < 2 * tolerance
            yield self.toward(goal, gripper, speed)
            still = still + 1 if np.linalg.norm(self.view.tcp - last) < 0.0008 and target > 0.002 else 0
            last = self.view.tcp
            if still > 12:
                return False
        return False

    def hold(self, gripper: float, steps: int, settled: bool = False) -> Program:
        """Keep the target where it is and the gripper as told; with `settled` stop once its width does not change."""
        last, same = self.view.width, 0
        for _ in range(steps):
            self._gripper = gripper
            yield self.rest()
            same = same + 1 if abs(self.view.width - last) < 0.0004 else 0
            last = self.view.width
            if settled and same >= 3:
                break
        return True

    def travel(self, pose: Pose, gripper: float, speed: float = TRAVEL_SPEED, carried: str | None = None) -> Program:
        """Go to a pose above or in front of something without touching what lies between: up, across, down."""
        yield from self.clear(gripper)
        position, yaw, tilt = pose
        position = np.asarray(position, dtype=float)

        def waypoint() -> Pose:
            here = self.view.target[:3]
            across = np.linalg.norm(position[:2] - here[:2])
            if across < 0.012:
                return position, yaw, tilt
            height = self._safe_height(here, position, carried)
            height = max(height, position[2]) if across > 0.03 else max(position[2], min(here[2], height))
            goal = np.array([*position[:2], height])
            if here[2] < height - 0.012:
                # Rise first; drift towards the goal only as far as the height already gained allows.
                goal[:2] = here[:2] + 0.15 * (position[:2] - here[:2]) / max(across, 0.1) * 0.1
            return goal, yaw, tilt

        limit, still, last = 150, 0, self.view.tcp
        for _ in range(limit):
            target, tcp, angle = self._missing(pose)
            if target < 0.004 and angle < 0.03 and tcp < 0.02:
                return True
            yield self.toward(waypoint(), gripper, speed)
            still = still + 1 if np.linalg.norm(self.view.tcp - last) < 0.0008 else 0
            last = self.view.tcp
            if still > 15:
                break
        return False

    def _safe_height(self, start, goal, carried: str | None) -> float:
        """TCP height (m) that clears every block near the way from start to goal."""
        low = TIP + 0.02 + (0.012 if carried else 0.0)
        height = TRAVEL_HEIGHT if np.linalg.norm(goal[:2] - start[:2]) > 0.12 else 0.5
        a, b = np.asarray(start[:2]), np.asarray(goal[:2])
        along = b - a
        length = max(float(along @ along), 1e-9)
        for block in self.view.blocks.values():
            if block.name == carried:
                continue
            t = np.clip(float((block.position[:2] - a) @ along) / length, 0, 1)
            if np.linalg.norm(block.position[:2] - (a + t * along)) < 0.11:
                height = max(height, block.top + low)
        return height

    def clear(self, gripper: float) -> Program:
        """Leave the door's handle, the cabinet and the switch towards the operator."""
        tcp = self.view.tcp
        if tcp[1] > -0.055 and tcp[2] < 0.66 and (tcp[2] > 0.49 or tcp[1] > 0.0):
            held = self.view.held()
            if held is None and gripper == CLOSE and self.view.width < 0.035 or held is None and gripper == OPEN:
                yield from self.hold(OPEN, 6)
            yaw, tilt = self._orientation()
            out = np.array([tcp[0], FRONT, max(tcp[2], 0.47)])
            yield from self.move((out, yaw, tilt), CLOSE if held else OPEN, TRAVEL_SPEED, tolerance=0.03, limit=30)
        return True

    def _orientation(self) -> tuple[float, float]:
        """Return yaw and tilt of the present target."""
        yaw, lean = _yaw_and_lean(euler_to_matrix(self.view.target[3:6]))
        return yaw, float(lean[1])

    def level(self, name: str, yaw: float) -> np.ndarray:
        """Return the lean (2,) with which a hand at `yaw` holds the block level: a block grasped by a leaning hand
        leans the other way in an upright one."""
        block, hand = self.view.blocks[name], euler_to_matrix(self.view.euler)
        up = block.rotation[:, block.vertical]
        up = up * np.sign(up[2])
        slant = np.arctan2(np.hypot(up[0], up[1]), up[2]) * up[:2] / max(np.hypot(up[0], up[1]), 1e-9)
        now, lean = _yaw_and_lean(lean_matrix(slant) @ hand)
        turn = yaw - now
        cos, sin = np.cos(turn), np.sin(turn)
        lean = np.array([cos * lean[0] - sin * lean[1], sin * lean[0] + cos * lean[1]])
        return lean * min(1.0, 0.65 / max(np.linalg.norm(lean), 1e-9))

    def leave(self, gripper: float = OPEN, height: float = TRAVEL_HEIGHT) -> Program:
        """End in a clear pose: straight up, upright."""
        x, y = self.view.tcp[0], self.view.tcp[1]
        return (yield from self.move((np.array([x, min(y, FRONT + 0.03), height]), FORWARD, 0.0), gripper, TRAVEL_SPEED,
                                     tolerance=0.03, limit=40))  # fmt: skip

    # -- programs --------------------------------------------------------------------------------------------------

    def run(self, task: str) -> Program:
        program = self._plan(task)
        for self.attempt in range(6):
            self.delicate = False
            try:
                yield from program()
                return True
            except _Failed:
                yield from self._recover()
        return False

    def _recover(self) -> Program:
        """After a failure: let go, resynchronise the target with the arm, rise."""
        self.delicate = False
        tcp = self.view.tcp
        yaw, tilt = self._orientation()
        yield from self.move((tcp.copy(), yaw, tilt), OPEN, limit=8)
        yield from self.clear(OPEN)
        tcp = self.view.tcp
        up = np.array([tcp[0], tcp[1], max(TRAVEL_HEIGHT, tcp[2])])
        yield from self.move((up, FORWARD, 0.0), OPEN, TRAVEL_SPEED, tolerance=0.03, limit=40)
        return True

    def _plan(self, task: str) -> Callable[[], Program]:
        words = task.split("_")
        fixed = {
            "open_drawer": lambda: self.drawer(True),
            "close_drawer": lambda: self.drawer(False),
            "move_slider_left": lambda: self.slider(True),
            "move_slider_right": lambda: self.slider(False),
            "turn_on_lightbulb": lambda: self.switch(True),
            "turn_off_lightbulb": lambda: self.switch(False),
            "turn_on_led": lambda: self.led(True),
            "turn_off_led": lambda: self.led(False),
            "place_in_slider": self.place_in_slider,
            "place_in_drawer": self.place_in_drawer,
            "stack_block": self.stack,
            "unstack_block": self.unstack,
            "push_into_drawer": self.push_into_drawer,
        }
        if task in fixed:
            return fixed[task]
        block = next(word for word in words if word in BLOCKS)
        if words[0] == "rotate":
            return lambda: self.rotate(block, 1.0 if words[-1] == "left" else -1.0)
        if words[0] == "push":
            return lambda: self.push(block, -1.0 if words[-1] == "left" else 1.0)
        return lambda: self.lift(block)

    # -- fixtures --------------------------------------------------------------------------------------------------

    def drawer(self, opening: bool) -> Program:
        f, view = self.fixtures, lambda: self.view
        bar, gap, direction = np.array(f.drawer_handle), np.array(f.drawer_gap), np.array(f.drawer_direction)
        height = bar[2] + 0.005
        if opening:
            place = lambda: gap + view().drawer * direction  # noqa: E731
            aim = gap + (f.drawer_range + 0.015) * direction
            done = lambda: view().drawer > f.drawer_range - 0.003  # noqa: E731
        else:
            place = lambda: bar + (view().drawer + 0.05) * direction  # noqa: E731
            aim = bar - 0.005 * direction
            done = lambda: view().drawer < 0.003  # noqa: E731
        if done():
            return True
        above = place()
        above[2] = bar[2] + 0.11
        yield from self.travel((above, FORWARD, 0.0), CLOSE)

        def down() -> Pose:
            point = place()
            point[2] = height
            if np.linalg.norm(self.view.target[:2] - point[:2]) > 0.012:
                point[2] = max(above[2], self.view.target[2])
            return point, FORWARD, 0.0

        yield from self.move(down, CLOSE, tolerance=0.01)
        if self.view.tcp[2] > height + 0.03:
            raise _Failed
        aim[2] = height
        self.delicate = True
        yield from self.move((aim, FORWARD, 0.0), CLOSE, until=done, limit=60)
        self.delicate = False
        failed = not done() and not (self.view.drawer > f.drawer_range - 0.02 if opening else self.view.drawer < 0.02)
        point = self.view.tcp + direction * (-0.012 if opening else 0.03)
        point[2] = height
        yield from self.move((point, FORWARD, 0.0), CLOSE, tolerance=0.03, limit=8)
        tcp = self.view.tcp
        yield from self.move((np.array([tcp[0], tcp[1], 0.52]), FORWARD, 0.0), CLOSE, TRAVEL_SPEED, 0.03, limit=30)
        if failed:
            raise _Failed
        return True

    def slider(self, left: bool) -> Program:
        f = self.fixtures
        handle, direction = np.array(f.slider_handle), np.array(f.slider_direction)
        # The joint grows towards -x in CALVIN; a scene may be built the other way round.
        grow = left == (direction[0] < 0)
        goal = f.slider_range if grow else 0.0
        sign = 1.0 if grow else -1.0

        def done() -> bool:
            return abs(self.view.slider - goal) < 0.004

        if done():
            return True

        def at(y: float) -> Pose:
            point = handle + self.view.slider * direction
            point[1] = y
            return point, FORWARD, 0.0

        yield from self.travel(at(FRONT), OPEN)
        yield from self.move(lambda: at(handle[1]), OPEN, tolerance=0.01)
        self.delicate = True
        yield from self.hold(CLOSE, 10, settled=True)
        aim = handle + (goal + 0.015 * sign) * direction
        yield from self.move((aim, FORWARD, 0.0), CLOSE, until=done, limit=70)
        self.delicate = False
        failed = abs(self.view.slider - goal) > 0.03
        yield from self.move((self.view.tcp.copy(), FORWARD, 0.0), OPEN, tolerance=0.03, limit=5)
        tcp = self.view.tcp
        out = np.array([tcp[0], FRONT, tcp[2]])
        yield from self.move((out, FORWARD, 0.0), OPEN, TRAVEL_SPEED, 0.03, limit=25)
        if failed:
            raise _Failed
        return True

    def led(self, on: bool) -> Program:
        top = np.array(self.fixtures.button_top)
        if self.view.led == on:
            return True
        yield from self.travel((top + [0, 0, 0.05], FORWARD, 0.0), CLOSE)

        def press() -> Pose:
            point = top - [0, 0, 0.02]
            if np.linalg.norm(self.view.target[:2] - top[:2]) > 0.015:
                point = top + [0, 0, 0.05]
            return point, FORWARD, 0.0

        yield from self.move(press, CLOSE, until=lambda: self.view.led == on, limit=30)
        failed = self.view.led != on
        yield from self.move((top + [0, 0, 0.08], FORWARD, 0.0), CLOSE, TRAVEL_SPEED, 0.03, limit=20)
        if failed:
            raise _Failed
        return True

    def switch(self, on: bool) -> Program:
        f = self.fixtures
        bar, along = np.array(f.switch_bar), np.array(f.switch_direction)
        goal = f.switch_range if on else 0.0
        offset = np.array([0, -0.022, -0.028]) if on else np.array([0, 0.012, 0.045])

        def done() -> bool:
            return abs(self.view.switch - goal) < 0.006

        if done():
            return True

        def at(extra=(0.0, 0.0, 0.0)) -> Pose:
            return bar + along * self.view.switch + offset + np.asarray(extra), FORWARD, SWITCH_TILT

        yield from self.travel(at((0, -0.08, 0.0 if on else 0.03)), CLOSE)
        yield from self.move(at, CLOSE, tolerance=0.012)
        aim = bar + along * (goal + (0.03 if on else -0.03)) + offset
        self.delicate = True
        yield from self.move((aim, FORWARD, SWITCH_TILT), CLOSE, until=done, limit=40)
        self.delicate = False
        failed = self.view.bulb != on
        out = self.view.tcp + (np.array([0, -0.03, -0.015]) if on else np.array([0, -0.01, 0.03]))
        yield from self.move((out, FORWARD, SWITCH_TILT), CLOSE, tolerance=0.03, limit=8)
        out = np.array([out[0], FRONT, max(out[2], 0.52)])
        yield from self.move((out, FORWARD, 0.3), CLOSE, TRAVEL_SPEED, 0.03, limit=20)
        if failed:
            raise _Failed
        return True

    # -- grasping --------------------------------------------------------------------------------------------------

    def region(self, name: str) -> str:
        """Where a block is: "drawer", "cabinet", "ground" or "table" (which includes on top of another block)."""
        f, (x, y, z) = self.fixtures, self.view.blocks[name].position
        if z < f.drawer_box[0][2]:
            return "ground"
        if z < f.table_box[0][2] - 0.005:
            return "drawer"
        low, high = f.cabinet_box
        return "cabinet" if y > low[1] - 0.002 and low[0] - 0.02 < x < high[0] + 0.02 else "table"

    def above(self, name: str) -> list[str]:
        """Names of blocks that rest on this one, topmost first."""
        below = self.view.blocks[name]
        found = [
            block
            for block in self.view.blocks.values()
            if block.name != name
            and block.bottom > below.top - 0.012
            and np.linalg.norm(block.position[:2] - below.position[:2]) < 0.07
            and below.distance(block.position) < block.extent([1, 0, 0])
        ]
        return [block.name for block in sorted(found, key=lambda b: -b.position[2])]

    def grasps(self, name: str, turn: float = 0.0, tilt: float = 0.0) -> list[tuple[float, int, float, float]]:
        """Return ways to grasp a block as (cost, axis between the fingers, offset along the other axis, yaw)."""
        block, region = self.view.blocks[name], self.region(name)
        options = []
        flat = [i for i in range(3) if i != block.vertical]
        for axis, along in (flat, flat[::-1]):
            if block.size[axis] > 0.062:
                continue
            direction = block.rotation[:, axis]
            yaw = np.arctan2(direction[1], direction[0]) + np.pi / 2
            yaw = FORWARD + (yaw - FORWARD + np.pi / 2) % np.pi - np.pi / 2
            room = max(0.0, block.size[along] / 2 - 0.012)
            for offset in sorted({0.0, 0.5 * room, -0.5 * room, room, -room}, key=abs):
                if offset and turn:
                    continue
                centre = block.position + offset * block.rotation[:, along]
                cost = 0.6 * abs(yaw - FORWARD) + 0.3 * abs(yaw + turn - FORWARD) * bool(turn)
                cost += 15 * max(0.0, block.size[axis] - 0.04) + 6 * abs(offset)
                if region == "cabinet":
                    cost += 2.0 * abs(yaw - FORWARD)
                cost += self._crowding(name, centre, yaw, region)
                options.append((float(cost), axis, float(offset), float(yaw)))
        return sorted(options)

    def _crowding(self, name: str, centre, yaw: float, region: str) -> float:
        """Penalty (a grasp that hits something: more than 5) for what stands where the open fingers go down."""
        cost = 0.0
        opening = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
        side = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        for sign in (-1, 1):
            for reach in (0.036, 0.046, 0.056):
                for across in (-0.01, 0.0, 0.01):
                    point = centre + sign * reach * opening + across * side
                    for other in self.view.blocks.values():
                        if other.name == name or other.top < centre[2] - 0.015 or other.bottom > centre[2] + 0.12:
                            continue
                        gap = other.distance(point)
                        cost += 4.0 if gap < 0.001 else 1.0 if gap < 0.004 else 0.0
                    if region == "drawer":
                        low, high = self.drawer_room()
                        if ((point[:2] < low - 0.002) | (point[:2] > high + 0.002)).any():
                            cost += 4.0
        return cost

    def opening(self, x: float) -> tuple[float, float]:
        """The cabinet's opening (x from, to) in which x lies, or to which it is nearer: between door and side wall."""
        f = self.fixtures
        door = f.slider_handle[0] + f.slider_direction[0] * self.view.slider
        if x < door:
            return f.cabinet_box[0][0], door - _DOOR_HALF
        return door + _DOOR_HALF, f.cabinet_box[1][0]

    def _beside(self, x: float) -> float:
        """How far (rad) fingers at x must point to a side for the hand, 0.2 m wide, to stay clear of that side."""
        low, high = self.opening(x)
        if high - low < 2 * _HAND_HALF:
            return 0.0
        near, sign = (x - low, -1.0) if x - low < high - x else (high - x, 1.0)
        size, corner = np.hypot(_HAND_HALF, _PALM), np.arctan2(_PALM, _HAND_HALF)
        return sign * float(np.clip(np.arccos(np.clip(near / size, 0.0, 1.0)) - corner, 0.0, 0.6))

    def drawer_room(self) -> tuple[np.ndarray, np.ndarray]:
        """Corners (x, y) of the drawer's inside as far as it is open now."""
        f = self.fixtures
        low, high = (np.array(corner) + np.array(f.drawer_direction) * self.view.drawer for corner in f.drawer_box)
        return low[:2], np.array([high[0], min(high[1], f.table_box[0][1])])

    def pick(self, name: str, turn: float = 0.0) -> Program:
        """Grasp a block where it lies; the hand stays there, closed. Raise _Failed without a grasp."""
        if self.view.held() == name:
            return True
        region = self.region(name)
        options = self.grasps(name, turn)
        if options and options[0][0] > 3.9 and region == "drawer":
            yield from self.draw_out(name)
            options = self.grasps(name, turn)
        if region == "cabinet" and abs(self._beside(self.view.blocks[name].position[0])) > _MOST_ASIDE:
            yield from self.draw_aside(name)
            options = self.grasps(name, turn)
        if not options:
            raise _Failed
        _, axis, offset, yaw = options[min(self.attempt // 2, len(options) - 1)]
        tilt = self._table_tilt(name, yaw)
        if region == "cabinet":
            aside = np.clip(self._beside(self.view.blocks[name].position[0]), -_MOST_ASIDE, _MOST_ASIDE)
            tilt = np.array([aside, CABINET_TILT])

        def goal() -> tuple[np.ndarray, float]:
            block = self.view.blocks[name]
            along = next(i for i in range(3) if i not in (axis, block.vertical))
            direction = block.rotation[:, axis]
            now = np.arctan2(direction[1], direction[0]) + np.pi / 2
            now = yaw + (now - yaw + np.pi / 2) % np.pi - np.pi / 2
            point = block.position + offset * block.rotation[:, along]
            lean = self.lean(point, tilt)
            dip = 0.04 * abs(np.sin(lean[0]) * np.sin(now) - np.sin(lean[1]) * np.cos(now))
            low = block.bottom + TIP + 0.003 + dip
            return np.array([point[0], point[1], max(block.position[2] + ABOVE_CENTRE, low)]), float(now)

        cabinet = region == "cabinet"
        # Into the cabinet: from the front and a little from above, over the button and what lies before it.
        approach = np.array([0.0, -0.94, 0.34]) if cabinet else np.array([0.0, 0.0, 1.0])
        start, yaw_now = goal()
        reach = (start[1] - FRONT) / 0.94 if cabinet else max(HOVER, self._hover_over(name) - start[2])
        tilt = self.lean(start + (0.0 if cabinet else reach) * approach, tilt)
        start, yaw_now = goal()
        yield from self.travel((start + reach * approach, yaw_now, tilt), OPEN)
        yield from self.funnel(goal, tilt, approach, reach, OPEN)
        self.delicate = True
        yield from self.hold(CLOSE, 14, settled=True)
        self.delicate = False
        if self.view.held() != name:
            raise _Failed
        return True

    def draw_out(self, name: str) -> Program:
        """Drag a block in the drawer out from under the table's edge: closed fingers press on it from above."""
        block = self.view.blocks[name]
        low, high = self.drawer_room()
        goal = max(high[1] - 0.08, low[1] + block.extent([0, 1, 0]) + 0.02)
        if block.position[1] < goal + 0.005 or self.above(name):
            return False

        def press() -> tuple[np.ndarray, float]:
            block = self.view.blocks[name]
            # Near its front: there the hand stays clear of the table.
            y = block.position[1] - 0.3 * block.extent([0, 1, 0])
            return np.array([block.position[0], y, block.top + TIP - 0.012]), FORWARD

        point, _ = press()
        up = np.array([0.0, 0.0, 1.0])
        yield from self.travel((point + HOVER * up, FORWARD, 0.0), CLOSE)
        yield from self.funnel(press, 0.0, up, HOVER, CLOSE, limit=25)
        self.delicate = True
        point, _ = press()
        shift = goal - self.view.blocks[name].position[1]
        aim = point + [0, shift - 0.01, 0]
        yield from self.move((aim, FORWARD, 0.0), CLOSE, SLOW, limit=16,
                             until=lambda: self.view.blocks[name].position[1] < goal)  # fmt: skip
        self.delicate = False
        tcp = self.view.tcp
        yield from self.move((tcp + [0, 0, 0.06], FORWARD, 0.0), CLOSE, SPEED, 0.03, limit=15)
        return True

    def draw_aside(self, name: str) -> Program:
        """Drag a block in the cabinet away from the door's edge or a side wall, where the open hand has no room.

        Closed fingers press on it from above, leaning so that the hand stays clear.
        """
        block = self.view.blocks[name]
        low, high = self.opening(block.position[0])
        room = _HAND_HALF + 0.01
        goal = float(np.clip(block.position[0], low + room, high - room))
        tilt = np.array([self._beside(block.position[0]), CABINET_TILT])
        fingers = grip_matrix(FORWARD, tilt)[:, 2]

        def over(height: float) -> tuple[np.ndarray, float]:
            block = self.view.blocks[name]
            top = np.array([*block.position[:2], block.top + height])
            return top - TIP * fingers, FORWARD

        approach = np.array([0.0, -0.94, 0.34])
        start, _ = over(0.02)
        reach = (start[1] - FRONT) / 0.94
        yield from self.travel((start + reach * approach, FORWARD, tilt), CLOSE)
        yield from self.funnel(lambda: over(0.02), tilt, approach, reach, CLOSE, limit=45)
        for _ in range(3):
            self.delicate = True
            point, _ = over(-0.03)
            yield from self.move((point, FORWARD, tilt), CLOSE, SLOW, limit=8)
            side = np.sign(goal - self.view.blocks[name].position[0])

            def arrived(side: float = side) -> bool:
                return (self.view.blocks[name].position[0] - goal) * side > 0

            aim = self.view.target[:3] + [goal - self.view.blocks[name].position[0] + 0.03 * side, 0, 0]
            yield from self.move((aim, FORWARD, tilt), CLOSE, SLOW, limit=22, until=arrived)
            self.delicate = False
            tcp = self.view.tcp
            yield from self.move((tcp + [0, 0, 0.04], FORWARD, tilt), CLOSE, SPEED, 0.03, limit=10)
            if abs(self._beside(self.view.blocks[name].position[0])) < _MOST_ASIDE:
                break
            yield from self.move((over(0.02)[0], FORWARD, tilt), CLOSE, SPEED, 0.02, limit=12)
        tcp = self.view.tcp
        yield from self.move((np.array([tcp[0], FRONT, tcp[2]]), FORWARD, tilt), CLOSE, TRAVEL_SPEED, 0.03, limit=25)
        return True

    def _hover_over(self, name: str) -> float:
        block = self.view.blocks[name]
        near = [b.top for b in self.view.blocks.values() if np.linalg.norm((b.position - block.position)[:2]) < 0.11]
        return max(near) + TIP + 0.025

    def _table_tilt(self, name: str, yaw: float) -> float:
        """Lean the hand towards the operator where it would meet the cabinet's front or the door's handle."""
        y = self.view.blocks[name].position[1]
        return float(np.clip((y + 0.065) * 6, 0.0, 0.3)) if self.region(name) == "table" else 0.0

    def funnel(self, goal, tilt, approach: np.ndarray, reach: float, gripper: float, limit: int = 90) -> Program:
        """Come in along `approach` (a unit vector away from the goal), only while lined up with it. False: blocked."""
        waited, still, last, turned = 0, 0, self.view.tcp, 0.0
        for _ in range(limit):
            point, yaw = goal()
            aside, along = self._aside(self.view.target[:3] - point, approach)
            lag, _ = self._aside(self.view.tcp - point, approach)
            _, distance, angle = self._missing((point, yaw, tilt))
            aligned = np.linalg.norm(aside) < 0.008 and np.linalg.norm(lag) < 0.014 and angle < 0.12
            if along < 0.003 and aligned:
                waited += 1
                if distance < 0.012 or waited > 6:
                    return True
            keep = along if along < 0.6 * reach and np.linalg.norm(aside) < 0.012 else max(along, 0.8 * reach)
            ahead = 0.0 if aligned else keep
            self.delicate = along < 0.03
            yield self.toward((point + approach * ahead, yaw, tilt), gripper, SPEED)
            still = still + 1 if np.linalg.norm(self.view.tcp - last) < 0.0008 and abs(angle - turned) < 0.004 else 0
            last, turned = self.view.tcp, angle
            if still > 12:
                break
        return False

    @staticmethod
    def _aside(offset: np.ndarray, approach: np.ndarray) -> tuple[np.ndarray, float]:
        along = float(offset @ approach)
        return offset - along * approach, along

    def lift(self, name: str) -> Program:
        for other in self.above(name):
            yield from self.pick(other)
            yield from self.raise_(0.1)
            yield from self.put_aside(other, avoid=name)
        region = self.region(name)
        yield from self.pick(name)
        self.delicate = True
        tcp = self.view.tcp
        if region == "cabinet":
            yaw, tilt = self._orientation()
            up = tcp + [0, 0, 0.042]
            yield from self.move((up, yaw, tilt), CLOSE, SPEED, 0.02, limit=15)
            if self.view.held() != name:
                raise _Failed
            out = np.array([up[0], FRONT, up[2] + 0.02])
            yield from self.move((out, yaw, tilt), CLOSE, SPEED, 0.02, limit=40)
            tcp = self.view.tcp
        yield from self.raise_(max(0.0, 0.60 - tcp[2]))
        self.delicate = False
        if self.view.held() != name:
            raise _Failed
        return True

    def raise_(self, height: float) -> Program:
        """Rise with what is held; first back from under the door's handle, which overhangs the table."""
        yaw, tilt = self._orientation()
        up = self.view.target[:3] + [0, 0, height]
        up[:2] = self.view.tcp[:2]
        held, f = self.view.held(), self.fixtures
        if held is not None:
            block = self.view.blocks[held]
            handle = np.array(f.slider_handle) + self.view.slider * np.array(f.slider_direction)
            beside = abs(block.position[0] - handle[0]) - block.extent([1, 0, 0]) - _HANDLE_HALF
            under = block.position[1] + block.extent([0, 1, 0]) - (handle[1] - _HANDLE_REACH)
            if beside < 0.01 and under > 0 and block.position[2] < handle[2]:
                up[1] -= under
                back = np.array([up[0], up[1], self.view.target[2] + 0.008])
                yield from self.move((back, yaw, tilt), CLOSE, SPEED, 0.02, limit=15)
        yield from self.move((up, yaw, tilt), CLOSE, SPEED, 0.02, limit=60)
        return True

    # -- placing ---------------------------------------------------------------------------------------------------

    def regain(self) -> Program:
        """Return the held block's name as the program's result; pick up the block that was lost if there is none."""
        held = self.view.held()
        if held is None:
            held = self.wanted or min(
                self.view.blocks, key=lambda n: np.linalg.norm(self.view.blocks[n].position - self.view.tcp)
            )
            yield from self.pick(held)
            yield from self.lift(held)
        self.wanted = held
        return held

    def put_down(
        self, name: str, place: np.ndarray, floor: float, yaw: float = FORWARD, tilt: float = 0.0, exact: bool = False
    ) -> Program:
        """Carry the held block over `place` (x, y of its centre), lower it onto `floor` (z) and let go.

        Return whether the hand got there. With `exact` it keeps the block where it did not.
        """

        def goal() -> tuple[np.ndarray, float]:
            block = self.view.blocks[name]
            offset = self.view.tcp - block.position
            height = floor + block.half_height + float(np.clip(offset[2], -0.01, 0.02)) + 0.003
            return np.array([place[0] + offset[0], place[1] + offset[1], height]), yaw

        point, _ = goal()
        above = np.array([*point[:2], point[2] + HOVER])
        level = self.level(name, yaw)
        # Where the hand must lean (towards a far place, away from the door), a block that slants a little is no harm.
        least = self.lean(above, tilt)
        tilt = np.array([level[0] if abs(level[0]) > abs(least[0]) - 0.2 else least[0], max(level[1], least[1] - 0.15)])
        arrived = yield from self.travel((above, yaw, tilt), CLOSE, SPEED, carried=name)
        if not arrived and np.linalg.norm(tilt - least) > 0.03:
            tilt = least
            yield from self.travel((above, yaw, tilt), CLOSE, SPEED, carried=name)
        if self.view.held() != name:
            raise _Failed
        self.delicate = True
        arrived = yield from self.funnel(goal, tilt, np.array([0.0, 0.0, 1.0]), HOVER, CLOSE)
        if exact and not arrived:
            self.delicate = False
            return False
        yield from self.hold(CLOSE, 2)
        yield from self.hold(OPEN, 6)
        self.delicate = False
        tcp = self.view.tcp
        up = np.array([tcp[0], tcp[1], max(tcp[2] + 0.09, 0.5)])
        yield from self.move((up, yaw, 0.0), OPEN, SPEED, 0.03, limit=30)
        return arrived

    def put_aside(self, name: str, avoid: str) -> Program:
        """Put the held block on a free place of the table."""
        f = self.fixtures
        low, high = f.surfaces["table"]
        tcp = self.view.tcp
        best, score = None, -np.inf
        for x in np.arange(low[0] + 0.02, high[0] - 0.02, 0.02):
            for y in np.arange(low[1] + 0.03, high[1] - 0.02, 0.02):
                point = np.array([x, y, 0.0])
                gaps = [b.distance(point) for b in self.view.blocks.values() if b.name != name]
                button = np.max(np.abs(point[:2] - f.button_top[:2]) - np.array(f.button_size[:2]) / 2)
                room = min(min(gaps), button + 0.02, 0.1)
                value = 10 * room - np.linalg.norm(point[:2] - tcp[:2]) - 4 * max(0.0, 0.07 - room)
                if value > score:
                    best, score = point, value
        yield from self.put_down(name, best[:2], f.table_box[0][2])
        return True

    def place_in_drawer(self) -> Program:
        name = yield from self.regain()
        low, high = self.drawer_room()
        half = np.array([0.02, self.view.blocks[name].size.max() / 2])
        best, score = None, -np.inf
        for x in np.linspace(low[0] + half[0] + 0.04, high[0] - half[0] - 0.04, 15):
            for y in np.linspace(low[1] + half[1] + 0.012, high[1] - half[1] - 0.03, 5):
                gaps = [
                    np.max(np.abs(b.position[:2] - [x, y]) - [b.extent([1, 0, 0]), b.extent([0, 1, 0])] - half)
                    for b in self.view.blocks.values()
                    if b.name != name and b.position[2] < self.fixtures.table_box[0][2]
                ]
                room = min([*gaps, 0.06])
                value = 20 * room - abs(x - (low[0] + high[0]) / 2) - abs(y - (low[1] + high[1]) / 2)
                if value > score:
                    best, score = np.array([x, y]), value
        yield from self.put_down(name, best, self.fixtures.drawer_box[0][2])
        yield from self.leave()
        return True

    def place_in_slider(self) -> Program:
        name = yield from self.regain()
        f = self.fixtures
        door = f.slider_handle[0] + f.slider_direction[0] * self.view.slider
        sides = [f.surfaces["slider_left"], f.surfaces["slider_right"]]
        low, high = max(sides, key=lambda box: abs((box[0][0] + box[1][0]) / 2 - door))
        floor = f.cabinet_box[0][2]
        half = 0.02
        best, score = None, -np.inf
        # The hand is 0.2 m wide; it stays clear of the door's edge and the cabinet's sides where there is room for it.
        inner, outer = self.opening((low[0] + high[0]) / 2)
        for x in np.linspace(low[0] + 0.01, high[0] - 0.01, 9):
            for y in (0.085, 0.045):
                gaps = [
                    max(abs(b.position[0] - x) - b.extent([1, 0, 0]) - half,
                        abs(b.position[1] - y) - b.extent([0, 1, 0]) - self.view.blocks[name].size.max() / 2)
                    for b in self.view.blocks.values()
                    if b.name != name and self.region(b.name) == "cabinet"
                ]  # fmt: skip
                room = min([*gaps, 0.05])
                hand = max(0.0, inner + _HAND_HALF - x, x - outer + _HAND_HALF)
                value = 20 * room - abs(x - (low[0] + high[0]) / 2) - 3 * abs(y - 0.085) - 8 * hand
                if value > score:
                    best, score = np.array([x, y]), value
        slant = float(np.clip(self.level(name, FORWARD)[1], 0.35, CABINET_TILT))
        tilt = self.lean(np.array([*best, floor + 0.03]), slant)

        def goal() -> tuple[np.ndarray, float]:
            block = self.view.blocks[name]
            offset = self.view.tcp - block.position
            return np.array([best[0] + offset[0], best[1] + offset[1], floor + 0.02 + offset[2] + 0.012]), FORWARD

        point, _ = goal()
        front = np.array([best[0], FRONT - 0.02, point[2] + 0.06])
        yield from self.travel((front, FORWARD, tilt), CLOSE, SPEED, carried=name)
        point, _ = goal()
        self.delicate = True
        if self.view.held() != name:
            raise _Failed

        def into() -> Pose:
            point, yaw = goal()
            behind = point[1] - self.view.target[1]
            point[2] += float(np.clip(behind - 0.03, 0, 0.03))
            if abs(self.view.target[0] - point[0]) > 0.015:
                point[1] = front[1]
            return point, yaw, tilt

        yield from self.move(into, CLOSE, SPEED, tolerance=0.012, limit=60)
        down = self.view.target[:3] - [0, 0, 0.011]
        yield from self.move((down, FORWARD, tilt), CLOSE, SLOW, tolerance=0.012, limit=12)
        yield from self.hold(OPEN, 6)
        tcp = self.view.tcp
        yield from self.move((np.array([tcp[0], FRONT, tcp[2] + 0.01]), FORWARD, tilt), OPEN, SPEED, 0.03, limit=40)
        self.delicate = False
        yield from self.leave()
        return True

    def stack(self) -> Program:
        name = yield from self.regain()
        options = self._stackings(name)
        # What was tried before and did not stay comes last.
        for _, other, below in options[self.attempt :] + options[: self.attempt]:
            if other != name:
                yield from self.put_aside(name, avoid=other)
                self.wanted = other
                yield from self.uncover(other)
                yield from self.lift(other)
            if (yield from self._stack_on(other, below)):
                yield from self.leave()
                bodies = {body for body, _ in self.env.task_info()["blocks"][other]["contacts"]}
                if bodies and bodies <= set(BLOCKS):
                    return True
                raise _Failed
            name = other
        raise _Failed

    def uncover(self, name: str) -> Program:
        """Move the door away from in front of a block in the cabinet."""
        f, x = self.fixtures, self.view.blocks[name].position[0]
        ends = [f.slider_handle[0], f.slider_handle[0] + f.slider_range * f.slider_direction[0]]
        door = f.slider_handle[0] + self.view.slider * f.slider_direction[0]
        if self.region(name) == "cabinet" and abs(x - door) < _DOOR_HALF + 0.02:
            yield from self.slider(abs(x - min(ends)) > abs(x - max(ends)))
        return True

    def _stackings(self, held: str) -> list[tuple[float, str, str]]:
        """Ways to stack as (cost, block on top, block below): the held one on another, or another one on it.

        The second takes longer, but not everything can be built on where it lies: in the cabinet, at the end of the
        arm's reach, under the door's handle, beside the button.
        """
        f, options = self.fixtures, []
        for block in self.view.blocks.values():
            region = self.region(block.name)
            if block.name == held or region == "ground" or any(other != held for other in self.above(block.name)):
                continue
            x, y = block.position[:2]
            far = max(0.0, float(np.hypot(*(block.position[:2] - self.env.description.robot_position[:2]))) - 0.79)
            covered = region == "drawer" and y > self.drawer_room()[1][1] - 0.01
            options.append((1.5 + {"table": 0.0, "drawer": 0.3, "cabinet": 0.6}[region] + 3 * covered + 40 * far,
                            block.name, held))  # fmt: skip
            if region == "cabinet":
                continue
            cost = {"table": 0.0, "drawer": 0.5}[region] + 3 * covered + 40 * far - 4 * (block.size.max() - 0.04)
            cost += 3.0 * max(0.0, y + 0.04)
            if region == "table":
                half = self.view.blocks[held].size.max() / 2
                handle = np.array(f.slider_handle) + self.view.slider * np.array(f.slider_direction)
                overhung = abs(x - handle[0]) < _HANDLE_HALF + half + 0.01 and y + half > handle[1] - _HANDLE_REACH
                button = np.max(np.abs(block.position[:2] - f.button_top[:2]) - np.array(f.button_size[:2]) / 2)
                cost += 2.0 * overhung + 2.0 * (button < half)
            options.append((cost, held, block.name))
        return sorted(options)

    def _stack_on(self, name: str, below: str) -> Program:
        """Put the held block on another. Return False, still holding it, where the hand does not get there."""
        under = self.view.blocks[below]
        # Long axes side by side, or crosswise where the wrist could not turn as far.
        flat = [i for i in range(3) if i != under.vertical]
        axis = under.rotation[:, max(flat, key=lambda i: under.size[i])]
        cross = 0.0 if abs(under.size[flat[0]] - under.size[flat[1]]) < 0.005 else 0.4
        turns = [np.arctan2(axis[1], axis[0]) - FORWARD + extra for extra in (0.0, np.pi / 2)]
        turns = [(turn + np.pi / 2) % np.pi - np.pi / 2 for turn in turns]
        yaw = FORWARD + min(turns, key=lambda turn: abs(turn) + cross * (turn == turns[1]))
        tilt = self._table_tilt(below, yaw)
        return (yield from self.put_down(name, under.position[:2].copy(), under.top, float(yaw), tilt, exact=True))

    def unstack(self) -> Program:
        tops = [(-self.view.blocks[n].position[2], n) for low in self.view.blocks for n in self.above(low)]
        held = self.view.held()
        if held is not None and not tops:
            tops = [(0.0, held)]
        if not tops:
            return True
        name = min(tops)[1]
        yield from self.pick(name)
        yield from self.raise_(0.1)
        if self.view.held() != name:
            raise _Failed
        yield from self.put_aside(name, avoid=name)
        return True

    # -- turning and pushing ---------------------------------------------------------------------------------------

    def rotate(self, name: str, sign: float) -> Program:
        for other in self.above(name):
            yield from self.pick(other)
            yield from self.raise_(0.1)
            yield from self.put_aside(other, avoid=name)
        turn = sign * 1.55
        yield from self.pick(name, turn)
        yaw, tilt = self._orientation()
        target = self.view.target[:3].copy()
        self.delicate = True
        yield from self.move((target, yaw + turn, tilt), CLOSE, SPEED, limit=70)
        yield from self.hold(CLOSE, 2)
        yield from self.hold(OPEN, 6)
        self.delicate = False
        tcp = self.view.tcp
        yield from self.move((np.array([tcp[0], tcp[1], 0.56]), yaw + turn, 0.0), OPEN, SPEED, 0.03, limit=30)
        return True

    def push(self, name: str, sign: float) -> Program:
        start = self.pushed_from.setdefault(name, self.view.blocks[name].position.copy())
        goal = start[0] + sign * 0.108
        if self.attempt > 1:
            yield from self.carry(name, start[0], sign)
            return True
        direction = np.array([sign, 0.0, 0.0])
        block = self.view.blocks[name]

        def side() -> np.ndarray:
            block = self.view.blocks[name]
            return block.position - direction * (block.extent(direction) + 0.045)

        point = side()
        for _ in range(4):
            for other in self.view.blocks.values():
                if (
                    other.name != name
                    and abs(other.position[1] - point[1]) < other.extent([0, 1, 0]) + 0.025
                    and abs(other.position[0] - point[0]) < other.extent([1, 0, 0]) + 0.025
                ):
                    point = point.copy()
                    point[0] = other.position[0] - sign * (other.extent([1, 0, 0]) + 0.045)
        height = block.position[2] + 0.008
        tilt = self.lean(np.array([point[0], point[1], height + 0.07]), self._table_tilt(name, FORWARD))
        yield from self.travel((np.array([point[0], point[1], height + 0.07]), FORWARD, tilt), CLOSE)
        yield from self.funnel(lambda: (np.array([point[0], point[1], height]), FORWARD), tilt,
                               np.array([0.0, 0.0, 1.0]), 0.07, CLOSE)  # fmt: skip
        self.delicate = True

        def along() -> Pose:
            block = self.view.blocks[name]
            return np.array([goal - sign * 0.005, block.position[1], height]), FORWARD, tilt

        def moved() -> float:
            return sign * (self.view.blocks[name].position[0] - start[0])

        # Stop short and let the block slide the last bit: a push whose end leaves the block untouched is one after
        # which any other task may begin.
        far = 0.106 - (_SLIDE if self.attempt < 2 and moved() < 0.06 else 0.0)
        yield from self.move(along, CLOSE, _PUSH_SPEED, until=lambda: moved() > far, limit=60)
        self.delicate = False
        back = self.view.tcp - direction * 0.03
        yield from self.move((back, FORWARD, tilt), CLOSE, POSITION_STEP_M, 0.03, limit=6)
        failed = not moved() > 0.102
        yield from self.move((np.array([back[0], back[1], 0.55]), FORWARD, 0.0), CLOSE, TRAVEL_SPEED, 0.03, limit=20)
        if name in self.at_door and not failed:
            yield from self.nudge(name)
        if failed:
            raise _Failed
        return True

    def nudge(self, name: str) -> Program:
        """Push a block on the table away from the operator until it touches the door."""
        block = self.view.blocks[name]

        def touching() -> bool:
            return _DOOR in self.env.task_info()["blocks"][name]["contacts"]

        if touching():
            return True
        x, height = block.position[0], block.position[2] + 0.008
        start = np.array([x, block.position[1] - block.extent([0, 1, 0]) - 0.045, height])
        tilt = self.lean(start + [0, 0, 0.07], 0.15)
        yield from self.travel((start + [0, 0, 0.07], FORWARD, tilt), CLOSE)
        yield from self.funnel(lambda: (start, FORWARD), tilt, np.array([0.0, 0.0, 1.0]), 0.07, CLOSE)
        self.delicate = True
        yield from self.move((start + [0, 0.1, 0], FORWARD, tilt), CLOSE, SLOW, until=touching, limit=25)
        self.delicate = False
        tcp = self.view.tcp
        yield from self.move((np.array([tcp[0], tcp[1] - 0.03, 0.55]), FORWARD, 0.0), CLOSE, SPEED, 0.03, limit=20)
        return True

    def carry(self, name: str, start: float, sign: float) -> Program:
        """Where pushing failed (something fixed is in the way): put the block down beyond it."""
        f, block = self.fixtures, self.view.blocks[name]
        yield from self.pick(name)
        yield from self.raise_(0.1)
        (low_x, low_y, floor), (high_x, high_y, _) = f.table_box
        best, score = block.position[:2], -np.inf
        for x in start + sign * np.arange(0.106, 0.16, 0.006):
            for y in np.arange(max(low_y, f.surfaces["table"][0][1]), f.surfaces["table"][1][1] + 0.01, 0.01):
                if not low_x + 0.03 < x < high_x - 0.03:
                    continue
                point = np.array([x, y, 0.0])
                gaps = [b.distance(point) for b in self.view.blocks.values() if b.name != name]
                button = np.max(np.abs(point[:2] - f.button_top[:2]) - np.array(f.button_size[:2]) / 2) - 0.01
                value = 10 * min(*gaps, button, 0.045) - abs(x - start) - abs(y - block.position[1])
                if value > score:
                    best, score = point[:2], value
        yield from self.put_down(name, best, floor)
        return True

    def push_into_drawer(self) -> Program:
        low, high = self.drawer_room()
        options = []
        for block in self.view.blocks.values():
            if block.name not in self.free or self.region(block.name) != "table":
                continue
            if self.above(block.name):
                continue
            x, y = block.position[:2]
            outside = max(0.0, low[0] + 0.05 - x, x - high[0] + 0.05)
            options.append((10 * outside + abs(y - self.fixtures.table_box[0][1]), block.name))
        if self.wanted is None or self.region(self.wanted) != "table":
            if not options:
                return True
            self.wanted = min(options)[1]
        name = self.wanted
        block = self.view.blocks[name]
        if not low[0] + 0.035 < block.position[0] < high[0] - 0.035 or self.attempt > 1:
            yield from self.pick(name)
            yield from self.raise_(0.1)
            yield from self.place_in_drawer()
            return True
        height = block.position[2] + 0.004
        x = block.position[0]
        start = np.array([x, block.position[1] + block.extent([0, 1, 0]) + 0.035, height])
        tilt = self.lean(start, 0.3)
        yield from self.travel((start + [0, 0, 0.07], FORWARD, tilt), CLOSE)
        yield from self.funnel(lambda: (start, FORWARD), tilt, np.array([0.0, 0.0, 1.0]), 0.07, CLOSE)
        self.delicate = True
        edge = self.fixtures.table_box[0][1]

        def along() -> Pose:
            block = self.view.blocks[name]
            return np.array([block.position[0], edge - 0.02, height]), FORWARD, tilt

        def gone() -> bool:
            return self.view.blocks[name].position[2] < self.fixtures.table_box[0][2] - 0.005

        yield from self.move(along, CLOSE, 0.007, until=gone, limit=70)
        self.delicate = False
        tcp = self.view.tcp
        yield from self.move((np.array([tcp[0], tcp[1] + 0.01, 0.56]), FORWARD, 0.0), CLOSE, SPEED, 0.03, limit=30)
        if not gone():
            raise _Failed
        return True


@dataclass
class ExpertRollout:
    """What `rollout_expert` did.

    Attributes:
        success: the oracle saw the task done.
        steps: control steps until then (all steps where it failed).
        records: arrays with one row per recorded step: "robot_obs" (N, 15), "scene_obs" (N, 24), "target_pose" (N, 6),
            float64, before the step's action; "actions", "executed" (N, 7) float32: label and executed action.
        success_row: index of the first record after success; None on failure.
    """

    success: bool
    steps: int
    records: dict[str, np.ndarray] = field(default_factory=dict)
    success_row: int | None = None


_RECORDS = {"robot_obs": np.float64, "scene_obs": np.float64, "target_pose": np.float64,
            "actions": np.float32, "executed": np.float32}  # fmt: skip


def rollout_expert(
    env,
    task: str,
    rng: np.random.Generator,
    noise: float = 0.0,
    max_steps: int = 360,
    after_success_steps: int = 10,
    recorder: Callable[[int], None] | None = None,
    finish: bool = True,
    after: Expert | None = None,
) -> ExpertRollout:
    """Let an expert do a task from the state the environment is in.

    Args:
        env: a PlayTableEnv with relative actions.
        task: one of interface.TASKS.
        rng, noise: see Expert.
        max_steps: steps within which the oracle must see the task done.
        after_success_steps: recorded steps after success; fewer where the expert finishes earlier.
        recorder: called before each recorded step with its row, e.g. to render.
        finish: after the last recorded step let the expert finish its motion and the scene settle, unrecorded.
        after: see Expert.

    Raises:
        UserError: unknown task.
    """
    from arvrm.sim.tasks import TaskOracle

    oracle, expert = TaskOracle(), Expert(task, env, rng, noise, after)
    start = env.task_info()
    rows: dict[str, list[np.ndarray]] = {name: [] for name in _RECORDS}
    success_row, step = None, 0
    while True:
        if success_row is None and step >= max_steps:
            break
        if success_row is not None and (step - success_row >= after_success_steps or expert.finished):
            break
        if expert.finished and success_row is None and step - expert.finished_at > 10:
            break
        if recorder is not None:
            recorder(step)
        rows["robot_obs"].append(env.robot_obs())
        rows["scene_obs"].append(env.scene_obs())
        rows["target_pose"].append(env.target_pose())
        executed = expert.act()
        rows["actions"].append(expert.label)
        rows["executed"].append(executed)
        info = env.step(executed)[4]
        step += 1
        if success_row is None and oracle.completed(start, info, (task,)):
            success_row = step
    steps = step if success_row is None else success_row
    if finish:
        for _ in range(100):
            if expert.finished:
                break
            env.step(expert.act())
        settle(env)
    records = {name: np.array(values, dtype=_RECORDS[name]) for name, values in rows.items()}
    return ExpertRollout(success_row is not None, steps, records, success_row)


def settle(env, limit: int = 15) -> None:
    """Stand still until no block moves faster than 1 cm/s, at most `limit` steps."""
    for _ in range(limit):
        velocities = [np.linalg.norm(block["linear_velocity"]) for block in env.task_info()["blocks"].values()]
        if max(velocities) < 0.01:
            return
        env.step(np.array([0, 0, 0, 0, 0, 0, env.robot_obs()[14]], dtype=float))
