"""Observations and actions into messages and back, as one set of conventions says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from arvrm.interface import LONGEST_SENTENCE, Observation, Robot, UserError
from arvrm.remote import motion
from arvrm.remote.conventions import CameraConvention, Conventions, found_at, put_at
from arvrm.remote.state import parts


class MessageError(ValueError):
    """A message that does not hold what the conventions say. One line: what, and what was expected."""


class Codec:
    """Conventions put to work for one robot.

    Args:
        conventions: as agreed.
        robot: the one they are about.
        sizes: camera -> pixels of the images that the robot's side has: those a policy reads, or a world renders.

    Raises:
        UserError: the conventions name what the robot has not, or ask for a motion that is not known of it.
    """

    def __init__(self, conventions: Conventions, robot: Robot, sizes: Mapping[str, int]) -> None:
        place = f"conventions {conventions.name}"
        if conventions.robot != robot.name:
            raise UserError(f"{place}: are about robot {conventions.robot!r}, not {robot.name!r}; write others")
        if conventions.action.motion != "native" and robot.name != "calvin":
            raise UserError(
                f"{place}: action.motion {conventions.action.motion!r} is known of calvin only; give 'native' for "
                f"{robot.name}"
            )
        known = [camera.name for camera in robot.cameras]
        for camera in conventions.cameras:
            if camera not in known:
                raise UserError(f"{place}: camera {camera!r}; {robot.name} has {', '.join(known)}")
        self.conventions, self.robot, self.sizes = conventions, robot, dict(sizes)
        self.action, self.place = conventions.action, place
        if any(how.size != self.sizes.get(name, how.size) for name, how in conventions.cameras.items()):
            import arvrm.resize  # noqa: F401  it takes seconds to import, and nobody waits for an answer yet
        self.state = {key: parts(names, robot, f"{place}: state.{key}") for key, names in conventions.state.items()}

    @property
    def width(self) -> int:
        """Numbers of one action on the wire."""
        return self.robot.actions.size if self.action.motion == "native" else motion.width(self.action)

    # From the robot's side to the wire

    def message(self, observation: Observation, instruction: str) -> dict[str, Any]:
        """Return what is sent of an observation, without what a protocol puts around it."""
        found: dict[str, Any] = {}
        put_at(found, self.conventions.prompt, instruction)
        for name, how in self.conventions.cameras.items():
            put_at(found, how.key, sent_image(observation.images[name], how))
        for key, named in self.state.items():
            numbers = np.concatenate([part.read(observation.state, self.robot) for part in named])
            put_at(found, key, numbers.astype(self.conventions.state_type))
        for key, value in self.conventions.constants.items():
            put_at(found, key, value)
        return found

    def actions_received(self, values: Any, observation: Observation, least: int) -> np.ndarray:
        """Return an answer's actions (n, A) float32 as the robot's own; nothing is checked of how far they go.

        Args:
            observation: when they were planned.
            least: rows that are needed.

        Raises:
            MessageError: they have another shape, are not finite or no numbers, or a rotation is none.
        """
        try:
            rows = np.asarray(values, np.float64)
        except (TypeError, ValueError) as error:
            raise MessageError(f"actions are no array of numbers ({type(values).__name__})") from error
        if rows.ndim == 1 and least == 1:
            rows = rows[None]
        if rows.ndim != 2 or rows.shape[1] != self.width or len(rows) < least:
            raise MessageError(f"actions of shape {rows.shape}, expected (at least {least}, {self.width})")
        rows = rows[:least]
        if not np.isfinite(rows).all():
            raise MessageError("NaN or infinity in actions")
        if self.action.motion == "native":
            return rows.astype(np.float32)
        try:
            return motion.to_calvin(self.action, rows, *_poses(observation.state))
        except ValueError as error:
            raise MessageError(f"actions: {error}") from error

    # From the wire to the robot's side

    def observation(self, message: dict[str, Any]) -> tuple[str, Observation]:
        """Return instruction and observation of a message; numbers that no message has are NaN.

        Raises:
            MessageError: something is missing or has another form.
        """
        instruction = found_at(message, self.conventions.prompt)
        if not isinstance(instruction, str) or not 0 < len(instruction) <= LONGEST_SENTENCE:
            raise MessageError(
                f"{_name(self.conventions.prompt)}: no instruction; send up to {LONGEST_SENTENCE} letters"
            )
        state = {name: np.full(shape, np.nan) for name, shape in self.robot.observed.items()}
        for key, named in self.state.items():
            size = sum(part.size for part in named)
            numbers = np.asarray(found_at(message, key))
            if numbers.shape != (size,) or numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all():
                form = f"{numbers.shape} {numbers.dtype}" if numbers.dtype.kind != "O" else "nothing"
                raise MessageError(f"{key}: {form}, expected {size} finite numbers: {', '.join(p.name for p in named)}")
            start = 0
            for part in named:
                try:
                    part.write(state, self.robot, numbers[start : start + part.size].astype(np.float64))
                except ValueError as error:
                    raise MessageError(f"{key}: {error}") from error
                start += part.size
        images = {
            name: received_image(found_at(message, how.key), how, self.sizes[name])
            for name, how in self.conventions.cameras.items()
            if name in self.sizes
        }
        return instruction, Observation(state, images)

    def actions_sent(self, actions: np.ndarray, observation: Observation) -> np.ndarray:
        """Return the robot's actions (n, A) as the wire has them: native ones as they are, others float64.

        Args:
            observation: where the robot was, and aimed at, before the first of them.
        """
        if self.action.motion == "native":
            return np.asarray(actions, np.float32)
        return motion.from_calvin(self.action, actions, *_poses(observation.state))


def _poses(state: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The measured pose of CALVIN's tool, and the target that actions move."""
    return np.asarray(state["robot_obs"], np.float64)[:6], np.asarray(state["target_pose"], np.float64)


