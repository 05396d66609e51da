"""Every shape, unit, frame and name that crosses a module, said once.

Axis letters, used in all docstrings:

    B  windows in a batch            T  frames of history in a window
    N  steps of an episode (30 Hz)   F  stored image frames of an episode
    K  hand keypoints (21 a hand)    S  robot components (7)
    J  retrieved human clips         C  actions in a chunk
    M  patch latents of one image    d  width of the transformer

World frame: CALVIN's, metres, x right along the table, y away from the operator, z up. Euler angles: xyz (PyBullet's
convention), radians. Images: uint8, HWC, RGB. Pixels: u right, v down, origin at the upper left corner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypedDict

import numpy as np

if TYPE_CHECKING:
    import torch

SCENES = ("A", "B", "C", "D")
BLOCKS = ("red", "blue", "pink")
COMPONENTS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
CONTROL_HZ = 30
FINGERS = ("thumb", "index", "middle", "ring", "little")
KEYPOINTS = (
    "wrist",
    *(f"{finger}_{joint}" for finger in FINGERS for joint in ("1", "2", "3", "tip")),
)
"""The 21-point hand, base to tip, thumb to little finger: MediaPipe's order."""

TASKS = (
    "rotate_red_block_right",
    "rotate_red_block_left",
    "rotate_blue_block_right",
    "rotate_blue_block_left",
    "rotate_pink_block_right",
    "rotate_pink_block_left",
    "push_red_block_right",
    "push_red_block_left",
    "push_blue_block_right",
    "push_blue_block_left",
    "push_pink_block_right",
    "push_pink_block_left",
    "move_slider_left",
    "move_slider_right",
    "open_drawer",
    "close_drawer",
    "lift_red_block_table",
    "lift_red_block_slider",
    "lift_red_block_drawer",
    "lift_blue_block_table",
    "lift_blue_block_slider",
    "lift_blue_block_drawer",
    "lift_pink_block_table",
    "lift_pink_block_slider",
    "lift_pink_block_drawer",
    "place_in_slider",
    "place_in_drawer",
    "stack_block",
    "unstack_block",
    "turn_on_lightbulb",
    "turn_off_lightbulb",
    "turn_on_led",
    "turn_off_led",
    "push_into_drawer",
)
"""CALVIN's 34 tasks, in the order of new_playtable_tasks.yaml."""

LANDMARK_UNIT_M = 0.2
"""Metres of a landmark's offset from the gripper that count as 1."""
POSITION_STEP_M = 0.02
"""Metres that a relative action of 1 moves the target TCP (CALVIN)."""
EULER_STEP_RAD = 0.05
"""Radians that a relative action of 1 turns the target TCP (CALVIN)."""


class UserError(Exception):
    """A mistake the user can mend. One line: place, value, remedy. The CLI prints it and exits with 2."""


@dataclass(frozen=True)
class Observation:
    """What a policy sees at one control step.

    Attributes:
        robot_obs: (15,) float64, CALVIN's: TCP position (3, m), TCP Euler xyz (3, rad), gripper width (m), 7 joint
            angles (rad), last gripper action (+-1: 1 open).
        target_pose: (6,) float64, the controller's target TCP (position m, Euler rad), which relative actions move. A
            policy can integrate it from its own actions; it is passed so that each need not.
        rgb_static: (H, W, 3) uint8 or None where this step was not rendered.
        rgb_gripper: (h, w, 3) uint8 or None.
    """

    robot_obs: np.ndarray
    target_pose: np.ndarray
    rgb_static: np.ndarray | None = None
    rgb_gripper: np.ndarray | None = None


@dataclass(frozen=True)
class PolicySpec:
    """What a rollout must know of a policy before it starts.

    Attributes:
        history_offsets: step offsets, ascending, last one 0, of the frames the policy needs when it plans, such as
            (-3, 0). Steps before the start of the instruction repeat its first frame.
        execute_steps: how many actions of a planned chunk are executed before it plans again.
        static_size, gripper_size: pixels of the square images it wants; None: no images (an expert).
        batch: requests that it plans for best at once; a rollout waits for so many, or for all that may still come.
    """

    history_offsets: tuple[int, ...] = (0,)
    execute_steps: int = 1
    static_size: int | None = 200
    gripper_size: int | None = 84
    batch: int = 1


@dataclass(frozen=True)
class PlanRequest:
    """One simulator's wish for a chunk: `history` has one observation per `PolicySpec.history_offsets`."""

    instruction: str
    history: tuple[Observation, ...]
    rollout: int
    """Identifies the chain, so that a policy can keep caches apart."""
    step: int
    """Control steps since this instruction began."""


class Policy(Protocol):
    """Plans chunks of actions for a batch of simulators. Must not keep state that changes results with batch order."""

    spec: PolicySpec

    def plan(self, requests: list[PlanRequest]) -> list[np.ndarray]:
        """Return one (C, 7) float32 array of relative actions per request, C >= spec.execute_steps.

        Columns: 3 position, 3 Euler in [-1, 1] (units of POSITION_STEP_M, EULER_STEP_RAD), gripper exactly -1 (close)
        or 1 (open).
        """
        ...


