"""EgoDex: a video and an HDF5 file of ARKit's poses and texts side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arvrm.hands.gripper import GRIPPER_POINTS, hand_grippers
from arvrm.interface import FINGERS, UserError
from arvrm.sources.corpora.files import VideoFolder, same
from arvrm.sources.corpora.segment import Absent, Refused, Segment, Skipped

_ARKIT_FINGERS = dict(zip(FINGERS, ("Thumb", "IndexFinger", "MiddleFinger", "RingFinger", "LittleFinger"), strict=True))
ARKIT_JOINTS = (
    "Hand",
    *(
        f"{finger}{joint}"
        for finger in _ARKIT_FINGERS.values()
        for joint in ("Knuckle", "IntermediateBase", "IntermediateTip", "Tip")
    ),
)
"""EgoDex's names (without "left" or "right") of the points of `interface.KEYPOINTS`, in that order."""
EGODEX_FPS = 30.0
EGODEX_WIDTH = 1920
"""Pixels of the image's width that EgoDex's intrinsics are for."""
_SURE = 0.5
"""ARKit's confidence from which a joint counts as seen."""
_NEAR = 1e-3
"""Metres before the camera below which nothing can be seen."""
_MAX_FRAMES = 1 << 17
"""More than an hour of poses; EgoDex's longest videos have some minutes."""


def plan_egodex(folder: VideoFolder) -> Iterator[Segment | Refused | Skipped | Absent]:
    """Yield a segment for each HDF5 file."""
    try:
        import h5py
    except ImportError as error:
        raise UserError("egodex: h5py is not installed; run `pip install 'arvrm[egodex]'`") from error
    if folder.annotations is not None:
        raise UserError(f"{folder.annotations}: EgoDex has its texts beside the videos; leave --annotations out")
    for file in folder.files(".hdf5"):
        name = file.relative_to(folder.root).with_suffix("").as_posix()
        video = folder.named(f"{name}.mp4")
        if isinstance(video, Refused):
            yield Refused(name, f"{file.stem}.mp4 is not beside {file.name}")
            continue
        if folder.leaves(file) and not folder.follow_links:
            yield Refused(name, f"{file.name} leads out of the folder by a link; pass --follow-links to read it")
            continue
        try:
            with h5py.File(file, "r") as opened:
                texts = {key: _attribute(opened.attrs.get(key)) for key in opened.attrs}
        except Exception as error:  # h5py raises whatever its C library meets in a damaged file
            yield Refused(name, f"{file.name} is damaged ({' '.join(str(error).split())})")
            continue
        # Reversible tasks were recorded in both directions, and say which one this is.
        second = texts.get("llm_type") == "reversible" and texts.get("which_llm_description") == "2"
        text = texts.get("llm_description2" if second else "llm_description", "")
        meta = {"task": texts["task"]} if texts.get("task") else {}
        group, name = texts.get("session_name") or same(name), same(name)
        yield Segment(name, video, None, None, text.strip().rstrip("."), group, poses=file, meta=meta)