def _name(key: Any) -> str:
    return key if isinstance(key, str) else "/".join(key)


def sent_image(image: np.ndarray, how: CameraConvention) -> np.ndarray:
    """Return an image (H, H, 3) uint8 as conventions send it."""
    image = _resized(image, how.size)
    if how.turned:
        image = image[::-1, ::-1]
    if how.colours == "bgr":
        image = image[..., ::-1]
    if how.layout == "chw":
        image = image.transpose(2, 0, 1)
    if how.values == "uint8":
        return np.ascontiguousarray(image)
    scaled = image.astype(np.float32) / np.float32(255)
    return scaled if how.values == "0..1" else scaled * 2 - 1


def received_image(image: Any, how: CameraConvention, size: int) -> np.ndarray:
    """Return an image that was sent so as (size, size, 3) uint8; MessageError where it has another form."""
    shape = (3, how.size, how.size) if how.layout == "chw" else (how.size, how.size, 3)
    kind = "uint8" if how.values == "uint8" else "float32"
    if not isinstance(image, np.ndarray) or image.shape != shape or image.dtype != kind:
        found = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else "nothing"
        raise MessageError(f"{_name(how.key)}: {found}, expected {shape} {kind}")
    if kind == "float32":
        if not np.isfinite(image).all():
            raise MessageError(f"{_name(how.key)}: NaN or infinity in the image")
        unit = image if how.values == "0..1" else (image + 1) / 2
        image = np.clip(np.rint(unit * 255), 0, 255).astype(np.uint8)
    if how.layout == "chw":
        image = image.transpose(1, 2, 0)
    if how.colours == "bgr":
        image = image[..., ::-1]
    if how.turned:
        image = image[::-1, ::-1]
    return _resized(image, size)


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    if image.shape[0] == size:
        return image
    import torch

    from arvrm.resize import resize

    return resize(torch.from_numpy(np.array(image))[None], size)[0].numpy()
