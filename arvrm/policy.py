"""A trained checkpoint as a policy: observations in, chunks of actions out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arvrm.interface import Observation, PlanRequest, PolicySpec, UserError
from arvrm.model.checkpoint import Checkpoint, checkpoint_hash, load_checkpoint
from arvrm.model.encoders import TextEncoder
from arvrm.retrieval import ClipIndex, Matches
from arvrm.windows import EpisodeTable, HumanWindows, TextTable, WindowConfig

CAMERAS = ("rgb_static", "rgb_gripper")


class FrameCache:
    """Tokens of frames that a rollout has seen, so that a control step encodes its new frame only.

    A frame is found by rollout and step, and taken only if its images are the same pixels: a rollout that starts anew
    under an old number finds nothing. What a rollout can no longer look back to is forgotten, and of all rollouts the
    ones that planned longest ago.

    Args:
        rollouts: kept at once.
    """

    def __init__(self, rollouts: int = 512) -> None:
        self.rollouts = rollouts
        self._frames: OrderedDict[int, dict[int, tuple[Observation, tuple[torch.Tensor, torch.Tensor], str]]]
        self._frames = OrderedDict()

    def get(
        self, rollout: int, step: int, frame: Observation, words: str = ""
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the tokens (M + 1, d) of both cameras, or None.

        Args:
            words: the instruction, where tokens depend on it.
        """
        known = self._frames.get(rollout, {}).get(step)
        if known is None or known[2] != words:
            return None
        same = all(np.array_equal(getattr(known[0], name), getattr(frame, name)) for name in CAMERAS)
        return known[1] if same else None

    def put(
        self,
        rollout: int,
        step: int,
        frame: Observation,
        tokens: tuple[torch.Tensor, torch.Tensor],
        words: str = "",
    ) -> None:
        self._frames.setdefault(rollout, {})[step] = (frame, tokens, words)

    def forget(self, rollout: int, before: int, after: int) -> None:
        """Drop this rollout's steps outside [before, after], and rollouts beyond the limit."""
        frames = self._frames.setdefault(rollout, {})
        self._frames.move_to_end(rollout)
        for step in [step for step in frames if not before <= step <= after]:
            del frames[step]
        while len(self._frames) > self.rollouts:
            self._frames.popitem(last=False)

    def clear(self) -> None:
        self._frames.clear()


