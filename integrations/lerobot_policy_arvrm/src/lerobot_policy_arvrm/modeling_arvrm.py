"""A policy of arvrm as LeRobot calls one: batches of tensors in, one action a row out."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies import PreTrainedPolicy
from torch import Tensor

from arvrm.interface import Observation, PlanRequest, PolicySpec, UserError
from arvrm.policy import load_policy
from arvrm.resize import resize
from arvrm.robots.described import DescribedRobot
from lerobot_policy_arvrm.configuration_arvrm import ArvrmConfig, camera_features, state_features

FOLDER = "arvrm"
"""Where in a LeRobot policy's folder the checkpoint is."""
_KINDS = (".json", ".safetensors", ".npz")
"""What of a run's folder is the checkpoint: what its log and its trainer's state are not."""


@dataclass
class _Session:
    """One environment's way through one instruction."""

    number: int
    instruction: str
    step: int = 0
    observed: dict[int, Observation] = field(default_factory=dict)
    chunk: np.ndarray | None = None


class ArvrmPolicy(PreTrainedPolicy):
    """See `lerobot.policies.PreTrainedPolicy`.

    `select_action` keeps what each row of the batch has seen since its episode, or its instruction, began, and gives
    the actions that `arvrm evaluate` would execute. `predict_action_chunk` knows no time and plans from one
    observation, as at an instruction's start.
    """

    config_class = ArvrmConfig
    name = "arvrm"

    def __init__(self, config: ArvrmConfig, dataset_stats: Any = None, dataset_meta: Any = None) -> None:
        super().__init__(config)
        if config.checkpoint is None:
            raise UserError("policy.checkpoint: names no checkpoint of `arvrm finetune`")
        config.take_features(config.checkpoint)  # LeRobot has put an environment's or a data set's in their place
        self.policy = load_policy(
            config.checkpoint, str(config.device), config.index, config.execute_steps, config.plan_rows
        )
        network = getattr(self.policy, "net", None)
        if isinstance(network, torch.nn.Module):
            self.net = network  # so that LeRobot counts its parameters
        self._numbers = itertools.count()
        self._sessions: list[_Session] = []

    @property
    def spec(self) -> PolicySpec:
        return self.policy.spec

    @property
    def robot(self) -> Any:
        return self.policy.robot

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, *, config: Any = None, **kwargs: Any) -> ArvrmPolicy:
        """Load what `_save_pretrained` wrote, from a folder or from the hub; its own weights are never read by name."""
        place = Path(pretrained_name_or_path)
        if not place.is_dir():
            from huggingface_hub import snapshot_download

            place = Path(snapshot_download(str(pretrained_name_or_path), revision=kwargs.get("revision")))
        config = config or PreTrainedConfig.from_pretrained(place)
        if config.checkpoint is None:
            config.checkpoint = str(place / FOLDER)
        return cls(config).eval()

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write a folder that is a LeRobot policy, with the checkpoint inside."""
        config, source = self.config, Path(str(self.config.checkpoint))
        target = Path(save_directory) / FOLDER
        if source.resolve() != target.resolve():
            target.mkdir(parents=True, exist_ok=True)
            for file in source.iterdir():
                if file.is_file() and file.suffix in _KINDS:
                    shutil.copy2(file, target / file.name)
        checkpoint, config.checkpoint = config.checkpoint, None
        try:
            config._save_pretrained(save_directory)
        finally:
            config.checkpoint = checkpoint

    def reset(self) -> None:
        """Forget what was seen: every row begins an episode."""
        self._sessions = []

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **_: Any) -> Tensor:
        """Return the next action of every row, (B, A) float32 on the CPU, as the robot takes it."""
        tasks, frames = self._read(batch)
        if len(self._sessions) != len(tasks):
            self._sessions = [_Session(next(self._numbers), task) for task in tasks]
        for row, task in enumerate(tasks):
            if self._sessions[row].instruction != task:
                self._sessions[row] = _Session(next(self._numbers), task)
        offsets, execute = self.spec.history_offsets, self.spec.execute_steps
        waiting = []
        for session, frame in zip(self._sessions, frames, strict=True):
            session.observed[session.step] = frame
            for old in [at for at in session.observed if at and at < session.step + offsets[0]]:
                del session.observed[old]
            if session.step % execute == 0:
                waiting.append(session)
        requests = [
            PlanRequest(
                session.instruction,
                tuple(session.observed[max(0, session.step + offset)] for offset in offsets),
                session.number,
                session.step,
            )
            for session in waiting
        ]
        if requests:
            for session, chunk in zip(waiting, self.policy.plan(requests), strict=True):
                session.chunk = self._commanded(chunk)
        actions = []
        for session in self._sessions:
            assert session.chunk is not None, "step 0 has planned"
            actions.append(session.chunk[session.step % execute])
            session.step += 1
        return torch.from_numpy(np.stack(actions))

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **_: Any) -> Tensor:
        """Return a chunk of actions for every row, (B, C, A) float32, from this one observation."""
        tasks, frames = self._read(batch)
        length = len(self.spec.history_offsets)
        requests = [
            PlanRequest(task, (frame,) * length, next(self._numbers), 0)
            for task, frame in zip(tasks, frames, strict=True)
        ]
        return torch.from_numpy(np.stack([self._commanded(chunk) for chunk in self.policy.plan(requests)]))

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any] | None]:
        raise NotImplementedError("train with `arvrm finetune`; LeRobot drives what that made")

    def get_optim_params(self) -> dict[str, Any]:
        raise NotImplementedError("train with `arvrm finetune`; LeRobot drives what that made")

    def _commanded(self, chunk: np.ndarray) -> np.ndarray:
        return self.robot.commanded(chunk) if isinstance(self.robot, DescribedRobot) else chunk

    def _read(self, batch: dict[str, Any]) -> tuple[list[str], list[Observation]]:
        """Return each row's instruction and observation."""
        state = self._state(batch)
        rows = len(state)
        images = {name: self._images(batch, name, feature) for name, feature in camera_features(self.robot).items()}
        frames = [
            Observation(self._observed(state[row]), {name: values[row] for name, values in images.items()})
            for row in range(rows)
        ]
        return self._tasks(batch, rows), frames

    def _tasks(self, batch: dict[str, Any], rows: int) -> list[str]:
        given = batch.get("task")
        tasks = [given] * rows if isinstance(given, str) else list(given or [""] * rows)
        if len(tasks) != rows:
            raise UserError(f"task: {len(tasks)} sentences for {rows} rows; give each its own")
        tasks = [task if isinstance(task, str) and task.strip() else self.config.instruction or "" for task in tasks]
        if not all(tasks):
            raise UserError("task: nothing says what is to be done; give --policy.instruction")
        return tasks

    def _state(self, batch: dict[str, Any]) -> np.ndarray:
        """Return (B, n) float64."""
        features = state_features(self.robot)
        missing = [name for name in features if name not in batch]
        if missing:
            have = ", ".join(name for name in batch if name.startswith("observation"))
            raise UserError(f"{missing[0]}: is not observed ({have}); rename with --rename_map")
        values = [batch[name].detach().cpu().numpy().astype(np.float64) for name in features]
        return np.concatenate([value.reshape(len(value), -1) for value in values], axis=1)

    def _observed(self, state: np.ndarray) -> dict[str, np.ndarray]:
        """Return what one row's state is in the robot's own names."""
        observed, found = dict(self.robot.observed), {}
        for name, shape in observed.items():
            if name == "target_pose":  # CALVIN's: the controller's own, which LeRobot's features do not have
                found[name] = state[:6]
                continue
            size = int(np.prod(shape))
            if len(state) != size:
                raise UserError(f"observation.state: has {len(state)} numbers, {self.robot.name} has {size}")
            found[name] = state.reshape(shape)
        return found

    def _images(self, batch: dict[str, Any], camera: str, feature: str) -> np.ndarray:
        """Return (B, size, size, 3) uint8 of a camera, of LeRobot's (B, 3, H, W) in 0..1 or uint8."""
        if feature not in batch:
            have = ", ".join(name for name in batch if "image" in name) or "none"
            raise UserError(f"{feature}: is not observed (cameras: {have}); rename with --rename_map")
        values = batch[feature].detach().cpu()
        if values.ndim != 4 or values.shape[1] != 3:
            raise UserError(f"{feature}: has shape {tuple(values.shape)}, expected (B, 3, H, W)")
        if values.dtype != torch.uint8:
            values = (values.float() * 255).round_().clamp_(0, 255).to(torch.uint8)
        return resize(values.permute(0, 2, 3, 1).contiguous(), self.spec.image_sizes[camera]).numpy()