@dataclass(frozen=True)
class EgoDexPoses:
    """What an HDF5 file holds of hands and camera, left hand first.

    Attributes:
        points: (N, 2, 21, 3) ARKit's joints in the camera's frame (m; x right, y down, z forward).
        sure: (N, 2, 21) bool: with confidence 0.5; all, where the file tells none.
        told: whether it tells confidences.
        camera: (N, 4, 4) camera to ARKit's world (m, y up).
        intrinsic: (3, 3) for 1920 x 1080.
    """

    points: np.ndarray
    sure: np.ndarray
    told: bool
    camera: np.ndarray
    intrinsic: np.ndarray

    def intrinsic_of(self, width: int) -> np.ndarray:
        """Return the (3, 3) pinhole matrix for a video of so many pixels."""
        return np.diag([width / EGODEX_WIDTH, width / EGODEX_WIDTH, 1.0]) @ self.intrinsic

    def keypoints(self, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        """Project the joints into the video.

        Args:
            width, height: the video's pixels, 1920 x 1080 or a reduced copy.

        Returns:
            keypoints (N, 2, 21, 3) float64: u, v in pixels of the video, depth as `hands.coordinates.DEPTH` says;
            seen (N, 2, 21) bool: in front of the camera, in the image and, where told, with confidence 0.5.
        """
        depth = self.points[..., 2]
        front = depth > _NEAR
        image = self.points @ self.intrinsic_of(width).T
        pixels = image[..., :2] / np.where(front, depth, 1.0)[..., None]
        inside = ((pixels >= 0) & (pixels < (width, height))).all(axis=-1)
        keypoints = np.concatenate([pixels, (depth - depth[..., :1])[..., None]], axis=-1)
        return keypoints, self.sure & front & inside

    def grippers(self, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        """Return both hands as grippers (N, 2, 8) in the camera's frame, and which are seen (N, 2) bool.

        Seen is a hand of whose GRIPPER_POINTS ARKit was sure, in or out of the image; in files that tell no confidences
        those points must be in the image.
        """
        found, there = hand_grippers(self.points)
        known = self.sure if self.told else self.keypoints(width, height)[1]
        return found, there & known[..., list(GRIPPER_POINTS)].all(axis=-1)


def egodex_poses(file: Path) -> EgoDexPoses:
    """Read EgoDex's HDF5: transforms/NAME (N, 4, 4), joint or camera to ARKit's world (m); camera/intrinsic (3, 3) for
    1920 x 1080 (x right, y down, z forward); confidences/NAME (N,), in newer files.

    Raises:
        ValueError: something is missing or of another shape; the message names it.
    """
    import h5py

    told = False
    try:
        with h5py.File(file, "r") as opened:
            intrinsic = _array(opened, "camera/intrinsic", (3, 3))
            camera = _array(opened, "transforms/camera", (None, 4, 4))
            count = len(camera)
            to_camera = np.linalg.inv(camera)
            points = np.zeros((count, 2, len(ARKIT_JOINTS), 3))
            sure = np.ones(points.shape[:3], dtype=bool)
            for hand, side in enumerate(("left", "right")):
                for k, joint in enumerate(ARKIT_JOINTS):
                    world = _array(opened, f"transforms/{side}{joint}", (count, 4, 4))[:, :, 3]
                    points[:, hand, k] = np.einsum("nij,nj->ni", to_camera, world)[:, :3]
                    name = f"confidences/{side}{joint}"
                    if name in opened:
                        told = True
                        sure[:, hand, k] = _array(opened, name, (count,)) >= _SURE
    except np.linalg.LinAlgError as error:
        raise ValueError(f"transforms/camera of {file.name} has no inverse; fetch the file again") from error
    except (OSError, RuntimeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{file.name} is damaged ({' '.join(str(error).split())})") from error
    return EgoDexPoses(points, sure, told, camera, intrinsic)


def _array(opened: Any, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """Read one data set as finite float64; what the file states of it is looked at before anything is read."""
    import h5py

    for depth in range(1, name.count("/") + 2):
        part = "/".join(name.split("/")[:depth])
        if isinstance(opened.get(part, getlink=True), h5py.ExternalLink):
            raise ValueError(f"{name} lies in another file; fetch the file again")
    found = opened.get(name)
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"has no {name}; fetch the file again")
    fits = len(found.shape or ()) == len(shape) and all(
        have == want if want is not None else 0 < have <= _MAX_FRAMES
        for have, want in zip(found.shape or (), shape, strict=True)
    )
    if not fits or found.dtype.kind not in "fiu":
        wanted = " x ".join("N" if want is None else str(want) for want in shape)
        raise ValueError(f"{name} is {found.dtype} of shape {found.shape}, not {wanted} numbers; fetch the file again")
    if found.external or found.is_virtual:
        raise ValueError(f"{name} lies in another file; fetch the file again")
    values = np.asarray(found, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinity; fetch the file again")
    return values


def _attribute(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)
