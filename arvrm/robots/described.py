"""A robot described by numbers and words alone: a JSON file, which stores and checkpoints carry inside.

What can be measured (names, ranges, rate, cameras) a data set gives; what cannot (units, frames, relative or absolute,
which numbers are binary, which camera overlooks the scene) stays null until a person says it, and nothing works with a
description that has such a null (docs/data.md, "Any LeRobot data set").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arvrm.config import bounded, check_bounds, from_dict, to_dict
from arvrm.files import read_json
from arvrm.interface import ActionLayout, ArraySpec, Camera, RobotBatch, UserError
from arvrm.robots.vector import check_binary

FORMAT = "arvrm-robot-1"
_BEYOND = 1e-3
"""How far outside its range, in ranges, a number may lie: rounding."""
_RESERVED = {*RobotBatch.__annotations__, "image", "language"} - {"static", "gripper"}


def fits_as_role(name: str) -> bool:
    """Whether a camera may have this role: networks and batches name parts of theirs by it."""
    taken = name in _RESERVED or name.startswith("next_") or name.endswith(("_features", "_tokens", "_encoder"))
    return name.isascii() and name.isidentifier() and not taken


@dataclass(frozen=True)
class CameraView:
    """A camera.

    Attributes:
        name: in stores and observations.
        role: "static" for the one that overlooks the scene, a name of its own for each other; null: not said yet.
        feature: its name in a LeRobot data set; "": the camera's own name.
    """

    name: str
    role: str | None = None
    feature: str = ""


@dataclass(frozen=True)
class Numbers:
    """The n numbers of a state or of an action, in order.

    Attributes:
        names: (n,) each another.
        units: (n,) as "rad" or "mm"; null: not said yet.
        low, high: (n,) between which they lie: low becomes -1, high 1. Of a binary number its two values.
        features: of a LeRobot data set, which side by side are these numbers; none: not of such a set.
    """

    names: tuple[str, ...]
    units: tuple[str | None, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.names)
        for name in ("units", "low", "high"):
            if len(getattr(self, name)) != count:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {count} names; give one each")
        if not count or len(set(self.names)) != count:
            raise ValueError(f"names {self.names}: give at least one, and no two alike")
        for name, low, high in zip(self.names, self.low, self.high, strict=True):
            if not low < high:
                raise ValueError(f"{name}: low {low} is not below high {high}")

    def encoded(self, values: np.ndarray) -> np.ndarray:
        """Return values (..., n) float64 with low at -1 and high at 1."""
        low, high = np.array(self.low), np.array(self.high)
        return 2.0 * (np.asarray(values, dtype=np.float64) - low) / (high - low) - 1.0

    def decoded(self, values: np.ndarray) -> np.ndarray:
        low, high = np.array(self.low), np.array(self.high)
        return (np.asarray(values, dtype=np.float64) + 1.0) / 2.0 * (high - low) + low


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a robot is; the content of its JSON file.

    Attributes:
        format: of the file.
        name: under which stores and checkpoints name it.
        control_hz: steps a second.
        cameras: the first is the static one, once that is said.
        state: what is measured.
        action: what is commanded.
        relative: actions move what `frame` says; false: they are absolute; null: not said yet.
        binary: how many of the action's numbers, the last ones, have two values only; null: not said yet.
        frame: the frame and quantity that actions are in, for a person; null: not said yet.
    """

    format: str = FORMAT
    name: str
    control_hz: float = dataclasses.field(metadata={"least": None, "above": 0, "most": 10_000})
    cameras: tuple[CameraView, ...]
    state: Numbers
    action: Numbers
    relative: bool | None = None
    binary: int | None = bounded(None, least=0, most=10_000)
    frame: str | None = None

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.format != FORMAT:
            raise ValueError(f"format {self.format[:40]!r} is unknown; this version reads {FORMAT!r}")
        if not self.name or not self.name.isprintable() or ":" in self.name or len(self.name) > 200:
            raise ValueError(f"name {self.name[:40]!r}: give 1 to 200 letters, none of them a colon")
        if self.binary is not None and self.binary > len(self.action.names):
            raise ValueError(f"binary is {self.binary}; there are {len(self.action.names)} numbers of action")
        names = [camera.name for camera in self.cameras]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"cameras {names}: give at least one, and no two alike")
        roles = [camera.role for camera in self.cameras if camera.role is not None]
        for role in roles:
            if not fits_as_role(role):
                raise ValueError(f"camera role {role!r}: give another name, of letters, digits and _")
        if len(set(roles)) != len(roles):
            raise ValueError(f"cameras have roles {roles}; no two may be alike")

    @property
    def unknown(self) -> dict[str, str]:
        """What nobody has said yet: key -> what is to be said."""
        found = {}
        if all(camera.role != "static" for camera in self.cameras):
            found["static"] = f"which camera overlooks the scene ({', '.join(c.name for c in self.cameras)})"
        if self.relative is None:
            found["relative"] = "whether actions are relative (true) or absolute (false)"
        if self.binary is None:
            found["binary"] = "how many of the last numbers of an action have two values only (0: none)"
        if self.frame is None:
            found["frame"] = "in which frame, and of what, actions are"
        if any(unit is None for unit in self.state.units):
            found["units"] = "the units of the state"
        if any(unit is None for unit in self.action.units):
            found["action_units"] = "the units of the action"
        return found