class HumanBatch(TypedDict, total=False):
    """Windows of human clips, as torch tensors; stage 1, and the clips of stage 2 (there with axes B, J instead of B).

    Frames are ordered in time; padding frames have `frame_mask` False and influence nothing. Exactly one of `static`
    and `static_features` is given.

    Keys:
        text: (B, L, E) float32, embeddings of the instruction's tokens from the frozen text encoder.
        text_mask: (B, L) bool, False where the instruction has ended.
        static: (B, T, H, W, 3) uint8, RGB, any square size (the model resizes).
        static_features: (B, T, 1 + P, D) float, what the frozen image encoder gives for `static`: CLS, then P patches.
        keypoints: (B, T, K, 3) float32: u and v in [-1, 1] over the image (-1 the left and upper edge), depth relative
            to the wrist in units of 0.1 m (+ away). `model.encoders.normalise_keypoints` makes them.
        visible: (B, T, K) bool. Where False, `keypoints` is not read (any value but NaN). A missing hand: all False.
        next_keypoints: (B, K, 3) float32, optional: `keypoints` at the frame that would follow the window's last, which
            lets even the last frame (and a window of one) predict; next_visible: (B, K) bool.
        future_keypoints: (B, N, K, 3) float32, optional: `keypoints` at that frame and the N - 1 after it;
            future_visible: (B, N, K) bool, False past the clip's end.
        frame_mask: (B, T) bool, False for padding.
    """

    text: torch.Tensor
    text_mask: torch.Tensor
    static: torch.Tensor
    static_features: torch.Tensor
    keypoints: torch.Tensor
    visible: torch.Tensor
    next_keypoints: torch.Tensor
    next_visible: torch.Tensor
    future_keypoints: torch.Tensor
    future_visible: torch.Tensor
    frame_mask: torch.Tensor


class RobotBatch(TypedDict, total=False):
    """Windows of robot episodes, as torch tensors; stage 2. A policy gives the keys up to `frame_mask` and `clips`.

    Padding frames (`frame_mask` False) influence nothing. The last frame of a window is never padding: pad in front.

    Keys:
        text, text_mask, static, static_features, frame_mask: as in `HumanBatch`.
        gripper: (B, T, h, w, 3) uint8, RGB; or gripper_features: (B, T, 1 + P, D), frozen features of it.
        state: (B, T, Ds) float32, from `model.encoders.encode_state`.
        components: (B, T, S) float32, COMPONENTS normalised, from `model.encoders.encode_components`.
        actions: (B, T, C, 7) float32: the chunk that starts at each frame; relative actions, gripper -1 or 1.
        action_mask: (B, T, C) bool, False past the episode's end.
        next_components: (B, T, S) float32, `components` at the next frame of the window's spacing.
        next_mask: (B, T) bool, False where there is no next frame.
        landmark_pixels: (B, T, N, 2) float32, optional: where N known points of the scene are in `static`, u and v in
            [-1, 1]; landmark_mask: (B, T, N) bool.
        landmark_offsets: (B, T, N, 3) float32, optional: world positions of those points minus the TCP's, in units of
            LANDMARK_UNIT_M; valid where landmark_mask.
        next_static, next_gripper: (B, T, H, W, 3) uint8, optional: the frames that the image-prediction head foresees;
            next_image_mask: (B, T) bool.
        segments: optional, in place of static, gripper, next_static, next_gripper and the features: S runs of frames
            that windows share. B = S n; window i of a run has its frames i to i + T - 1. Keys: static (S, F, H, W, 3)
            uint8, F at least n + T - 1: the first so many are read, the last so many are those to foresee. Or
            static_features (S, n + T - 1, 1 + P, D), beside which static, if given, holds frames to foresee only. The
            same of gripper.
        clips: HumanBatch with axes (B, J) in place of B, time-aligned to the window's T frames, or None. A missing
            clip has `frame_mask` all False.
        replay: HumanBatch of its own size, optional: windows of retrieved clips on which stage 1's loss is replayed;
            absent: all of `clips`, which then must have images.
    """

    text: torch.Tensor
    text_mask: torch.Tensor
    static: torch.Tensor
    static_features: torch.Tensor
    gripper: torch.Tensor
    gripper_features: torch.Tensor
    frame_mask: torch.Tensor
    state: torch.Tensor
    components: torch.Tensor
    actions: torch.Tensor
    action_mask: torch.Tensor
    next_components: torch.Tensor
    next_mask: torch.Tensor
    landmark_pixels: torch.Tensor
    landmark_mask: torch.Tensor
    landmark_offsets: torch.Tensor
    next_static: torch.Tensor
    next_gripper: torch.Tensor
    next_image_mask: torch.Tensor
    segments: dict[str, torch.Tensor]
    clips: HumanBatch | None
    replay: HumanBatch
