"""The settings that LeRobot knows a policy of type "arvrm" by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig

from arvrm.interface import UserError
from arvrm.model.checkpoint import read_described, robot_of
from arvrm.robots.described import DescribedRobot

STATE = "observation.state"
IMAGES = "observation.images."


@PreTrainedConfig.register_subclass("arvrm")
@dataclass
class ArvrmConfig(PreTrainedConfig):
    """A checkpoint of `arvrm finetune`; its robot, cameras, history and chunk are the checkpoint's own.

    Attributes:
        checkpoint: its folder; None: `arvrm` in the folder that LeRobot loads the policy from.
        index: the retrieval index of a policy that retrieves at rollout; None: where the checkpoint says.
        execute_steps: actions of a chunk that are executed before the next plan; None: the checkpoint's.
        instruction: what is to be done where the environment or robot says no task.
        plan_rows: environments that are planned for at once; a plan's numbers depend on it in the last digits.
    """

    checkpoint: str | None = None
    index: str | None = None
    execute_steps: int | None = None
    instruction: str | None = None
    plan_rows: int = 1
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {kind: NormalizationMode.IDENTITY for kind in ("VISUAL", "STATE", "ACTION")}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("execute_steps", "plan_rows"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 4096:
                raise ValueError(f"policy.{name} is {value}; give 1 to 4096")
        if self.checkpoint is not None:
            self.take_features(self.checkpoint)

    def take_features(self, checkpoint: str) -> None:
        """Say what the checkpoint's robot observes and does, in LeRobot's terms.

        Raises:
            UserError: it is no checkpoint of a policy.
        """
        described = read_described(checkpoint)
        if described.robot is None:
            raise UserError(f"{checkpoint}: reads hands and moves no robot; give a checkpoint of stage 2")
        robot = robot_of(checkpoint, described)
        images = described.metadata.get("images", {})
        inputs = {
            feature: PolicyFeature(FeatureType.VISUAL, (3, images[name], images[name]))
            for name, feature in camera_features(robot).items()
        }
        if state_features(robot) == (STATE,):
            size = next(iter(robot.observed.values()))
            inputs[STATE] = PolicyFeature(FeatureType.STATE, tuple(size))
        self.input_features = inputs
        self.output_features = {"action": PolicyFeature(FeatureType.ACTION, (robot.actions.size,))}

    def validate_features(self) -> None:
        if not self.image_features:
            raise ValueError("a policy of arvrm sees by a camera at least; name a checkpoint with --policy.checkpoint")

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> None:
        return None

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> Any:
        raise NotImplementedError("train with `arvrm finetune`; LeRobot drives what that made")

    def get_scheduler_preset(self) -> None:
        return None


def camera_features(robot: Any) -> dict[str, str]:
    """Return camera of a robot -> its feature in LeRobot."""
    if isinstance(robot, DescribedRobot):
        known = robot.description.cameras
        return {camera.name: camera.feature or f"{IMAGES}{camera.name}" for camera in known}
    usual = {"rgb_static": "top", "rgb_gripper": "wrist"} if robot.name == "calvin" else {}
    return {camera.name: f"{IMAGES}{usual.get(camera.name, camera.name)}" for camera in robot.cameras}


def state_features(robot: Any) -> tuple[str, ...]:
    """Return the features that side by side are the state that a robot observes."""
    if isinstance(robot, DescribedRobot):
        return robot.description.state.features or (STATE,)
    return (STATE,)
