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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import numpy as np

if TYPE_CHECKING:
    import torch

SCENES = ("A", "B", "C", "D")
BLOCKS = ("red", "blue", "pink")
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

LONGEST_SENTENCE = 2000
"""Letters of an instruction."""


class UserError(Exception):
    """A mistake the user can mend. One line: place, value, remedy. The CLI prints it and exits with 2."""


@dataclass(frozen=True)
class Observation:
    """What a policy sees at one control step.

    Attributes:
        state: the arrays that the robot's `observed` names, one row each; of CALVIN's robot `robot_obs` (15,) and
            `target_pose` (6,) float64.
        images: camera name -> (H, W, 3) uint8; empty where this step was not rendered.
    """

    state: Mapping[str, np.ndarray]
    images: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class PolicySpec:
    """What a rollout must know of a policy before it starts.

    Attributes:
        robot: the name of the robot that it observes and moves; None: any (an expert acts inside its world).
        image_sizes: camera name -> pixels of the square image it wants; empty: no images.
        history_offsets: step offsets, ascending, last one 0, of the frames the policy needs when it plans, such as
            (-3, 0). Steps before the start of the instruction repeat its first frame.
        execute_steps: how many actions of a planned chunk are executed before it plans again.
        batch: requests that it plans for best at once; a rollout waits for so many, or for all that may still come.
        bounded: its continuous actions stay within -1..1 (as `Robot.encode_actions` has them), and others are refused
            as mistakes; false: they may leave it, and are executed as they are (imported policies, whose originals
            clip nothing).
        looks_when_needed: its requests come without images; where it needs them to plan, it answers `ImagesWanted`, and
            is asked again with them. For a policy that follows a plan and looks up now and then; it has no history.
    """

    robot: str | None
    image_sizes: Mapping[str, int] = field(default_factory=dict)
    history_offsets: tuple[int, ...] = (0,)
    execute_steps: int = 1
    batch: int = 1
    bounded: bool = True
    looks_when_needed: bool = False


@dataclass(frozen=True)
class PlanRequest:
    """One simulator's wish for a chunk: `history` has one observation per `PolicySpec.history_offsets`."""

    instruction: str
    history: tuple[Observation, ...]
    rollout: int
    """Identifies the chain, so that a policy can keep caches apart."""
    step: int
    """Control steps since this instruction began."""


@dataclass(frozen=True)
class Stroke:
    """A line, or with one point a ring, to be drawn over an image.

    Attributes:
        points: (n, 2), u and v in shares of the image's width and height.
        colour: "#rrggbb".
        width: in shares of the image's width; a ring's is its radius.
    """

    points: np.ndarray
    colour: str
    width: float = 0.005


@dataclass(frozen=True)
class Drawing:
    """What a policy has in mind, to be drawn over a camera's image in films.

    Attributes:
        camera: whose image.
        strokes: in order; later ones cover earlier ones.
        caption: a line about it.
    """

    camera: str
    strokes: tuple[Stroke, ...]
    caption: str = ""


class PlanFailed(Exception):
    """Why a policy has no plan for one request. `Policy.plan` may return it in a chunk's place: that chain ends there,
    a failure with this reason, and the other requests of the batch have their plans."""


class ImagesWanted(Exception):
    """`Policy.plan` may return it in a chunk's place, if `PolicySpec.looks_when_needed`: ask again, with images."""


class Policy(Protocol):
    """Plans chunks of actions for a batch of simulators. Must not keep state that changes results with batch order.

    It may also have `notes(rollout) -> dict[str, int]`: what happened in a rollout that a reader of its result should
    know, such as that no motion was found for the words, and how often; and `drawing(rollout) -> Drawing | None`: what
    it has in mind there now, for films. One that keeps something of each rollout may have `ended(rollout) -> None`:
    that rollout asks no more, and one of the same number that comes later begins anew.
    """

    spec: PolicySpec

    def plan(self, requests: list[PlanRequest]) -> Sequence[np.ndarray | PlanFailed | ImagesWanted]:
        """Return one (C, A) float32 array of actions per request, C >= spec.execute_steps.

        Columns and units are those of the robot's `actions`; CALVIN's: 3 position, 3 Euler in [-1, 1] (unless
        `spec.bounded` is false), gripper exactly -1 (close) or 1 (open).
        """
        ...


