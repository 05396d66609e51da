"""One clip of a video of hands: decode, detect, follow, judge, encode.

A clip is decoded as a stream and only the reduced images are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from arvrm import plugins
from arvrm.episodes import EncodedEpisode, Episode, encode_episode
from arvrm.hands.detect import SIDES, HandDetector, HandObservation, MediaPipeDetector
from arvrm.hands.gripper import poses as camera_poses
from arvrm.hands.quality import ClipQuality, clip_quality
from arvrm.hands.tracking import HandTracks, track_hands
from arvrm.interface import UserError
from arvrm.sources.corpora import EGODEX_FPS, EgoDexPoses, Segment, egodex_poses
from arvrm.sources.video import Frame, VideoError, probe, sample, sequence_files

if TYPE_CHECKING:
    from arvrm.sources.human import ConvertHumanConfig

MEDIAPIPE = "mediapipe"
_SLOW = 0.9
"""A video with less than this share of the rate asked for keeps its own: steps without a new frame teach standstill."""
_SHORT_S = 0.1
"""A clip that ends so much before its segment was cut by the video's end."""


@dataclass(frozen=True)
class Outcome:
    """A segment's clip, or why there is none."""

    encoded: EncodedEpisode | None = None
    error: str | None = None
    poor: str | None = None
    quality: dict[str, Any] | None = None
    cut: bool = False