class CheckpointPolicy:
    """Plans with a `PolicyNet`. Keeps nothing between calls but sentences' embeddings and, of a ViT, frames' tokens.

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
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "cpu",
        retriever: RolloutClips | None = None,
        execute_steps: int | None = None,
        batch: int = 1,
        cache: bool = True,
    ) -> None:
        self.net, self.config, self.robot = checkpoint.model, checkpoint.config, checkpoint.robot
        self.metadata, self.hash, self.device = checkpoint.metadata, checkpoint.hash, device
        self.history, self.stride = self.metadata.history, self.metadata.stride
        steps = execute_steps or self.metadata.execute_steps or max(1, round(0.9 * self.config.chunk))
        if not 1 <= steps <= self.config.chunk:
            raise UserError(f"execute_steps: {steps}; this checkpoint plans chunks of {self.config.chunk} actions")
        images = self.metadata.images
        vision = self.config.vision
        self.spec = PolicySpec(
            history_offsets=tuple(range(-(self.history - 1) * self.stride, 1, self.stride)),
            execute_steps=int(steps),
            static_size=images["rgb_static"],
            gripper_size=images["rgb_gripper"],
            batch=batch,
        )
        self.text = TextEncoder(self.config.text)
        self.retriever = retriever
        self.by_words = vision.modulated or (vision.second is not None and vision.second.modulated)
        self.cache = FrameCache() if cache and self.history > 1 and vision.encoder != "conv" else None
        self._sentences: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        if batch > 1 and not self._rows_agree():
            self.spec = replace(self.spec, batch=1)

    def _rows_agree(self) -> bool:
        """Whether requests get the same bits in every row of a batch."""
        rng = np.random.default_rng(0)
        sizes = {"rgb_static": self.spec.static_size, "rgb_gripper": self.spec.gripper_size}

        def frame() -> Observation:
            images = {name: rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for name, size in sizes.items()}
            robot_obs = np.concatenate([rng.uniform(-1, 1, 14), [1.0]])
            return Observation(robot_obs=robot_obs, target_pose=robot_obs[:6], **images)

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
        """Return one (C, 7) float32 chunk per request; see `interface.Policy`.

        Raises:
            UserError: an observation is malformed, or the network gives NaN.
        """
        chunks: list[np.ndarray] = []
        size = self.spec.batch
        for start in range(0, len(requests), size):
            group = requests[start : start + size]
            padded = group + [group[-1]] * (size - len(group))
            if self.cache is None:
                batch = self.batch(padded)
            else:
                batch = self.batch(padded, images=False) | self._tokens(group, len(padded))
            actions = self.net.act(batch).float().cpu().numpy()
            for request, chunk in zip(group, actions, strict=False):
                if not np.isfinite(chunk).all():
                    raise UserError(
                        f"policy: NaN in actions for {request.instruction!r} at step {request.step}; "
                        "the checkpoint is broken, train it again"
                    )
                chunks.append(chunk)
        return chunks

    @torch.no_grad()
    def _tokens(self, requests: list[PlanRequest], rows: int) -> dict[str, torch.Tensor]:
        """Return both cameras' tokens (rows, T, M + 1, d), encoding only frames not seen before; padding is zero.

        New frames are encoded `spec.batch` at a time, one frame a row, always as many, for the reason given above.
        """
        size = self.spec.batch
        offsets = self.spec.history_offsets
        found: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        missing: list[tuple[int, int]] = []
        for row, request in enumerate(requests):
            self.cache.forget(request.rollout, request.step + offsets[0], request.step)
            for t, offset in enumerate(offsets):
                if request.step + offset < 0:
                    continue
                words = request.instruction if self.by_words else ""
                tokens = self.cache.get(request.rollout, request.step + offset, request.history[t], words)
                if tokens is None:
                    missing.append((row, t))
                else:
                    found[row, t] = tokens
        for start in range(0, len(missing), size):
            some = missing[start : start + size]
            padded = some + [some[-1]] * (size - len(some))
            images = {
                name.removeprefix("rgb_"): torch.from_numpy(
                    np.stack([getattr(requests[row].history[t], name) for row, t in padded])[:, None]
                )
                for name in CAMERAS
            }
            sentences = [self._sentence(requests[row].instruction) for row, _ in padded]
            seen = {
                "text": torch.stack([text for text, _ in sentences]),
                "text_mask": torch.stack([mask for _, mask in sentences]),
                **images,
            }
            encoded = self.net.encode_frames(_to(seen, self.device))
            for i, (row, t) in enumerate(some):
                tokens = (encoded["static_tokens"][i, 0].clone(), encoded["gripper_tokens"][i, 0].clone())
                found[row, t] = tokens
                request = requests[row]
                words = request.instruction if self.by_words else ""
                self.cache.put(request.rollout, request.step + offsets[t], request.history[t], tokens, words)
        example = next(iter(found.values()))
        result = {}
        for camera, name in enumerate(("static_tokens", "gripper_tokens")):
            tokens = example[camera].new_zeros(rows, len(offsets), *example[camera].shape)
            for (row, t), value in found.items():
                tokens[row, t] = value[camera]
            tokens[len(requests) :] = tokens[len(requests) - 1]
            result[name] = tokens
        return result

    def batch(self, requests: list[PlanRequest], images: bool = True) -> dict[str, Any]:
        """Return the requests as a `RobotBatch` of observations, without `images` where their tokens stand for them."""
        for request in requests:
            self._check(request)
        rows = [self._sentence(request.instruction) for request in requests]
        offsets = np.array(self.spec.history_offsets)
        robot_obs = np.stack([[frame.robot_obs for frame in request.history] for request in requests])
        target = np.stack([[frame.target_pose for frame in request.history] for request in requests])
        state = {"robot_obs": robot_obs, "target_pose": target}
        batch: dict[str, Any] = {
            "text": torch.stack([text for text, _ in rows]),
            "text_mask": torch.stack([mask for _, mask in rows]),
            "state": torch.from_numpy(self.robot.encode_state(state)),
            "components": torch.from_numpy(self.robot.encode_components(state)),
            # Frames before the instruction's start repeat its first one and count for nothing, as in training.
            "frame_mask": torch.from_numpy(np.stack([request.step + offsets >= 0 for request in requests])),
        }
        static = self._images(requests, "rgb_static") if images or self.retriever is not None else None
        if images:
            batch |= {"static": static, "gripper": self._images(requests, "rgb_gripper")}
        if self.retriever is not None:
            batch["clips"] = self.retriever([request.instruction for request in requests], static)
        return _to(batch, self.device)

    def _images(self, requests: list[PlanRequest], camera: str) -> torch.Tensor:
        frames = [[getattr(frame, camera) for frame in request.history] for request in requests]
        return torch.from_numpy(np.stack(frames))

    def _sentence(self, sentence: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (L, E) and mask (L,) of a sentence, padded to a length that does not depend on the others."""
        if sentence not in self._sentences:
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
            _check_frame(place, frame, self.spec)


