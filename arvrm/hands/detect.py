"""Detectors of hands in images, and where MediaPipe's model file comes from.

A detector is anything with `HandDetector`'s one method. `MediaPipeDetector` wraps MediaPipe's Hand Landmarker (Tasks
API; Zhang et al. 2020, "MediaPipe Hands"); mediapipe is imported when the first one is made.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import urllib.request
import weakref
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from arvrm.files import Kind, claimed, process_folder, replacing
from arvrm.interface import UserError

SIDES = ("left", "right")
"""Order of hands wherever two are stored: the person's left hand, then the right."""
MODEL_NAME = "hand_landmarker.task"
MODEL_URL = f"https://storage.googleapis.com/mediapipe-models/hand_landmarker/hand_landmarker/float16/1/{MODEL_NAME}"
MODEL_MEMBERS = {
    "hand_detector.tflite": "1b14e9422c6ad006cde6581a46c8b90dd573c07ab7f3934b5589e7cea3f89a54",
    "hand_landmarks_detector.tflite": "11c272b891e1a99ab034208e23937a8008388cf11ed2a9d776ed3d01d0ba00e3",
}
"""SHA-256 of the two networks in the model file; the zip around them may differ by its dates."""
_PUBLISHED_SHA256 = "fbc2a30080c3c557093b5ddfc334698132eb341044ccee322ccf8bcf3607cde1"  # of the whole file at MODEL_URL
_MODEL = Kind("a hand model", rb"PK\x03\x04")
_WHEEL = "mediapipe==0.10.21"
_WHEEL_MEMBERS = {  # the last release that carries the networks
    "hand_detector.tflite": "mediapipe/modules/palm_detection/palm_detection_full.tflite",
    "hand_landmarks_detector.tflite": "mediapipe/modules/hand_landmark/hand_landmark_full.tflite",
}
_MISSING = "hand detector: mediapipe is not installed; run `pip install 'arvrm[hands]'`"


@dataclass(frozen=True)
class HandObservation:
    """One hand that a detector saw in one image.

    Attributes:
        side: "left" or "right", the person's, as the detector believes (tracking repairs it).
        score: 0 to 1, how sure the detector is of `side`.
        keypoints: (21, 3) float32 in `interface.KEYPOINTS`' order: u, v in pixels of the image given (origin at its
            upper left corner; may lie outside), depth as `hands.coordinates.DEPTH` says.
        presence: (21,) float32, 0 to 1: how likely the point is in the image.
    """

    side: Literal["left", "right"]
    score: float
    keypoints: np.ndarray
    presence: np.ndarray


class HandDetector(Protocol):
    """Finds hands in the frames of a clip, called in order of time.

    It may have an attribute `depth_scale`, one of `hands.coordinates.DEPTH_SCALES`, which clips keep.
    """

    def detect(self, image: np.ndarray, time_s: float) -> list[HandObservation]:
        """Return the hands in `image`, (H, W, 3) uint8 RGB, any number, in any order.

        Args:
            time_s: seconds since the clip's start. A time not after the last call's begins another clip, of which a
                detector that remembers must treat the frames as if it had seen none before.
        """
        ...