@dataclass(frozen=True)
class Square:
    """How an image of height x width becomes a square of `size` pixels, and what that does to points.

    Attributes:
        left, top: pixels of the image at which the square begins (negative: bars).
        side: of the square in pixels of the image.
    """

    size: int
    left: float
    top: float
    side: int

    @classmethod
    def of(cls, height: int, width: int, size: int, fit: str) -> Square:
        """Return the square that `ConvertHumanConfig.fit` asks for."""
        side = min(height, width) if fit == "crop" else max(height, width)
        return cls(size, (width - side) // 2, (height - side) // 2, side)

    def image(self, image: np.ndarray) -> np.ndarray:
        """Return (size, size, 3) uint8."""
        from PIL import Image

        height, width = image.shape[:2]
        bilinear = Image.Resampling.BILINEAR
        if self.top < 0:
            # Pillow reduces rows first, then columns: bars above and below change nothing of the first, costlier half.
            rows = Image.fromarray(np.ascontiguousarray(image)).resize((self.size, height), bilinear)
            whole = Image.new("RGB", (self.size, self.side))
            whole.paste(rows, (0, -self.top))
        elif self.left < 0:
            whole = Image.new("RGB", (self.side, self.side))
            whole.paste(Image.fromarray(np.ascontiguousarray(image)), (-self.left, 0))
        else:
            square = image[self.top : self.top + self.side, self.left : self.left + self.side]
            whole = Image.fromarray(np.ascontiguousarray(square))
        return np.asarray(whole.resize((self.size, self.size), bilinear))

    def points(self, keypoints: np.ndarray) -> np.ndarray:
        """Return keypoints (..., 3) of the image as keypoints of the square, float32; depth stays."""
        moved = np.array(keypoints, dtype=np.float64)
        moved[..., :2] = (moved[..., :2] - (self.left, self.top)) * (self.size / self.side)
        return moved.astype(np.float32)

    def camera(self, intrinsic: np.ndarray) -> np.ndarray:
        """Return the (3, 3) pinhole matrix of the square, of the image's."""
        moved = np.array([[1.0, 0.0, -self.left], [0.0, 1.0, -self.top], [0.0, 0.0, 1.0]]) @ intrinsic
        return np.diag([self.size / self.side, self.size / self.side, 1.0]) @ moved


class ImageSteps:
    """Which steps have an image: the first at or after each multiple of 1 / image_fps seconds."""

    def __init__(self, fps: float, image_fps: float) -> None:
        self._spacing, self._taken = max(1.0, fps / image_fps), 0

    def __call__(self, step: int) -> bool:
        due = step >= self._taken * self._spacing - 1e-6
        self._taken += due
        return due


class Converter:
    """Makes clips of segments, with one detector that is made when it is first needed."""

    def __init__(self, config: ConvertHumanConfig) -> None:
        self.config = config
        self._detector: HandDetector | None = None

    def __call__(self, segment: Segment) -> Outcome:
        detector = self._detector
        if detector is None and segment.poses is None:
            # What is wrong with a detector is wrong for all clips: not caught here.
            detector = self._detector = make_detector(self.config.detector, self.config.model)
        try:
            return self._convert(segment, detector)
        except VideoError as error:
            return Outcome(error=f"{name_of(segment)} {error}")
        except (UserError, ValueError, MemoryError, OSError) as error:
            return Outcome(error=f"{name_of(segment)}: {' '.join(str(error).split()) or type(error).__name__}")
        except Exception as error:  # whatever a library meets in one damaged clip, the others go on
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return Outcome(error=f"{name_of(segment)} cannot be converted ({why})")

    def _convert(self, segment: Segment, detector: HandDetector | None) -> Outcome:
        config = self.config
        rate = segment.rate or 30.0
        end = segment.end if segment.end is not None else (segment.start or 0.0) + config.max_seconds
        info = probe(segment.video, rate, segment.start, end)
        fps = config.fps if info.fps >= _SLOW * config.fps else info.fps
        due = ImageSteps(fps, config.image_fps)
        times, images, image_steps, found, rows = [], [], [], [], []
        square: Square | None = None
        start, height, width = segment.start, 0, 0
        last, hands = -1, []
        for number, frame in enumerate(sample(segment.video, segment.start, segment.end, fps, rate)):
            if number >= config.max_seconds * fps:
                longer = f"is longer than {config.max_seconds:g} s; give start and end, or raise --max-seconds"
                raise VideoError(longer)
            if square is None:
                start, (height, width) = frame.time, frame.image.shape[:2]
                square = Square.of(height, width, config.image_size, config.fit)
            times.append(frame.time - start)
            if due(number):
                images.append(square.image(frame.image))
                image_steps.append(number)
            if detector is not None and segment.poses is None:
                if frame.index != last:
                    hands = _detect(detector, frame, times[-1], square)
                last = frame.index
                found.append(hands)
            else:
                rows.append(round(times[-1] * EGODEX_FPS))
        side = config.image_size
        poses, own = None, {}
        if segment.poses is None:
            tracks = track_hands(found, times, side, side)
        else:
            poses = egodex_poses(segment.poses)
            index = _rows_of_poses(poses, rows, segment.poses)
            tracks = _tracks_of_poses(poses, index, times, square, height, width)
        quality = clip_quality(tracks)
        reasons = config.limits.reasons(quality)
        if reasons:
            return Outcome(poor="; ".join(reasons), quality=quality.to_dict())
        seconds = len(times) / fps
        asked = None if segment.end is None or segment.around else segment.end - start
        cut = asked is not None and seconds < asked - max(_SHORT_S, 1.5 / fps)
        arrays, hand = _choose(tracks, quality, config.hands)
        if config.grippers:
            if poses is None:
                raise ValueError("has no poses in m, which grippers need")
            arrays |= _grippers(poses, index, height, width)
            own["intrinsic"] = square.camera(poses.intrinsic_of(width)).round(6).tolist()
        meta = {
            "video": segment.video.name.encode("utf-8", "replace").decode(),
            "start": start,
            "seconds": round(seconds, 3),
            "bytes": bytes_of(segment),
            "hand": hand,
            "interpolated_frames": np.flatnonzero(tracks.interpolated.any(axis=1)).tolist(),
            "quality": {k: round(v, 6) if isinstance(v, float) else v for k, v in quality.to_dict().items()},
            "depth_scale": "measured" if poses is not None else getattr(detector, "depth_scale", "unstated"),
            **({"cut": True} if cut else {}),
            **own,
            **segment.meta,
        }
        episode = Episode(
            id=segment.id,
            embodiment="human",
            instruction=segment.text,
            task="",
            scene="",
            source=config.source,
            group=segment.group,
            fps=float(fps),
            arrays=arrays,
            images={"rgb_static": np.stack(images)},
            image_steps=np.array(image_steps, dtype=np.int32),
            meta=meta,
        )
        return Outcome(encoded=encode_episode(episode, config.jpeg_quality), cut=cut)


def _detect(detector: HandDetector, frame: Frame, time_s: float, square: Square) -> list[HandObservation]:
    """Detect in the whole image, and give the hands in pixels of the stored one."""
    try:
        hands = detector.detect(frame.image, time_s)
    except UserError:
        raise
    except Exception as error:  # a user's own detector may raise anything; the other clips go on
        raise VideoError(f"at {frame.time:.2f} s: the detector failed ({type(error).__name__}: {error})") from error
    return [HandObservation(h.side, h.score, square.points(h.keypoints), h.presence) for h in hands]


def _rows_of_poses(poses: EgoDexPoses, rows: list[int], file: Path) -> np.ndarray:
    """Return the pose's number at each step; a video may have a frame or two more than there are poses."""
    count = len(poses.points)
    if rows and rows[-1] >= count + 2:
        raise ValueError(f"{file.name} holds {count} poses for {rows[-1] + 1} frames of video")
    return np.minimum(rows, count - 1)


def _grippers(poses: EgoDexPoses, index: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
    grippers, seen = poses.grippers(width, height)
    return {
        "grippers": grippers[index].astype(np.float32),
        "grippers_seen": seen[index],
        "camera_pose": camera_poses(poses.camera[index]),
    }


def _tracks_of_poses(
    poses: EgoDexPoses, index: np.ndarray, times: list[float], square: Square, height: int, width: int
) -> HandTracks:
    """Return EgoDex's own hands, which need no detector, no identity and no filter."""
    keypoints, seen = poses.keypoints(width, height)
    points, visible = square.points(keypoints[index]), seen[index]
    detected = visible.any(axis=-1)
    visible = visible & ((points[..., :2] >= 0) & (points[..., :2] < square.size)).all(axis=-1)
    points = np.where(detected[..., None, None], points, np.float32(0))
    return HandTracks(
        times=np.asarray(times, dtype=np.float64),
        keypoints=points,
        raw=points,
        visible=visible,
        detected=detected,
        interpolated=np.zeros_like(detected),
        score=detected.astype(np.float32),
        seen=detected.sum(axis=1).astype(np.int32),
        height=square.size,
        width=square.size,
    )


def _choose(tracks: HandTracks, quality: ClipQuality, hands: str) -> tuple[dict[str, np.ndarray], str]:
    """Return the arrays of both hands or of the acting one, and its name."""
    if hands == "both":
        return tracks.arrays(), "both"
    if quality.acting_hand in SIDES:
        side = SIDES.index(quality.acting_hand)
    else:  # both act: the one that was seen more, the right one if alike
        counts = tracks.detected.sum(axis=0)
        side = int(counts[1] >= counts[0])
    return {"keypoints": tracks.keypoints[:, side].copy(), "visible": tracks.visible[:, side].copy()}, SIDES[side]


def make_detector(name: str, model: str | None) -> HandDetector:
    """Return a detector: "mediapipe", or an instance of package.module:Class, made with `model` if one is given.

    Raises:
        UserError: there is no such class, or it cannot be made.
    """
    if name == MEDIAPIPE:
        return MediaPipeDetector(model)
    kind = plugins.load(name, "--detector")
    try:
        return kind(model) if model is not None else kind()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"detector {name}: cannot be made ({type(error).__name__}: {error})") from error


def bytes_of(segment: Segment) -> int:
    """Return the size of a clip's video, by which a changed one is noticed; of a sequence the number of its images."""
    video = segment.video
    return len(sequence_files(video)) if video.is_dir() else video.stat().st_size


def name_of(segment: Segment) -> str:
    return segment.video.name.encode("utf-8", "replace").decode()
