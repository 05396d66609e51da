"""Plans with a network: what a checkpoint says of windows, cameras and robot, put to work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from arvrm.interface import Observation, PlanRequest, PolicyNetwork, PolicySpec, Robot, RobotBatch, UserError
from arvrm.model.checkpoint import Checkpoint, checkpoint_hash, load_checkpoint, place_of, read_described
from arvrm.model.encoders import TextEncoder
from arvrm.model.threads import torch_threads
from arvrm.policy.analogy import AnalogyPolicy, load_analogy
from arvrm.policy.clips import RolloutClips
from arvrm.policy.frame_cache import FrameCache, FrameTokens
from arvrm.retrieval import ClipIndex

_SENTENCES = 1000
"""Whose embeddings are kept."""


class CheckpointPolicy:
    """Plans with a `PolicyNetwork`. Keeps nothing between calls but sentences' embeddings and a ViT's tokens of frames.

    A chain's actions must not depend on who else was waiting, not even in their last bits, which decide what a block
    does after a while. Sums of floating-point numbers depend on the shape of a batch, so every forward pass has exactly
    `spec.batch` rows, the last request repeated where fewer wait. On some shapes and processors they depend on the row
    as well; where a trial at loading shows that, requests are planned for one by one.

    Args:
        checkpoint: of stage 2.
        device: "cpu", "cuda", ...
        retriever: finds human clips, for a network whose analogy map acts at rollout; None: it does not.
        execute_steps: actions executed of each chunk; None: the checkpoint's own, else all but one of ten.
        batch: rows of a forward pass, if all rows compute alike.
        cache: keep the tokens of past frames; false: encode the whole window at every step. The conv encoder reads
            words and is cheap: its frames are encoded together, without a cache.
        threads: of torch while it plans; None: as many as there are.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "cpu",
        retriever: RolloutClips | None = None,
        execute_steps: int | None = None,
        batch: int = 1,
        cache: bool = True,
        threads: int | None = None,
    ) -> None:
        if checkpoint.robot is None:
            raise UserError("policy: this checkpoint reads hands and moves no robot; give one of stage 2")
        self.threads = threads
        self.net: PolicyNetwork = checkpoint.model
        self.config, self.robot = checkpoint.config, checkpoint.robot
        self.metadata, self.hash, self.device = checkpoint.metadata, checkpoint.hash, device
        self.history, self.stride = self.metadata.history, self.metadata.stride
        steps = execute_steps or self.metadata.execute_steps or max(1, round(0.9 * self.config.chunk))
        if not 1 <= steps <= self.config.chunk:
            raise UserError(f"execute_steps: {steps}; this checkpoint plans chunks of {self.config.chunk} actions")
        vision, published = self.config.vision, getattr(self.config, "published", None)
        if published is not None and published.history == "plans":
            self.stride = int(steps)
        self.spec = PolicySpec(
            robot=self.robot.name,
            image_sizes={camera.name: self.metadata.images[camera.name] for camera in self.robot.cameras},
            history_offsets=tuple(range(-(self.history - 1) * self.stride, 1, self.stride)),
            execute_steps=int(steps),
            batch=batch,
            bounded=getattr(self.net, "bounded", True),
        )
        self.text = TextEncoder(self.config.text)
        self.retriever = retriever
        self.by_words = self.config.tokens_by_words
        self.cache = FrameCache() if cache and self.history > 1 and vision.encoder != "conv" else None
        self._sentences: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        if batch > 1 and not self._rows_agree():
            self.spec = replace(self.spec, batch=1)

    def _rows_agree(self) -> bool:
        """Whether requests get the same bits in every row of a batch."""
        rng = np.random.default_rng(0)
        sizes = self.spec.image_sizes

        def frame() -> Observation:
            images = {name: rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for name, size in sizes.items()}
            return Observation(self.robot.example(rng), images)

        requests = [
            PlanRequest("move the block", tuple(frame() for _ in range(self.history)), rollout=row, step=10**6)
            for row in range(self.spec.batch)
        ]
        first = self._afresh(requests)
        for shift in range(1, len(requests)):
            turned = self._afresh(requests[shift:] + requests[:shift])
            if not np.array_equal(np.roll(turned, shift, axis=0), first):
                return False
        return True

    def _afresh(self, requests: list[PlanRequest]) -> list[np.ndarray]:
        """Plan without what is remembered, and remember nothing."""
        if self.cache is not None:
            self.cache.clear()
        chunks = self.plan(requests)
        if self.cache is not None:
            self.cache.clear()
        return chunks

    def plan(self, requests: list[PlanRequest]) -> list[np.ndarray]:
        """Return one (C, A) float32 chunk per request; see `interface.Policy`.

        Raises:
            UserError: an observation is malformed, or the network gives NaN.
        """
        with torch_threads(self.threads):
            return self._plan(requests)

    def _plan(self, requests: list[PlanRequest]) -> list[np.ndarray]:
        chunks: list[np.ndarray] = []
        size = self.spec.batch
        for start in range(0, len(requests), size):
            group = requests[start : start + size]
            padded = group + [group[-1]] * (size - len(group))
            if self.cache is None:
                batch = self.batch(padded)
            else:
                batch = self.batch(padded, images=False) | self._tokens(self.cache, group, len(padded))
            actions = self.net.act(cast("RobotBatch", batch)).float().cpu().numpy()
            for request, chunk in zip(group, actions, strict=False):
                if not np.isfinite(chunk).all():
                    raise UserError(
                        f"policy: NaN in actions for {request.instruction!r} at step {request.step}; "
                        "the checkpoint is broken, train it again"
                    )
                chunks.append(self.robot.decode_actions(chunk))
        return chunks

    def ended(self, rollout: int) -> None:
        """Forget a rollout's frames."""
        if self.cache is not None:
            self.cache.drop(rollout)

    @torch.no_grad()
    def _tokens(self, cache: FrameCache, requests: list[PlanRequest], rows: int) -> dict[str, torch.Tensor]:
        """Return each camera's tokens (rows, T, M + 1, d), encoding only new frames; padding is zero."""
        offsets = self.spec.history_offsets
        found: dict[tuple[int, int], FrameTokens] = {}
        missing: list[tuple[int, int]] = []
        for row, request in enumerate(requests):
            cache.forget(request.rollout, request.step + offsets[0], request.step)
            for t, offset in enumerate(offsets):
                if request.step + offset < 0:
                    continue
                tokens = cache.get(request.rollout, request.step + offset, request.history[t], self._words(request))
                if tokens is None:
                    missing.append((row, t))
                else:
                    found[row, t] = tokens
        size = self.spec.batch
        for start in range(0, len(missing), size):
            some = missing[start : start + size]
            encoded = self._encoded([(requests[row], requests[row].history[t]) for row, t in some])
            for (row, t), tokens in zip(some, encoded, strict=True):
                request, found[row, t] = requests[row], tokens
                cache.put(request.rollout, request.step + offsets[t], request.history[t], tokens, self._words(request))
        example = next(iter(found.values()))
        result = {}
        for role, tokens in example.items():
            stacked = tokens.new_zeros(rows, len(offsets), *tokens.shape)
            for (row, t), known in found.items():
                stacked[row, t] = known[role]
            stacked[len(requests) :] = stacked[len(requests) - 1]
            result[f"{role}_tokens"] = stacked
        return result

    def _encoded(self, frames: list[tuple[PlanRequest, Observation]]) -> list[FrameTokens]:
        """Encode frames, one a row; always `spec.batch` rows, for the reason given above."""
        padded = frames + [frames[-1]] * (self.spec.batch - len(frames))
        sentences = [self._sentence(request.instruction) for request, _ in padded]
        batch: dict[str, Any] = {
            "text": torch.stack([text for text, _ in sentences]),
            "text_mask": torch.stack([mask for _, mask in sentences]),
        }
        for camera in self.robot.cameras:
            images = np.stack([frame.images[camera.name] for _, frame in padded])
            batch[camera.role] = torch.from_numpy(images[:, None])
        encoded = self.net.encode_frames(_to(batch, self.device))
        roles = [camera.role for camera in self.robot.cameras]
        return [{role: encoded[f"{role}_tokens"][row, 0].clone() for role in roles} for row in range(len(frames))]

    def _words(self, request: PlanRequest) -> str:
        """Return the instruction where frames' tokens depend on it."""
        return request.instruction if self.by_words else ""

    def batch(self, requests: list[PlanRequest], images: bool = True) -> dict[str, Any]:
        """Return the requests as a `RobotBatch` of observations, without `images` where their tokens stand for them."""
        for request in requests:
            self._check(request)
        rows = [self._sentence(request.instruction) for request in requests]
        offsets = np.array(self.spec.history_offsets)
        state = {
            name: np.stack([[frame.state[name] for frame in request.history] for request in requests])
            for name in self.robot.observed
        }
        batch: dict[str, Any] = {
            "text": torch.stack([text for text, _ in rows]),
            "text_mask": torch.stack([mask for _, mask in rows]),
            "state": torch.from_numpy(self.robot.encode_state(state)),
            "components": torch.from_numpy(self.robot.encode_components(state)),
            # Frames before the instruction's start repeat its first one and count for nothing, as in training.
            "frame_mask": torch.from_numpy(np.stack([request.step + offsets >= 0 for request in requests])),
        }
        cameras = self.robot.cameras
        if images:
            batch |= {camera.role: self._images(requests, camera.name) for camera in cameras}
        if self.retriever is not None:
            static = batch["static"] if images else self._images(requests, cameras[0].name)
            batch["clips"] = self.retriever([request.instruction for request in requests], static)
        return _to(batch, self.device)

    def _images(self, requests: list[PlanRequest], camera: str) -> torch.Tensor:
        frames = [[frame.images[camera] for frame in request.history] for request in requests]
        return torch.from_numpy(np.stack(frames))

    def _sentence(self, sentence: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (L, E) and mask (L,) of a sentence, padded to a length that does not depend on the others."""
        if sentence not in self._sentences:
            if len(self._sentences) >= _SENTENCES:  # whoever asks over a socket may say anything
                self._sentences.clear()
            text, mask = self.text.tokens([sentence])
            missing = max(0, self.config.text.max_tokens - text.shape[1])
            self._sentences[sentence] = (
                torch.nn.functional.pad(text[0], (0, 0, 0, missing)),
                torch.nn.functional.pad(mask[0], (0, missing)),
            )
        return self._sentences[sentence]

    def _check(self, request: PlanRequest) -> None:
        place = f"policy: chain {request.rollout}, step {request.step}"
        if len(request.history) != self.history:
            raise UserError(f"{place}: {len(request.history)} frames of history, expected {self.history}")
        for frame in request.history:
            _check_frame(place, frame, self.spec, self.robot)


def _check_frame(place: str, frame: Observation, spec: PolicySpec, robot: Robot) -> None:
    for name, shape in robot.observed.items():
        values = frame.state.get(name)
        if values is None or np.shape(values) != shape:
            found = "is missing" if values is None else f"has shape {np.shape(values)}"
            raise UserError(f"{place}: {name} {found}, expected {shape}; check what the world observes")
        if not np.isfinite(values).all():
            raise UserError(f"{place}: NaN or infinity in {name}; check the simulator or robot that sent it")
    for name, size in spec.image_sizes.items():
        image = frame.images.get(name)
        if image is None or image.shape != (size, size, 3) or image.dtype != np.uint8:
            found = "is missing" if image is None else f"has shape {image.shape} {image.dtype}"
            raise UserError(
                f"{place}: {name} {found}, expected ({size}, {size}, 3) uint8; check what the world renders"
            )


def _to(value: Any, device: str) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to(item, device) for key, item in value.items()}
    return value


def load_policy(
    checkpoint: str | Path,
    device: str = "cpu",
    index: str | Path | None = None,
    execute_steps: int | None = None,
    batch: int = 1,
    cache: bool = True,
    threads: int | None = None,
) -> CheckpointPolicy | AnalogyPolicy:
    """Load a stage-2 checkpoint as a policy: of a network that says each action, or by analogy.

    Args:
        checkpoint: its folder, or "builtin" for the one that the package brings.
        execute_steps, batch, cache, threads: see `CheckpointPolicy`.
        index: the retrieval index; needed by, and only read for, a checkpoint whose analogy map acts at rollout.
    Raises:
        UserError: no such checkpoint, one of stage 1, a damaged one, or an index is needed and not given.
    """
    checkpoint = place_of(checkpoint)
    if read_described(checkpoint).kind == "analogy":
        return load_analogy(checkpoint, device, batch, threads)
    loaded = load_checkpoint(checkpoint, device, kind="policy")
    retriever = None
    if loaded.config.analogy.at_rollout == "on":
        index = index or loaded.metadata.index
        if not index:
            raise UserError(f"{checkpoint}: retrieves human clips at rollout; pass --index DIR")
        retriever = RolloutClips(ClipIndex.load(index), loaded)
    if device.startswith("cuda"):
        # Matrix products of fp32 in tf32 would make results differ between a GPU and a CPU by more than rounding.
        torch.backends.cuda.matmul.allow_tf32 = False
    loaded = replace(loaded, model=loaded.model.eval())
    return CheckpointPolicy(loaded, device, retriever, execute_steps, batch, cache, threads)


def policy_factory(
    checkpoint: str | Path,
    device: str = "cpu",
    index: str | Path | None = None,
    execute_steps: int | None = None,
    batch: int = 1,
    threads: int = 1,
) -> tuple[Callable[[], CheckpointPolicy | AnalogyPolicy], dict[str, Any]]:
    """Return what `evaluation.evaluate` takes: a function that loads the policy, and what identifies its weights.

    Args:
        threads: of torch while it plans. One is best beside simulators on the same cores: threads that wait for each
            other in every layer lose more than they share.
    """
    identity = {"checkpoint": str(checkpoint), "hash": checkpoint_hash(place_of(checkpoint))}

    def make() -> CheckpointPolicy | AnalogyPolicy:
        with torch_threads(threads):
            return load_policy(checkpoint, device, index, execute_steps, batch, threads=threads)

    return make, identity
