"""A robot whose state is one vector of numbers and whose actions are absolute targets of them: joints, a gripper.

Most arms on a table are this. It takes names, units and ranges, and no code (docs/extending.md, "A robot").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from arvrm.config import from_dict
from arvrm.interface import CONTROL_HZ, ActionLayout, ArraySpec, Camera, UserError


@dataclass(frozen=True)
class Ranges:
    """Where the numbers of state and action lie; low becomes -1, high 1.

    Attributes:
        low, high: (S,) each, in the components' units.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high) or not np.isfinite([*self.low, *self.high]).all():
            raise ValueError(f"low {self.low} and high {self.high}: give as many finite numbers of both")
        if not (np.array(self.low) < np.array(self.high)).all():
            raise ValueError(f"low {self.low}, high {self.high}: each low must be below its high")


@dataclass(frozen=True)
class VectorRobot:
    """See `interface.Robot`. An observation, and a row of an episode, holds `state` (S,) float64.

    Attributes:
        name, components, component_units, cameras, control_hz: as in `interface.Robot`.
        statistics: the components' ranges.
        binary: how many of the components, the last ones, are commanded by exactly -1 (low) or 1 (high).
        frame: what the targets are measured in, for a person.
    """

    name: str
    components: tuple[str, ...]
    component_units: tuple[str, ...]
    statistics: Ranges
    cameras: tuple[Camera, ...]
    binary: int = 0
    control_hz: float = float(CONTROL_HZ)
    frame: str = "absolute targets of the components"

    def __post_init__(self) -> None:
        count = len(self.components)
        if len(self.component_units) != count or len(self.statistics.low) != count:
            raise ValueError(f"robot {self.name}: {count} components need as many units and ranges")
        roles = [camera.role for camera in self.cameras]
        if not roles or roles[0] != "static" or len(set(roles)) != len(roles):
            raise ValueError(f"robot {self.name}: cameras have roles {roles}; the first is 'static', no two are alike")
        if not 0 <= self.binary <= count:
            raise ValueError(f"robot {self.name}: binary is {self.binary}; give 0 to {count}")

    @property
    def state_size(self) -> int:
        return len(self.components)

    @property
    def observed(self) -> Mapping[str, tuple[int, ...]]:
        return {"state": (self.state_size,)}

    @property
    def actions(self) -> ActionLayout:
        continuous = self.state_size - self.binary
        units = (*self.component_units[:continuous], *["-1 low, 1 high"] * self.binary)
        return ActionLayout(self.components, units, self.binary, relative=False, frame=self.frame)

    @property
    def arrays(self) -> Mapping[str, ArraySpec]:
        shape = (self.state_size,)
        return {
            "state": ArraySpec("float64", shape),
            "actions": ArraySpec("float32", shape),
            "executed": ArraySpec("float32", shape, required=False),
        }

    def with_statistics(self, values: Mapping[str, Any], place: str = "statistics") -> VectorRobot:
        statistics = from_dict(Ranges, dict(values), place)
        try:
            return dataclasses.replace(self, statistics=statistics)
        except ValueError as error:
            raise UserError(f"{place}: {error}") from error

    def encode_components(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        return self._encoded(state["state"]).astype(np.float32)

    def decode_components(self, components: np.ndarray) -> np.ndarray:
        return self._decoded(components)

    def encode_state(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        return self.encode_components(state)

    def encode_actions(self, actions: np.ndarray) -> np.ndarray:
        return self._except_binary(actions, self._encoded(actions))

    def decode_actions(self, actions: np.ndarray) -> np.ndarray:
        return self._except_binary(actions, self._decoded(actions))

    def check_actions(self, place: str, actions: np.ndarray) -> None:
        """Raises UserError: a target leaves its range (by more than a thousandth of it), or a binary one is not +-1."""
        continuous = self.state_size - self.binary
        beyond = np.abs(self._encoded(actions)[:, :continuous]) > 1.002
        if beyond.any():
            row, column = np.argwhere(beyond)[0]
            low, high = self.statistics.low[column], self.statistics.high[column]
            value = f"{place}[{row}, {column}] ({self.components[column]}) is {actions[row, column]:g}"
            raise UserError(f"{value}; it lies between {low:g} and {high:g} {self.component_units[column]}")
        check_binary(place, actions, continuous)

    def landmark_offsets(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        raise UserError(f"robot {self.name}: has no landmarks; set loss.localisation and loss.geometry to 0")

    def example(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"state": self._decoded(rng.uniform(-1, 1, self.state_size))}

    def random_action(self, rng: np.random.Generator) -> np.ndarray:
        action = rng.uniform(-1, 1, self.state_size)
        action[self.state_size - self.binary :] = rng.choice([-1.0, 1.0], self.binary)
        return self.decode_actions(action)

    def _encoded(self, values: np.ndarray) -> np.ndarray:
        low, high = np.array(self.statistics.low), np.array(self.statistics.high)
        return 2.0 * (np.asarray(values, dtype=np.float64) - low) / (high - low) - 1.0

    def _decoded(self, values: np.ndarray) -> np.ndarray:
        low, high = np.array(self.statistics.low), np.array(self.statistics.high)
        return (np.asarray(values, dtype=np.float64) + 1.0) / 2.0 * (high - low) + low

    def _except_binary(self, given: np.ndarray, changed: np.ndarray) -> np.ndarray:
        if self.binary:
            changed[..., -self.binary :] = np.asarray(given)[..., -self.binary :]
        return changed.astype(np.float32)


def check_binary(place: str, actions: np.ndarray, continuous: int) -> None:
    """Raise UserError, naming `place`, where a number (n, A) after the `continuous` ones is not exactly -1 or 1."""
    wrong = ~np.isin(actions[:, continuous:], (-1.0, 1.0))
    if wrong.any():
        row, column = np.argwhere(wrong)[0] + (0, continuous)
        raise UserError(f"{place}[{row}, {column}] is {actions[row, column]:g}; it is exactly -1 or 1")