class MediaPipeDetector:
    """MediaPipe's Hand Landmarker.

    Args:
        model: `hand_landmarker.task`; None: the one that `arvrm hands fetch-model` stored.
        max_hands: look for so many hands.
        mode: "video" follows hands from frame to frame, "image" searches each frame anew (slower, no memory).
        min_detection, min_presence, min_tracking: thresholds of confidence, 0 to 1 (MediaPipe's defaults).

    Raises:
        UserError: mediapipe is not installed, or the model file is missing or damaged.
    """

    depth_scale = "average"

    def __init__(
        self,
        model: Path | str | None = None,
        max_hands: int = 2,
        mode: Literal["video", "image"] = "video",
        min_detection: float = 0.5,
        min_presence: float = 0.5,
        min_tracking: float = 0.5,
    ) -> None:
        self.model = find_model(model)
        self.mode, self.max_hands = mode, max_hands
        self._thresholds = (min_detection, min_presence, min_tracking)
        self._landmarker: Any = None
        self._last_ms: int | None = None
        self._last_s: float | None = None
        self._open()

    def detect(self, image: np.ndarray, time_s: float) -> list[HandObservation]:
        """See `HandDetector.detect`. Presence is 1 inside the image and 0 outside: the networks say no more of points.

        Raises:
            UserError: `image` is no (H, W, 3) uint8 array.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise UserError(f"hand detector: image {image.shape} {image.dtype}; give (H, W, 3) uint8 RGB")
        if self._landmarker is None:
            raise UserError("hand detector: closed; make another")
        import mediapipe

        picture = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(image))
        if self.mode == "video":
            if self._last_s is not None and time_s <= self._last_s:
                # A landmarker looks first where it last saw a hand, so that another clip needs another landmarker.
                # Making one takes no longer than a frame.
                self._open()
            now = round(time_s * 1000)
            self._last_ms = now if self._last_ms is None else max(now, self._last_ms + 1)
            self._last_s = time_s
        with contextlib.ExitStack() as stack:
            if not self._warm:
                stack.enter_context(_quiet_stderr())  # the networks are built, and chatter, at the first image
            if self.mode == "image":
                result = self._landmarker.detect(picture)
            else:
                result = self._landmarker.detect_for_video(picture, self._last_ms)
            self._warm = True
        height, width = image.shape[:2]
        hands = zip(result.hand_landmarks, result.hand_world_landmarks, result.handedness, strict=True)
        return [_observation(*hand, height, width) for hand in hands]

    def close(self) -> None:
        """Free the networks; the detector is of no use afterwards."""
        if self._landmarker is not None:
            self._finalizer()
            self._landmarker = None

    def _open(self) -> None:
        try:
            from mediapipe.tasks.python import BaseOptions, vision
        except ModuleNotFoundError as error:
            raise UserError(f"{_MISSING} ({error})") from error
        except ImportError as error:
            remedy = "install that system library, or use another detector"
            raise UserError(f"hand detector: mediapipe cannot be loaded ({error}); {remedy}") from error
        self.close()
        modes = {"video": vision.RunningMode.VIDEO, "image": vision.RunningMode.IMAGE}
        if self.mode not in modes:
            raise UserError(f"hand detector: mode {self.mode!r}; choose video or image")
        detection, presence, tracking = self._thresholds
        options = vision.HandLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(self.model)),
            running_mode=modes[self.mode],
            num_hands=self.max_hands,
            min_hand_detection_confidence=detection,
            min_hand_presence_confidence=presence,
            min_tracking_confidence=tracking,
        )
        try:
            with _quiet_stderr():
                self._landmarker = vision.HandLandmarker.create_from_options(options)
        except (RuntimeError, ValueError) as error:
            first = str(error).splitlines()[0] if str(error) else "no reason given"
            raise UserError(f"hand detector: MediaPipe does not start with {self.model}: {first}") from error
        self._finalizer = weakref.finalize(self, _close, self._landmarker)
        self._last_ms = self._last_s = None
        self._warm = False


def _close(landmarker: Any) -> None:
    with _quiet_stderr():
        try:
            landmarker.close()
        except RuntimeError:
            # The interpreter ends, and MediaPipe's threads are gone: its destructor must not try again.
            landmarker._handle = None


def _observation(landmarks: Any, world: Any, handedness: Any, height: int, width: int) -> HandObservation:
    points = np.array([(p.x * width, p.y * height) for p in landmarks], dtype=np.float32)
    # World landmarks are metric and turned as the camera; their origin is the hand's centre.
    depth = np.array([p.z for p in world], dtype=np.float32)
    keypoints = np.concatenate([points, (depth - depth[0])[:, None]], axis=1)
    inside = ((points >= 0) & (points < (width, height))).all(axis=1)
    best = handedness[0]
    # MediaPipe 1.x names the person's side in a picture that is not mirrored (up to 0.10.14 it meant mirrored ones).
    side = "left" if best.category_name == "Left" else "right"
    return HandObservation(side, float(best.score), keypoints, inside.astype(np.float32))


# ---------------------------------------------------------------------------------------------------------------------
# The model file
# ---------------------------------------------------------------------------------------------------------------------


def default_model() -> Path:
    """Where `fetch_model` stores the model: the user's cache folder (XDG_CACHE_HOME, or ~/.cache), arvrm's part."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arvrm" / MODEL_NAME