@dataclass(frozen=True)
class Span:
    """`DescribedRobot.statistics`: the ranges of state (S,) and action (A,)."""

    state_low: tuple[float, ...]
    state_high: tuple[float, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]


@dataclass(frozen=True)
class DescribedRobot:
    """See `interface.Robot`. An observation, and a row of an episode, holds `state` (S,) float64.

    A binary number of an action is -1 (its `low`) or 1 (its `high`) in stores, plans and worlds; `commanded` gives the
    values that the robot itself takes.

    Raises:
        UserError: something is not said yet.
    """

    description: Description
    place: str = dataclasses.field(default="robot description", compare=False)

    def __post_init__(self) -> None:
        if unknown := self.description.unknown:
            asked = "; ".join(f"{key}: {what}" for key, what in unknown.items())
            raise UserError(f"{self.place}: does not say {', '.join(unknown)}, and it is not guessed ({asked})")
        first = self.description.cameras[0]
        if first.role != "static":
            cameras = sorted(self.description.cameras, key=lambda camera: camera.role != "static")
            changed = dataclasses.replace(self.description, cameras=tuple(cameras))
            object.__setattr__(self, "description", changed)

    @property
    def name(self) -> str:
        return self.description.name

    @property
    def control_hz(self) -> float:
        return self.description.control_hz

    @property
    def components(self) -> tuple[str, ...]:
        return self.description.state.names

    @property
    def component_units(self) -> tuple[str, ...]:
        return tuple(unit or "" for unit in self.description.state.units)

    @property
    def state_size(self) -> int:
        return len(self.components)

    @property
    def observed(self) -> Mapping[str, tuple[int, ...]]:
        return {"state": (self.state_size,)}

    @property
    def _binary(self) -> int:
        return self.description.binary or 0

    @property
    def actions(self) -> ActionLayout:
        known, binary = self.description, self._binary
        continuous = len(known.action.names) - binary
        units = tuple(unit or "" for unit in known.action.units[:continuous])
        return ActionLayout(
            known.action.names, (*units, *["-1 low, 1 high"] * binary), binary, bool(known.relative), known.frame or ""
        )

    @property
    def cameras(self) -> tuple[Camera, ...]:
        return tuple(Camera(camera.name, camera.role or "") for camera in self.description.cameras)

    @property
    def arrays(self) -> Mapping[str, ArraySpec]:
        shape = (len(self.description.action.names),)
        return {
            "state": ArraySpec("float64", (self.state_size,)),
            "actions": ArraySpec("float32", shape),
            "executed": ArraySpec("float32", shape, required=False),
        }

    @property
    def statistics(self) -> Span:
        state, action = self.description.state, self.description.action
        return Span(state.low, state.high, action.low, action.high)

    def with_statistics(self, values: Mapping[str, Any], place: str = "statistics") -> DescribedRobot:
        span, known = from_dict(Span, dict(values), place), self.description
        try:
            state = dataclasses.replace(known.state, low=span.state_low, high=span.state_high)
            action = dataclasses.replace(known.action, low=span.action_low, high=span.action_high)
        except ValueError as error:
            raise UserError(f"{place}: {error}") from error
        return DescribedRobot(dataclasses.replace(known, state=state, action=action), place)

    def encode_components(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        return self.description.state.encoded(state["state"]).astype(np.float32)

    def decode_components(self, components: np.ndarray) -> np.ndarray:
        return self.description.state.decoded(components)

    def encode_state(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        return self.encode_components(state)

    def encode_actions(self, actions: np.ndarray) -> np.ndarray:
        return self._except_binary(actions, self.description.action.encoded(actions))

    def decode_actions(self, actions: np.ndarray) -> np.ndarray:
        return self._except_binary(actions, self.description.action.decoded(actions))

    def commanded(self, actions: np.ndarray) -> np.ndarray:
        """Return actions (..., A) float32 of a store or a plan with the values that the robot itself takes.

        They are `action.low` and `action.high` where a binary number is -1 or 1; the rest stays.
        """
        return self._binary_of(actions, self.description.action.decoded(actions))

    def recorded(self, actions: np.ndarray) -> np.ndarray:
        """Invert `commanded`; raises UserError where a binary number has a third value."""
        found = self._binary_of(actions, self.description.action.encoded(actions))
        binary = found[..., found.shape[-1] - self._binary :]
        near = np.isclose(np.abs(binary), 1.0, atol=1e-5)
        if not near.all():
            column = int(np.argwhere(~near.reshape(-1, self._binary))[0][1]) + found.shape[-1] - self._binary
            known = self.description.action
            value = np.asarray(actions)[..., column][~near[..., column - found.shape[-1]]].flat[0]
            values = f"{known.low[column]:g} or {known.high[column]:g}"
            raise UserError(f"action {known.names[column]!r} is {value:g}, and said to be binary: {values}")
        binary[...] = np.sign(binary)
        return found

    def check_actions(self, place: str, actions: np.ndarray) -> None:
        """Raises UserError: a number leaves its range by more than a thousandth of it, or a binary one is not +-1."""
        known, continuous = self.description.action, self.actions.continuous
        beyond = np.abs(known.encoded(actions)[:, :continuous]) > 1 + 2 * _BEYOND
        if beyond.any():
            row, column = np.argwhere(beyond)[0]
            value = f"{place}[{row}, {column}] ({known.names[column]}) is {actions[row, column]:g}"
            raise UserError(
                f"{value}; {self.name} is described with {known.low[column]:g} to {known.high[column]:g}: widen "
                "action.low and action.high there, or mend the recording"
            )
        check_binary(place, actions, continuous)

    def landmark_offsets(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        raise UserError(f"robot {self.name}: has no landmarks; set loss.localisation and loss.geometry to 0")

    def example(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"state": self.decode_components(rng.uniform(-1, 1, self.state_size))}

    def random_action(self, rng: np.random.Generator) -> np.ndarray:
        action = rng.uniform(-1, 1, self.actions.size)
        action[self.actions.continuous :] = rng.choice([-1.0, 1.0], self._binary)
        return self.decode_actions(action)

    def _except_binary(self, given: np.ndarray, changed: np.ndarray) -> np.ndarray:
        if self._binary:
            changed[..., -self._binary :] = np.asarray(given)[..., -self._binary :]
        return changed.astype(np.float32)

    def _binary_of(self, given: np.ndarray, changed: np.ndarray) -> np.ndarray:
        found = np.array(given, dtype=np.float32)
        if self._binary:
            found[..., -self._binary :] = changed[..., -self._binary :]
        return found


def read_description(values: Any, place: str) -> Description:
    """Return what `described_as` wrote; raises UserError, naming `place`, where it is none."""
    return from_dict(Description, values, place)


def load_description(file: str | Path) -> Description:
    """Read a robot's JSON file, questions still open included."""
    return read_description(
        read_json(file, "give a robot description, as `arvrm describe lerobot` writes it"), str(file)
    )


def described_as(robot: Any) -> dict[str, Any] | None:
    """Return what a store or checkpoint keeps of a robot, JSON-able; None: its name alone."""
    return to_dict(robot.description) if isinstance(robot, DescribedRobot) else None


def unlike(one: Any, other: Any, place: str = "") -> str:
    """Return where two JSON-able descriptions differ first, with both values; "": they are equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            if found := unlike(one.get(key), other.get(key), f"{place}.{key}" if place else key):
                return found
        return ""
    return "" if one == other else f"{place or 'it'}: {_brief(one)} and {_brief(other)}"


def lines(description: Description) -> list[str]:
    """Return a description for a person, a line each."""
    known = description
    relative = {None: "relative or absolute: ?", True: "relative", False: "absolute"}[known.relative]
    binary = "?" if known.binary is None else known.binary
    out = [f"robot {known.name}, {known.control_hz:g} steps a second"]
    for camera in known.cameras:
        out.append(f"camera {camera.name}: role {camera.role or '?'}{_from((camera.feature,))}")
    for title, numbers in (("state", known.state), ("action", known.action)):
        out.append(f"{title}{_from(numbers.features)}: {len(numbers.names)} numbers")
        for name, unit, low, high in zip(numbers.names, numbers.units, numbers.low, numbers.high, strict=True):
            out.append(f"  {name}: {low:.6g} to {high:.6g} {'?' if unit is None else unit}".rstrip())
    out.append(f"actions: {relative}; of {known.frame or '?'}; the last {binary} binary")
    return out


def _from(features: tuple[str, ...]) -> str:
    named = [feature for feature in features if feature]
    return f" (from {', '.join(named)})" if named else ""


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
