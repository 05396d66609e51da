"""Recorded demonstrations as a policy would have met them, and whether they are what they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from arvrm.doctor.conventions import Answers, compare
from arvrm.doctor.findings import Finding
from arvrm.episodes import EpisodeStore
from arvrm.interface import Observation, UserError
from arvrm.robots import CALVIN
from arvrm.robots.calvin import apply_relative_action, relative_action

OFFICIAL_SIZES = {"rgb_static": 200, "rgb_gripper": 84}
_LOOK_AHEAD = 10
"""Steps after which a gripper has followed."""


@dataclass(frozen=True)
class Demonstration:
    """One episode of CALVIN's robot.

    Attributes:
        actions, executed: (N, 7). robot_obs: (N, 15). pose: (N, 6) what relative actions add to: the target pose where
            it was recorded, else the TCP's. exact: whether it was.
        image_steps: (F,) the steps that have images.
    """

    store: EpisodeStore
    id: str
    instruction: str
    actions: np.ndarray
    executed: np.ndarray
    robot_obs: np.ndarray
    pose: np.ndarray
    exact: bool
    image_steps: np.ndarray

    def observation(self, step: int, sizes: Mapping[str, int]) -> tuple[Observation, int]:
        """Return what was seen at a step, and how many steps older its images are; sizes: camera -> wanted pixels."""
        state = {"robot_obs": self.robot_obs[step], "target_pose": self.pose[step]}
        if not sizes:
            return Observation(state), 0
        row = max(0, int(np.searchsorted(self.image_steps, step, side="right")) - 1)
        images = {name: _resized(self.store.frames(self.id, name, [row]), size) for name, size in sizes.items()}
        return Observation(state, images), abs(step - int(self.image_steps[row]))


def load_demonstrations(path: str, most: int) -> list[Demonstration]:
    """Return at most so many episodes of a store, spread over all.

    Raises:
        UserError: no store, or it holds none of CALVIN's robot.
    """
    store = EpisodeStore(path)
    if store.robot_name != CALVIN.name:
        held = f"those of robot {store.robot_name!r}" if store.robot_name else "clips of hands"
        raise UserError(f"{path}: holds {held}; give a store of CALVIN's robot, as `convert calvin` writes")
    ids = [header.id for header in store.headers() if header.embodiment == "robot" and header.steps > 1]
    if not ids:
        raise UserError(f"{path}: holds no episode of a robot; give a store of CALVIN's")
    places = np.unique(np.linspace(0, len(ids) - 1, min(most, len(ids))).astype(int))
    return [_loaded(store, ids[place]) for place in places]


def _loaded(store: EpisodeStore, id: str) -> Demonstration:
    header, arrays = store.header(id), store.arrays(id)
    exact = "target_pose" in arrays
    pose = arrays["target_pose"] if exact else arrays["robot_obs"][:, :6]
    return Demonstration(
        store, id, header.instruction, arrays["actions"].astype(np.float64), arrays["executed"].astype(np.float64),
        arrays["robot_obs"], pose, exact, np.asarray(header.image_steps),
    )  # fmt: skip


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    if images.shape[1:3] == (size, size):
        return images[0]
    import torch

    from arvrm.resize import resize

    return resize(torch.from_numpy(images), size)[0].numpy()


def examine_demonstrations(path: str, demonstrations: list[Demonstration]) -> Iterator[Finding]:
    """Compare the demonstrations' own actions with what the robot then did."""
    part, steps = "demonstrations", sum(len(one.actions) for one in demonstrations)
    yield Finding(part, "store", "note", f"{path}: {len(demonstrations)} episodes, {steps} steps, are replayed")
    exact = [one for one in demonstrations if one.exact]
    gaps = [
        np.abs(apply_relative_action(one.pose[:-1], one.executed[:-1])[:, :3] - one.pose[1:, :3]).max() for one in exact
    ]
    if len(exact) == len(demonstrations) and max(gaps) < 1e-5:
        yield Finding(
            part, "arm", "good", "actions are relative, in 1/50 m, and lead from each target pose to the next"
        )
    else:
        moved = [relative_action(one.robot_obs[:-1, :6], one.robot_obs[1:, :6], 1.0) for one in demonstrations]
        given = np.concatenate([one.executed[:-1] for one in demonstrations])
        wanted = np.concatenate(moved)
        wanted[:, 6] = given[:, 6]  # what the gripper did is looked at below
        pose = np.concatenate([one.robot_obs[:-1, :6] for one in demonstrations])
        found = compare(Answers(part, "recorded actions, against the robot's motion,", given, wanted, pose))
        yield from (finding for finding in found if finding.about in ("position", "rotation", "actions"))
    yield _recorded_gripper(part, demonstrations)


def _recorded_gripper(part: str, demonstrations: list[Demonstration]) -> Finding:
    opened, closed = [], []
    for one in demonstrations:
        command, width = one.executed[:, 6], one.robot_obs[:, 6]
        for step in range(len(command) - _LOOK_AHEAD):
            held = command[step : step + _LOOK_AHEAD]
            if (held == held[0]).all():
                (opened if held[0] > 0 else closed).append(width[step + _LOOK_AHEAD] - width[step])
    if not opened or not closed:
        return Finding(part, "gripper", "unknown", "the demonstrations never hold it both open and closed")
    wider, narrower = float(np.mean(opened)), float(np.mean(closed))
    if wider >= narrower:
        return Finding(part, "gripper", "good", "it opens after 1 and closes after -1")
    text = f"it closes after 1 ({1000 * wider:.1f} mm) and opens after -1 ({1000 * narrower:.1f} mm): reversed"
    return Finding(part, "gripper", "wrong", text)


def examine_sizes(demonstrations: list[Demonstration], sizes: Mapping[str, int]) -> Iterator[Finding]:
    """Compare the image sizes that a policy asks for with the demonstrations' and with CALVIN's."""
    known = {camera.name for camera in CALVIN.cameras}
    cameras = demonstrations[0].store.header(demonstrations[0].id).cameras
    for name in sizes:
        if name not in known:
            raise UserError(f"policy: asks for camera {name!r}; CALVIN's robot has {', '.join(sorted(known))}")
        if name not in cameras:
            raise UserError(f"{demonstrations[0].store.path}: has no images of {name}, which the policy asks for")
    if sizes.get("rgb_static") == OFFICIAL_SIZES["rgb_gripper"] and sizes.get("rgb_gripper") == 200:
        yield Finding(
            "policy", "image sizes", "wrong", "asks for static 84, gripper 200; CALVIN's are 200 and 84: swapped"
        )
        return
    parts, same = [], True
    for name, size in sizes.items():
        stored = cameras[name]
        parts.append(f"{name} {size} (stored {stored[1]} x {stored[0]}, CALVIN's {OFFICIAL_SIZES[name]})")
        same = same and stored == (size, size)
    if not parts:
        yield Finding("policy", "image sizes", "note", "the policy looks at no images")
    elif same:
        yield Finding("policy", "image sizes", "good", f"{'; '.join(parts)}: as recorded")
    else:
        text = f"{'; '.join(parts)}: resized here; `evaluate` draws at the size asked for, which gives other pixels"
        yield Finding("policy", "image sizes", "note", text)