def find_model(model: Path | str | None = None) -> Path:
    """Return the checked model file: `model`, or the default one.

    Raises:
        UserError: it is missing, or not the model that this module knows.
    """
    path = Path(model) if model is not None else default_model()
    if not path.is_file():
        remedy = "run `arvrm hands fetch-model`, or give a file with --model"
        raise UserError(f"{path}: no hand model there; {remedy}")
    check_model(path)
    return path


def check_model(path: Path | str) -> None:
    """Compare a model file with the published one: as a whole, or by the networks inside.

    Raises:
        UserError: it is another file.
    """
    data = Path(path).read_bytes()
    if hashlib.sha256(data).hexdigest() == _PUBLISHED_SHA256:
        return
    try:
        with zipfile.ZipFile(path) as archive:
            digests = {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise UserError(f"{path}: no hand model ({error}); run `arvrm hands fetch-model --overwrite`") from error
    for name, wanted in MODEL_MEMBERS.items():
        found = digests.get(name)
        if found != wanted:
            what = "lacks" if found is None else "holds another"
            remedy = "run `arvrm hands fetch-model --overwrite`"
            raise UserError(f"{path}: {what} {name}, unlike the published model; {remedy}")


def fetch_model(
    output: Path | str | None = None, source: Literal["auto", "publisher", "wheel"] = "auto", overwrite: bool = False
) -> Path:
    """Get the model file and check it; return where it is. A good file that exists is kept.

    Args:
        output: where to; None: `default_model()`.
        source: "publisher": download it; "wheel": take its networks out of the mediapipe 0.10.21 package by pip;
            "auto": the publisher, or, where it is out of reach, the wheel.
        overwrite: fetch it anew even if it exists.

    Raises:
        UserError: neither source is in reach, or what came is another file.
    """
    path = Path(output) if output is not None else default_model()
    if path.exists() and not overwrite:
        check_model(path)
        return path
    errors = []
    with claimed(path, overwrite, _MODEL if output is not None else None):
        for name, fetch in (("publisher", _download), ("wheel", _assemble)):
            if source not in ("auto", name):
                continue
            try:
                with replacing(path) as partial:
                    fetch(partial)
                    check_model(partial)
                return path
            except (OSError, subprocess.SubprocessError, KeyError, zipfile.BadZipFile) as error:
                errors.append(f"{name}: {_last_line(error)}")
    if not errors:
        raise UserError(f"hands fetch-model: source {source!r}; choose auto, publisher or wheel")
    remedy = f"download {MODEL_URL} elsewhere and pass --model FILE"
    raise UserError(f"hands fetch-model: out of reach ({'; '.join(errors)}); {remedy}")


def _download(path: Path) -> None:
    with urllib.request.urlopen(MODEL_URL, timeout=30) as answer:
        path.write_bytes(answer.read())


def _assemble(path: Path) -> None:
    """Zip the networks of mediapipe 0.10.21's wheel as a model file; only files are read, nothing is installed."""
    with tempfile.TemporaryDirectory(dir=process_folder()) as folder:
        # The networks are the same in all its wheels; this one exists, whatever Python and system run here.
        any_system = ["--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--only-binary=:all:"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, *any_system, "--dest", folder, _WHEEL], check=True, capture_output=True, text=True)
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
            for member, name in _WHEEL_MEMBERS.items():
                target.writestr(zipfile.ZipInfo(member), source.read(name))


def _last_line(error: Exception) -> str:
    text = getattr(error, "stderr", None) or str(error)
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Send what native code writes to the process's stderr nowhere."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
