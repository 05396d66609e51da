"""What a policy and a robot that meet over a socket must agree on, as values of one small file (docs/remote.md).

The same file serves both sides: `arvrm evaluate --policy ws://...` turns a world's observations into such messages and
such actions into the robot's; `arvrm serve` does the reverse. Nothing of it is guessed: what has a default here is
written out in the results file and in the server's metadata.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from arvrm.config import bounded, check_bounds, from_dict, nearest, to_dict
from arvrm.files import read_json
from arvrm.interface import PolicySpec, Robot, UserError

Protocol = Literal["openpi", "vla-eval"]
Key = str | tuple[str, ...]
"""Where a value is in a message: a name, or several, each within the one before."""
Rotation = Literal[
    "euler_xyz", "axis_angle", "quaternion_xyzw", "quaternion_wxyz", "rotation_6d_columns", "rotation_6d_rows"
]
PRESETS = Path(__file__).parent.parent / "resources" / "conventions"


@dataclass(frozen=True)
class CameraConvention:
    """How one camera's images are sent.

    Attributes:
        key: where they are in the message.
        size: pixels of the square image that is sent.
        rendered: pixels in which a simulator renders it before it is resized to `size`; null: in `size`.
        layout: hwc (rows, columns, colours) or chw.
        colours: rgb or bgr.
        values: uint8 (0 to 255), float32 from 0 to 1, or float32 from -1 to 1.
        turned: degrees: 180 if it is sent upside down, as LIBERO's images are.
    """

    key: Key
    size: int = bounded(224, least=1, most=4096)
    rendered: int | None = bounded(None, least=1, most=4096)
    layout: Literal["hwc", "chw"] = "hwc"
    colours: Literal["rgb", "bgr"] = "rgb"
    values: Literal["uint8", "0..1", "-1..1"] = "uint8"
    turned: Literal[0, 180] = 0

    __post_init__ = check_bounds


@dataclass(frozen=True)
class GripperConvention:
    """The numbers by which a gripper is told to open and to close.

    Attributes:
        open, close: these numbers.
        threshold: where one becomes the other; null: half-way between them.
    """

    open: float
    close: float
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.open == self.close:
            raise ValueError(f"open and close are both {self.open}; they differ, whichever sign they have")

    @property
    def middle(self) -> float:
        return (self.open + self.close) / 2 if self.threshold is None else self.threshold


@dataclass(frozen=True)
class ActionConvention:
    """What the numbers of an action mean: position (3), rotation (3, 4 or 6), gripper (1), in this order.

    Attributes:
        key: where the actions are in an answer.
        motion: native (the robot's own numbers, as in `Robot.actions`; all else is then left out), delta, or absolute
            (poses of the tool centre point in the world frame).
        rotation: how a rotation, or a change of it, is written; null: native.
        position_unit, rotation_unit: metres, and radians, that a 1 means.
        gripper: the numbers of an open and a closed gripper.
        relative_to: what a delta is added to. target: where the controller is told to go, action by action; measured:
            where the arm is when it moves; plan: where the arm was when the chunk was planned, for all of its actions.
        frame: the axes of a delta: world or tool.
        composed: whether a delta of rotation is added to the Euler angles (CALVIN does that) or multiplied.
        beyond: what is done with a motion that is longer than the robot's own step (CALVIN: 0.02 m or 0.05 rad an
            axis): refuse it (the chain ends), clip it, or execute it as it is.
    """

    key: Key
    motion: Literal["native", "delta", "absolute"]
    rotation: Rotation | None = None
    position_unit: float | None = bounded(None, above=0, most=1e6)
    rotation_unit: float | None = bounded(None, above=0, most=1e6)
    gripper: GripperConvention | None = None
    relative_to: Literal["target", "measured", "plan"] | None = None
    frame: Literal["world", "tool"] | None = None
    composed: Literal["added", "multiplied"] | None = None
    beyond: Literal["refuse", "clip", "execute"] | None = None

    def __post_init__(self) -> None:
        check_bounds(self)
        needed = {
            "native": (),
            "absolute": ("rotation", "position_unit", "gripper", "beyond"),
            "delta": (
                *("rotation", "position_unit", "rotation_unit", "gripper"),
                *("relative_to", "frame", "composed", "beyond"),
            ),
        }[self.motion]
        optional = ("rotation_unit",) if self.motion == "absolute" else ()
        for one in dataclasses.fields(self):
            given = getattr(self, one.name) is not None
            if one.name in ("key", "motion") or one.name in optional or given == (one.name in needed):
                continue
            what = "belongs to other motions; drop it" if given else "is missing; say it, nothing is assumed"
            raise ValueError(f"action.{one.name} {what} (action.motion is {self.motion!r})")
        if self.rotation not in ("euler_xyz", "axis_angle", None) and self.rotation_unit not in (None, 1.0):
            raise ValueError(f"action.rotation_unit is {self.rotation_unit}; a {self.rotation} has no unit: give 1")
        if self.composed == "added" and (self.rotation != "euler_xyz" or self.frame != "world"):
            raise ValueError("action.composed is 'added', which Euler angles in the world frame alone can be")


@dataclass(frozen=True)
class Conventions:
    """Everything that two programs on a socket must agree on.

    Attributes:
        name: what to call this agreement, in results.
        protocol: openpi or vla-eval: how messages are put around it.
        robot: the robot that it is about.
        prompt: where the instruction is in a message.
        cameras: camera of the robot -> how its images are sent; a camera that is not here is not sent.
        state: where in a message -> the numbers there, in order, by name (docs/remote.md lists them).
        state_type: of those numbers.
        action: what the answer's numbers mean.
        steps_per_answer: actions of an answer that are executed before the next observation is sent; null: as the
            policy itself says (arvrm serve).
        absent: (arvrm serve) what the policy observes and no message has -> the number to put there, or "tracked" (of a
            target pose: the arm's pose at the start, moved by every action answered) or "measured" (the arm's pose).
        constants: (arvrm evaluate) what else every message holds, such as the name of a normalisation.
    """

    name: str
    protocol: Protocol
    robot: str
    prompt: Key
    cameras: dict[str, CameraConvention]
    state: dict[str, tuple[str, ...]]
    action: ActionConvention
    state_type: Literal["float32", "float64"] = "float32"
    steps_per_answer: int | None = bounded(None, least=1, most=10**4)
    absent: dict[str, float | str] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_bounds(self)
        for name, value in self.absent.items():
            if isinstance(value, str) and (value not in ("tracked", "measured") or name != "target_pose"):
                raise ValueError(f"absent.{name} is {value!r}; give a number, or tracked or measured of target_pose")


def load_conventions(name: str, flag: str = "--conventions") -> Conventions:
    """Read conventions from a JSON file, or those that arvrm brings, by name.

    Raises:
        UserError: no such file or name, or one that leaves something open or says it wrongly.
    """
    bundled = {path.stem: path for path in sorted(PRESETS.glob("*.json"))}
    if name in bundled:
        return from_dict(Conventions, read_json(bundled[name]), name)
    if not Path(name).exists():
        raise UserError(
            f"{flag} {name}: no such file{nearest(name, bundled)}; write one (docs/remote.md), or name one of "
            f"{', '.join(bundled)}"
        )
    return from_dict(Conventions, read_json(name), name)


def native_conventions(robot: Robot, spec: PolicySpec) -> Conventions:
    """Return those of arvrm's own server: the robot's arrays and actions as they are, the policy's image sizes."""
    return Conventions(
        name="arvrm",
        protocol="openpi",
        robot=robot.name,
        prompt="prompt",
        cameras={name: CameraConvention(f"observation/{name}", size) for name, size in spec.image_sizes.items()},
        state={f"observation/{name}": (name,) for name in robot.observed},
        action=ActionConvention("actions", "native"),
        state_type="float64",
    )


def as_values(conventions: Conventions) -> dict[str, Any]:
    """Return conventions as a results file or a server's metadata holds them: everything, the defaults too."""
    return to_dict(conventions)


def found_at(message: dict[str, Any], key: Key) -> Any:
    """Return what a message has at `key`; None: nothing."""
    for name in (key,) if isinstance(key, str) else key:
        message = message.get(name) if isinstance(message, dict) else None  # type: ignore[assignment]
    return message


def put_at(message: dict[str, Any], key: Key, value: Any) -> None:
    """Put `value` at `key` of a message."""
    *path, last = (key,) if isinstance(key, str) else key
    for name in path:
        message = message.setdefault(name, {})
    message[last] = value