def _check_frame(place: str, frame: Observation, spec: PolicySpec) -> None:
    for name, values, size in (("robot_obs", frame.robot_obs, 15), ("target_pose", frame.target_pose, 6)):
        if np.shape(values) != (size,):
            raise UserError(f"{place}: {name} has shape {np.shape(values)}, expected ({size},)")
        if not np.isfinite(values).all():
            raise UserError(f"{place}: NaN or infinity in {name}; check the simulator or robot that sent it")
    sizes = (("rgb_static", frame.rgb_static, spec.static_size), ("rgb_gripper", frame.rgb_gripper, spec.gripper_size))
    for name, image, size in sizes:
        shape = None if image is None else image.shape
        if shape != (size, size, 3) or image.dtype != np.uint8:
            raise UserError(f"{place}: {name} has shape {shape}, expected ({size}, {size}, 3) uint8")


def _to(value: Any, device: str) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to(item, device) for key, item in value.items()}
    return value


class RolloutClips:
    """Retrieves human clips for what a robot sees now.

    In training the whole demonstration is known and its clips stand beside it by progress; in a rollout only the window
    is, so each clip is aligned where it looks most like the window (subsequence time warping).

    Args:
        index: the clip index; its stores must still be where they were.
        checkpoint: says how many clips, and how windows were cut, in training.
    """

    def __init__(self, index: ClipIndex, checkpoint: Checkpoint) -> None:
        metadata = checkpoint.metadata
        if metadata.clips is None:
            raise UserError("index: this checkpoint does not say how many clips it was trained with; train it again")
        self.index, self.history, self.count = index, metadata.history, metadata.clips
        table = EpisodeTable(index.open_stores(), "human", metadata.stride)
        if table.ids != index.ids:
            raise UserError(f"{index.path}: the stores' clips are not the index's; make the index anew")
        # The map reads keypoints only: neither words nor images of the clips are needed.
        count = len(table.sentences)
        nothing = TextTable(torch.zeros(count, 1, 1), torch.ones(count, 1, dtype=torch.bool))
        settings = WindowConfig(history=self.history, stride=metadata.stride)
        self.windows = HumanWindows(table, settings, checkpoint.config.keypoints, nothing, frames=None)

    def search(self, sentences: list[str], static: torch.Tensor) -> tuple[Matches, np.ndarray]:
        """Return the matches and the features (B, T, D) they were found with, for images (B, T, H, W, 3) uint8."""
        frames = static.cpu().numpy()
        features = self.index.encoders.images(frames.reshape(-1, *frames.shape[2:])).reshape(*frames.shape[:2], -1)
        return self.index.search(self.index.encoders.sentences(sentences), features, self.count), features

    def __call__(self, sentences: list[str], static: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the clips as a `HumanBatch` with axes (B, J)."""
        matches, features = self.search(sentences, static)
        known = matches.rows >= 0
        clips = np.maximum(matches.rows, 0)
        local = np.array(
            [
                [self.index.align(int(row), self.history, query, "dtw") for row in rows]
                for rows, query in zip(clips, features, strict=True)
            ]
        )
        rows = self.windows.table.image_start[clips][..., None] + local
        return self.windows.gather(rows, np.broadcast_to(known[..., None], rows.shape), clips, images=False)


def load_policy(
    checkpoint: str | Path,
    device: str = "cpu",
    index: str | Path | None = None,
    execute_steps: int | None = None,
    batch: int = 1,
    cache: bool = True,
) -> CheckpointPolicy:
    """Load a stage-2 checkpoint as a policy.

    Args:
        execute_steps, batch, cache: see `CheckpointPolicy`.
        index: the retrieval index; needed by, and only read for, a checkpoint whose analogy map acts at rollout.
    Raises:
        UserError: no such checkpoint, one of stage 1, a damaged one, or an index is needed and not given.
    """
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
    return CheckpointPolicy(replace(loaded, model=loaded.model.eval()), device, retriever, execute_steps, batch, cache)


def policy_factory(
    checkpoint: str | Path,
    device: str = "cpu",
    index: str | Path | None = None,
    execute_steps: int | None = None,
    batch: int = 1,
    threads: int = 1,
) -> tuple[Callable[[], CheckpointPolicy], dict[str, Any]]:
    """Return what `evaluation.evaluate` takes: a function that loads the policy, and what identifies its weights.

    Args:
        threads: of torch while it plans. One is best beside simulators on the same cores: threads that wait for each
            other in every layer lose more than they share.
    """
    identity = {"checkpoint": str(checkpoint), "hash": checkpoint_hash(checkpoint)}

    def make() -> CheckpointPolicy:
        torch.set_num_threads(threads)
        return load_policy(checkpoint, device, index, execute_steps, batch)

    return make, identity
