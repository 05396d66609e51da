"""Cameras and renderers: PyBullet's TinyRenderer (software, the reference) and EGL (GPU or Mesa, where it works)."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from arvrm.config import bounded, check_bounds
from arvrm.geometry import look_at
from arvrm.interface import UserError
from arvrm.sim.scene import Camera, Lighting

RENDERERS = ("tiny", "egl", "auto")

_PROBE_SECONDS = 60
_PROBE_CODE = "from arvrm.sim.render import _probe; _probe()"


@dataclass(frozen=True)
class CameraShift:
    """A robustness switch: the static camera is moved `metres` in a random direction and turned by `degrees`."""

    metres: float = bounded(0.0, least=-100, most=100)
    degrees: float = bounded(0.0, least=-360, most=360)
    seed: int = bounded(0, least=0)

    __post_init__ = check_bounds


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Send what C code prints to stdout to nowhere: PyBullet talks there, where commands print their results."""
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        saved = os.dup(1)
    except OSError:  # no stdout at all
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        _flush_c()
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)


def choose_renderer(name: str) -> str:
    """Return "tiny" or "egl" for "tiny", "egl" or "auto" (EGL where it works, else TinyRenderer).

    Raises:
        UserError: an unknown name, or "egl" where EGL does not work.
    """
    if name not in RENDERERS:
        raise UserError(f"renderer: {name!r} is unknown; choose one of {', '.join(RENDERERS)}")
    if name == "tiny":
        return "tiny"
    problem = egl_problem()
    if problem is None:
        return "egl"
    if name == "auto":
        return "tiny"
    raise UserError(f"renderer: EGL does not work here ({problem}); use renderer=tiny")