@dataclass(frozen=True)
class ArraySpec:
    """What one array of an episode must be. `shape` is that of one row; None stands for 21 or 42 keypoints."""

    dtype: str
    shape: tuple[int | None, ...]
    required: bool = True
    finite: bool = True


@dataclass(frozen=True)
class Camera:
    """One of a robot's cameras.

    Attributes:
        name: in stores and observations, such as "rgb_static".
        role: in batches and networks: "static" for the one that overlooks the scene, whose images are compared with
            clips of hands; any other for the rest, such as "gripper".
    """

    name: str
    role: str


@dataclass(frozen=True)
class ActionLayout:
    """What the A numbers of an action mean.

    Attributes:
        names, units: (A,) each, in order.
        binary: how many, the last ones, are exactly -1 or 1.
        relative: they move what `frame` says; else they are absolute.
        frame: the frame and the quantity that they are in, for a person.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    binary: int
    relative: bool
    frame: str

    @property
    def size(self) -> int:
        """A."""
        return len(self.names)

    @property
    def continuous(self) -> int:
        """The numbers before the binary ones."""
        return len(self.names) - self.binary


class Robot(Protocol):
    """What a robot is, in one object: windows, training, policy, evaluation and retrieval ask it, and nothing else.

    S components, Ds numbers of state, A numbers of an action. `arvrm/robots/calvin.py` is one; docs/extending.md shows
    another.

    Attributes:
        name: under which stores and checkpoints name it.
        control_hz: steps a second, in which `WindowConfig.stride` counts.
        components, component_units: (S,) each: what the analogy map gives, in order.
        state_size: Ds.
        observed: name -> shape of a row: the arrays that an observation holds, each also in `arrays`. Of those that
            `arrays` does not require an episode may have none.
        actions: their layout; the store's arrays `actions` (labels) and `executed` have it.
        cameras: at least one; the first has the role "static".
        arrays: what an episode may and must hold, N rows each.
        statistics: a frozen dataclass of JSON-able numbers by which states and actions are normalised. Checkpoints keep
            them, and training and rollout both use the checkpoint's.
    """

    @property
    def name(self) -> str: ...
    @property
    def control_hz(self) -> float: ...
    @property
    def components(self) -> tuple[str, ...]: ...
    @property
    def component_units(self) -> tuple[str, ...]: ...
    @property
    def state_size(self) -> int: ...
    @property
    def observed(self) -> Mapping[str, tuple[int, ...]]: ...
    @property
    def actions(self) -> ActionLayout: ...
    @property
    def cameras(self) -> tuple[Camera, ...]: ...
    @property
    def arrays(self) -> Mapping[str, ArraySpec]: ...
    @property
    def statistics(self) -> Any: ...

    def with_statistics(self, values: Mapping[str, Any], place: str = "statistics") -> Robot:
        """Return the same robot with other numbers; raises UserError, naming `place`, if they do not fit."""
        ...

    def encode_components(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return (..., S) float32, about -1..1, for `observed` arrays with any leading axes."""
        ...

    def decode_components(self, components: np.ndarray) -> np.ndarray:
        """Invert `encode_components`: (..., S) float64 in `component_units`."""
        ...

    def encode_state(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return (..., Ds) float32: what a policy reads of the robot's own state."""
        ...

    def encode_actions(self, actions: np.ndarray) -> np.ndarray:
        """Return actions (..., A) float32 as a network learns them: continuous ones within -1..1, binary ones as is."""
        ...

    def decode_actions(self, actions: np.ndarray) -> np.ndarray:
        """Invert `encode_actions`: (..., A) float32 as a store or a simulator has them."""
        ...

    def check_actions(self, place: str, actions: np.ndarray) -> None:
        """Raise UserError, naming place, row and column, for (n, A) finite actions that the robot cannot execute."""
        ...

    def landmark_offsets(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return (N, L, 3) in LANDMARK_UNIT_M: the privileged `landmarks` from the gripper; only where a store has
        them."""
        ...

    def example(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return an observation's arrays (one row, plausible numbers), to try a policy with."""
        ...

    def random_action(self, rng: np.random.Generator) -> np.ndarray:
        """Return an (A,) float32 action drawn at random, as the policy `random` executes it."""
        ...


@dataclass(frozen=True)
class Job:
    """One chain to roll out.

    Attributes:
        index: its number; tasks, instructions: what is to be done and how it is said.
        start: what the world starts from: its own matter (the play table: a `Chain` of arvrm.sim.chains; with the
            single-task protocol a tuple of them, each with the tasks that the expert does beforehand).
        film: where to film it, if at all.
    """

    index: int
    tasks: tuple[str, ...]
    instructions: tuple[str, ...]
    start: Any
    film: str | None = None


class World(Protocol):
    """What a rollout needs of a simulator (or of a robot on a table), the judge of its tasks included.

    A worker process builds one and uses it for many chains. `info` is its own matter: whatever `completed` needs of a
    moment.

    Attributes:
        robot: whose observations it gives and whose actions it executes.
    """

    @property
    def robot(self) -> Robot: ...

    def start(self, job: Job) -> Any:
        """Bring everything to the job's initial state; return the info there. No chain knows the one before."""
        ...

    def step(self, action: np.ndarray) -> Any:
        """Execute one (A,) action for one control step; return the info after it."""
        ...

    def observe(self) -> Observation:
        """Return the observation without images."""
        ...

    def cameras(self, film: bool = False) -> dict[str, np.ndarray]:
        """Render camera name -> (H, W, 3) uint8, in the sizes the policy asked for; for films in the world's own."""
        ...

    def completed(self, start_info: Any, info: Any, task: str) -> bool:
        """Whether `task` is done, by the infos at its instruction's start and now."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what to note in the results, JSON-able: at least "simulator", its name and version."""
        ...

    def close(self) -> None: ...


class ExpertWorld(World, Protocol):
    """A world with scripted experts."""

    def expert(self, task: str, rng: np.random.Generator) -> Callable[[], np.ndarray]:
        """Return act() -> (A,) action of the task's expert, for `--policy expert`."""
        ...


class WorldFactory(Protocol):
    """What `evaluate --world package.module:name` names: called in each worker process with the whole configuration
    and the policy's wishes.

    It may also have `jobs(config) -> list[Job]`, which is asked in the parent process and builds no simulator: the
    chains that there are. Without it they are CALVIN's.
    """

    def __call__(self, config: Any, spec: PolicySpec) -> World: ...


class Network(Protocol):
    """What training, policy, checkpoint, index and exhibits use of a network; it is a `torch.nn.Module` besides.

    `model.networks` names each kind of it. A network of stage 1 alone reads hands and has no `act`.

    Attributes:
        kind: under which checkpoints name it.
        config: the frozen dataclass it was built from.
        robot: whose components, state, actions and cameras it knows; None: a network of hands alone.
    """

    kind: str
    config: Any

    @property
    def robot(self) -> Robot | None: ...

    def forward(self, batch: Any) -> dict[str, torch.Tensor]:
        """Return "loss", the weighted sum that training descends, its parts, and what was predicted."""
        ...

    def image_encoder(self, role: str) -> torch.nn.Module:
        """Return what encodes the images of the camera of this role (several may share one)."""
        ...

    def language(self, text: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        """Return the language token z_l (B, d)."""
        ...

    def hands(self) -> tuple[torch.nn.Module, str]:
        """Return the part that stage 1 trains (maybe all of it), and how its names begin among the network's own."""
        ...

    def self_contained(self) -> Any:
        """Return `config` with all that loading needs inside, so that a checkpoint needs no other file."""
        ...


class PolicyNetwork(Network, Protocol):
    """A network that plans."""

    @property
    def robot(self) -> Robot: ...

    def encode_frames(self, batch: RobotBatch) -> dict[str, torch.Tensor]:
        """Return what each frame's images become, role + "_tokens" (B, T, ..., d) and maybe more, for `act`'s use."""
        ...

    def act(self, batch: RobotBatch) -> torch.Tensor:
        """Return (B, C, A) float32, normalised as `Robot.encode_actions` has them, from observations and no targets."""
        ...

    @property
    def map_by_words(self) -> bool:
        """Whether the analogy map depends on language."""
        ...

    def analogy_map(self, z_l: torch.Tensor | None = None) -> torch.Tensor | None:
        """Return m (S, K), or (B, S, K) where it depends on language z_l (B, d); None: the network has no map."""
        ...


class PlaceBatch(TypedDict):
    """Images of human clips, each with where its hand will be at two moments of the clip, touch and end.

    P images, which need not be those of the windows beside them. Nothing in it is known of a clip but what a video of a
    hand with a sentence gives.

    Keys:
        image: (P, H, W, 3) uint8, RGB, before the touch or at it.
        text: (P, L, E) float32; text_mask: (P, L) bool; as in `HumanBatch`.
        points: (P, 2, 21, 3) float32, the acting hand at the touch and at the end, as `keypoints` of `HumanBatch`.
        visible: (P, 2, 21) float32, 1 where the keypoint was observed, 0 elsewhere.
        known: (P, 2) float32, how much each moment counts: the confidence with which it was found; 0: not at all.
        motion: (P, D) float32, what the hand does around the touch, see `model.places.MOTION_SIZE`; pixels of 96.
        motion_known: (P, D) float32, 0 where it was not seen.
    """

    image: torch.Tensor
    text: torch.Tensor
    text_mask: torch.Tensor
    points: torch.Tensor
    visible: torch.Tensor
    known: torch.Tensor
    motion: torch.Tensor
    motion_known: torch.Tensor


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
            to the wrist in units of 0.1 m (+ away). `hands.coordinates.normalise_keypoints` makes them.
        visible: (B, T, K) bool. Where False, `keypoints` is not read (any value but NaN). A missing hand: all False.
        next_keypoints: (B, K, 3) float32, optional: `keypoints` at the frame that would follow the window's last, which
            lets even the last frame (and a window of one) predict; next_visible: (B, K) bool.
        future_keypoints: (B, N, K, 3) float32, optional: `keypoints` at that frame and the N - 1 after it;
            future_visible: (B, N, K) bool, False past the clip's end.
        frame_mask: (B, T) bool, False for padding.
        places: optional, images of their own size P with the hand at the moments.
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
    places: PlaceBatch


class RobotBatch(TypedDict, total=False):
    """Windows of robot episodes, as torch tensors; stage 2. A policy gives the keys up to `frame_mask` and `clips`.

    Padding frames (`frame_mask` False) influence nothing. The last frame of a window is never padding: pad in front.

    Keys:
        text, text_mask, static, static_features, frame_mask: as in `HumanBatch`.
        gripper: (B, T, h, w, 3) uint8, RGB; or gripper_features: (B, T, 1 + P, D), frozen features of it.
        state: (B, T, Ds) float32, from `Robot.encode_state`.
        components: (B, T, S) float32, from `Robot.encode_components`.
        actions: (B, T, C, 7) float32: the chunk that starts at each frame; relative actions, gripper -1 or 1.
        action_mask: (B, T, C) bool, False past the episode's end.
        next_components: (B, T, S) float32, `components` at the next frame of the window's spacing.
        next_mask: (B, T) bool, False where there is no next frame.
        landmark_pixels: (B, T, N, 2) float32, optional: where N known points of the scene are in `static`, u and v in
            [-1, 1]; landmark_mask: (B, T, N) bool.
        landmark_offsets: (B, T, N, 3) float32, optional: world positions of those points minus the TCP's, in units of
            LANDMARK_UNIT_M; valid where landmark_mask.
        next_static, next_gripper: (B, T, H, W, 3) uint8, optional: the frames that the image head predicts;
            next_image_mask: (B, T) bool.
        segments: optional, in place of static, gripper, next_static, next_gripper and the features: S runs of frames
            that windows share. B = S n; window i of a run has its frames i to i + T - 1. Keys: static (S, F, H, W, 3)
            uint8, F at least n + T - 1: the first so many are read, the last so many are those to predict. Or
            static_features (S, n + T - 1, 1 + P, D), beside which static, if given, holds frames to predict only. The
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