@functools.lru_cache(maxsize=1)
def egl_problem() -> str | None:
    """Return None if EGL renders here, else one line that says why not.

    The test runs in a child process, since a misconfigured driver kills the process that loads it. The answer is kept
    for the life of this process.
    """
    if importlib.util.find_spec("eglRenderer") is None:
        return "this PyBullet has no eglRenderer plugin"
    try:
        child = subprocess.run(
            [sys.executable, "-c", _PROBE_CODE],
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
    except subprocess.TimeoutExpired:
        return f"the driver did not answer within {_PROBE_SECONDS} s"
    except OSError as error:
        return f"cannot start a child process: {error.strerror}"
    if child.returncode == 0 and "egl works" in child.stdout:
        return None
    if child.returncode < 0:
        return f"the driver crashed with signal {-child.returncode}"
    lines = [line for line in (child.stdout + child.stderr).splitlines() if "ail" in line or "rror" in line]
    return lines[-1].strip()[:120] if lines else f"the test ended with code {child.returncode}"


def load_egl(client: int) -> int:
    """Load the EGL plugin into a PyBullet client; return the plugin's id (negative: failed)."""
    import pybullet

    spec = importlib.util.find_spec("eglRenderer")
    if spec is None or not spec.origin:
        return -1
    return pybullet.loadPlugin(spec.origin, "_eglRendererPlugin", physicsClientId=client)


class CameraRig:
    """Renders one camera of a PyBullet world.

    Args:
        client: PyBullet client.
        camera: its optics; a camera without a place is mounted on `link` of `body`, looking along the link's +y with
            -z up (CALVIN's gripper camera).
        size: pixels of the square image.
        renderer: "tiny" or "egl".
        shift: moves a fixed camera; mounted ones stay.
    """

    def __init__(
        self,
        client: int,
        camera: Camera,
        size: int,
        renderer: str,
        body: int | None = None,
        link: int | None = None,
        shift: CameraShift | None = None,
        lighting: Lighting | None = None,
    ):
        import pybullet

        self._bullet = pybullet
        self._client, self._camera, self._size = client, camera, size
        self._body, self._link = body, link
        self._projection = pybullet.computeProjectionMatrixFOV(
            fov=camera.fov, aspect=1, nearVal=camera.near, farVal=camera.far
        )
        self._options = dict(_light_options(lighting))
        self._egl = renderer == "egl"
        self._options["renderer"] = (
            pybullet.ER_BULLET_HARDWARE_OPENGL if self._egl else pybullet.ER_TINY_RENDERER
        )
        self._place = None
        if camera.eye is not None:
            self._place = _shifted(camera, shift)

    def place(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the camera's eye, a point it looks at, and its up vector now (3 each, world)."""
        if self._place is not None:
            return self._place
        position, orientation = self._bullet.getLinkState(self._body, self._link, physicsClientId=self._client)[:2]
        rotation = np.array(self._bullet.getMatrixFromQuaternion(orientation)).reshape(3, 3)
        eye = np.array(position)
        return eye, eye + rotation[:, 1], -rotation[:, 2]

    def world_to_camera(self) -> np.ndarray:
        """Return the (4, 4) matrix to camera coordinates (x right, y down, z forward) for `geometry.project`."""
        return look_at(*self.place())

    def render(self, depth: bool = False, size: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the image (size, size, 3) uint8 and, on request, the depth (size, size) float32 in metres."""
        view = self._bullet.computeViewMatrix(*self.place())
        size = size or self._size
        with quiet_stdout() if self._egl else contextlib.nullcontext():  # EGL announces its driver
            image = self._bullet.getCameraImage(
                width=size,
                height=size,
                viewMatrix=view,
                projectionMatrix=self._projection,
                physicsClientId=self._client,
                **self._options,
            )
        rgb = np.ascontiguousarray(np.reshape(np.asarray(image[2], dtype=np.uint8), (size, size, 4))[:, :, :3])
        if not depth:
            return rgb, None
        buffer = np.reshape(np.asarray(image[3], dtype=np.float32), (size, size))
        near, far = self._camera.near, self._camera.far
        return rgb, 1.0 * far * near / (far - (far - near) * buffer)


def camera_shift_from(values: CameraShift | Mapping | None) -> CameraShift:
    """Return a CameraShift from one, from a mapping with its field names, or from None (no shift)."""
    if isinstance(values, CameraShift):
        return values
    try:
        return CameraShift(**(values or {}))
    except TypeError as error:
        raise UserError(f"camera_shift: {values!r} has other keys than metres, degrees and seed") from error


def lighting_from(values: Lighting | Mapping | None, base: Lighting) -> Lighting:
    """Return `base` with what `values` (a Lighting, or a mapping with its field names) sets."""
    if values is None:
        return base
    if isinstance(values, Lighting):
        values = {key: value for key, value in vars(values).items() if value is not None}
    known = vars(base)
    for key in values:
        if key not in known:
            raise UserError(f"lighting: unknown key {key!r}; use some of {', '.join(known)}")
    return Lighting(**{**known, **values})


def _light_options(lighting: Lighting | None) -> Iterator[tuple[str, object]]:
    names = {
        "direction": "lightDirection",
        "colour": "lightColor",
        "distance": "lightDistance",
        "ambient": "lightAmbientCoeff",
        "diffuse": "lightDiffuseCoeff",
        "specular": "lightSpecularCoeff",
    }
    for field, option in names.items():
        value = getattr(lighting, field, None)
        if value is not None:
            yield option, list(value) if isinstance(value, (tuple, list)) else float(value)


def _shifted(camera: Camera, shift: CameraShift | None) -> tuple:
    if shift is None or (shift.metres == 0 and shift.degrees == 0):
        return camera.eye, camera.target, camera.up  # untouched numbers: bit parity
    rng = np.random.default_rng(shift.seed)
    move, axis = rng.normal(size=(2, 3))
    move *= shift.metres / np.linalg.norm(move)
    axis /= np.linalg.norm(axis)
    angle = np.deg2rad(shift.degrees)
    eye, target, up = (np.array(value, dtype=float) for value in (camera.eye, camera.target, camera.up))

    def turn(vector):
        return (
            vector * np.cos(angle)
            + np.cross(axis, vector) * np.sin(angle)
            + axis * np.dot(axis, vector) * (1 - np.cos(angle))
        )

    return eye + move, eye + move + turn(target - eye), turn(up)


def _flush_c() -> None:
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)


def _probe() -> None:
    """Run in a child: load the plugin, render a red box, and say so if it can be seen."""
    import pybullet

    client = pybullet.connect(pybullet.DIRECT)
    if load_egl(client) < 0:
        print("error: the EGL plugin failed to load")
        sys.exit(3)
    shape = pybullet.createVisualShape(pybullet.GEOM_BOX, halfExtents=[1, 1, 1], rgbaColor=[1, 0, 0, 1])
    pybullet.createMultiBody(baseVisualShapeIndex=shape)
    rig = CameraRig(client, Camera(60, 0.1, 10, (0, -4, 0), (0, 0, 0), (0, 0, 1)), 32, "egl")
    red, green, _ = rig.render()[0][16, 16]
    if red < 60 or green > red / 2:
        print("error: EGL renders a wrong image")
        sys.exit(4)
    print("egl works", flush=True)
    os._exit(0)  # some drivers crash while they unload
