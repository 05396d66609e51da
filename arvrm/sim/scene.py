"""What a play-table world is made of, whoever drew its files: descriptions, and the four official CALVIN scenes.

A `SceneDescription` names every file, joint and link that `PlayTableEnv` loads, and its `Fixtures` say where the things
are that a scripted expert has to touch. Nothing below `official_scene` knows CALVIN's meshes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from arvrm.config import bounded, check_bounds
from arvrm.files import process_folder
from arvrm.geometry import euler_to_matrix
from arvrm.interface import SCENES, UserError

Vector = tuple[float, float, float]
Box = tuple[Vector, Vector]
Colour = tuple[float, float, float, float]


@dataclass(frozen=True)
class Block:
    """A movable block: its name (one of interface.BLOCKS), URDF file and size along its own axes (m, after scaling)."""

    name: str
    urdf: str
    size: Vector


@dataclass(frozen=True)
class Light:
    """A link of the table whose colour shows a light's state."""

    link: str
    on: Colour
    off: Colour = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: vertical field of view (deg), clipping planes (m), and for a fixed one its place (world, m)."""

    fov: float
    near: float
    far: float
    eye: Vector | None = None
    target: Vector | None = None
    up: Vector | None = None


@dataclass(frozen=True)
class Lighting:
    """TinyRenderer's light: `direction` points from the scene to the light (world); the rest are coefficients.

    None leaves PyBullet's default, which is CALVIN's.
    """

    direction: Vector | None = bounded(None, least=-10**6, most=10**6)
    colour: Vector | None = bounded(None, least=0, most=100)
    distance: float | None = bounded(None, above=0, most=10**6)
    ambient: float | None = bounded(None, least=0, most=100)
    diffuse: float | None = bounded(None, least=0, most=100)
    specular: float | None = bounded(None, least=0, most=100)

    __post_init__ = check_bounds


@dataclass(frozen=True)
class Fixtures:
    """World-frame geometry (m) of the parts a gripper touches, at joint position 0 unless said otherwise.

    A point of the slider at joint d is `slider_handle + d * slider_direction`; drawer and switch likewise.
    """

    slider_handle: Vector
    """Where an open gripper pointing down straddles the sliding door's handle."""
    slider_direction: Vector
    """Unit vector along which the door moves as its joint grows (CALVIN: -x)."""
    slider_range: float
    drawer_handle: Vector
    """Centre of the drawer's bar."""
    drawer_gap: Vector
    """Middle of the gap between the bar and the drawer's front, where closed fingers hook in."""
    drawer_direction: Vector
    drawer_range: float
    button_top: Vector
    """Centre of the button's upper face."""
    button_size: Vector
    """Extent of the button along the world axes."""
    button_range: float
    """Travel, downwards; the LED toggles past half of it."""
    switch_bar: Vector
    """Centre of the lever's cross bar."""
    switch_direction: Vector
    """Unit vector along which the lever moves towards on."""
    switch_range: float
    """Travel; the bulb is on above half of it."""
    surfaces: Mapping[str, Box]
    """Where block centres may start: (low, high) corners of "table", "slider_left", "slider_right"."""
    table_box: Box
    """The table's plate in x and y; both z are its upper face."""
    cabinet_box: Box
    """The cabinet's floor in x and y (front edge to back wall); both z are its upper face."""
    drawer_box: Box
    """Inside of the drawer (closed) in x and y; z from its floor to its rim."""
    switch_on: float = 0.5
    """Fraction of the travel above which the bulb is on."""


@dataclass(frozen=True)
class SceneDescription:
    """Everything `PlayTableEnv` needs to load a world. All files by absolute path; ids are resolved by name."""

    name: str
    assets: str
    """"official" or "builtin"."""
    robot_urdf: str
    table_urdf: str
    blocks: tuple[Block, ...]
    """In the order of the scene file, which is the order of scene_obs."""
    surfaces: Mapping[str, Box]
    fixtures: Fixtures
    static_camera: Camera
    gripper_camera: Camera
    bulb: Light
    led: Light
    plane_urdf: str | None = None
    global_scaling: float = 0.8
    """Scale of blocks and table; robot and plane are not scaled."""
    robot_position: Vector = (-0.34, -0.46, 0.24)
    robot_euler: Vector = (0.0, 0.0, 0.0)
    rest_joints: tuple[float, ...] = (
        -1.21779206, 1.03987646, 2.11978261, -2.34205014, -0.87015947, 1.64119353, 0.55344866,
    )  # fmt: skip
    arm_joints: tuple[str, ...] = tuple(f"panda_joint{i}" for i in range(1, 8))
    finger_joints: tuple[str, str] = ("panda_finger_joint1", "panda_finger_joint2")
    tcp_link: str = "tcp"
    camera_link: str = "gripper_cam"
    table_position: Vector = (0.0, 0.0, 0.0)
    table_euler: Vector = (0.0, 0.0, 0.0)
    slide_joint: str = "base__slide"
    drawer_joint: str = "base__drawer"
    button_joint: str = "base__button"
    switch_joint: str = "base__switch"
    plank_link: str = "plank_link"
    drawer_link: str = "drawer_link"
    pedestal: tuple[float, float] | None = (0.13, 0.05)
    """Radius of the purely visual cylinder under the robot and how far it stands behind the base (m)."""
    colours: Mapping[str, Colour] = field(default_factory=dict)
    """Colours set after loading, by block name or table link name ("base" is the table's base)."""
    lighting: Lighting = Lighting()

    @property
    def block_order(self) -> tuple[str, ...]:
        return tuple(block.name for block in self.blocks)

    def files(self) -> tuple[str, ...]:
        """Return the URDF files in the order they are loaded."""
        plane = (self.plane_urdf,) if self.plane_urdf else ()
        return (self.robot_urdf, *(block.urdf for block in self.blocks), self.table_urdf, *plane)

    def check_files(self) -> None:
        """Raise UserError for the first URDF or mesh that is missing; PyBullet itself would only warn of a mesh."""
        for urdf in self.files():
            for file in _meshes(urdf):
                if not file.is_file():
                    raise UserError(f"{urdf}: mesh {file} is missing; restore the scene's assets")

    def hash(self) -> str:
        """Return a short digest of every URDF and mesh file of the scene, to name its version in results."""
        digest = hashlib.sha256()
        for urdf in self.files():
            digest.update(Path(urdf).read_bytes())
            for mesh in _meshes(urdf):
                digest.update(mesh.read_bytes() if mesh.is_file() else b"")
        return digest.hexdigest()[:16]


@contextlib.contextmanager
def neutral_directory() -> Iterator[None]:
    """Change into an empty folder while PyBullet loads files.

    PyBullet looks for a URDF's meshes in the working directory, in ./meshes, ./data, ../data and so on before it looks
    beside the URDF, even if that has an absolute path; files that happen to lie there would silently become the scene.
    """
    try:
        before = os.getcwd()
    except OSError:  # the working directory was removed
        before = os.sep
    inside = process_folder().joinpath(*"nowhere")  # deep enough that ../../.. does not leave it
    inside.mkdir(parents=True, exist_ok=True)
    os.chdir(inside)
    try:
        yield
    finally:
        os.chdir(before)


def resolve_calvin_root(calvin_root: str | os.PathLike | None) -> Path:
    """Return the official checkout: the argument, or the environment variable CALVIN_ROOT.

    Raises:
        UserError: neither is given, or the folder has no calvin_env.
    """
    root = calvin_root or os.environ.get("CALVIN_ROOT")
    if not root:
        raise UserError(
            "CALVIN_ROOT: not set; point it (or calvin_root) at a checkout of mees/calvin, or use assets='builtin'"
        )
    path = Path(root).expanduser().resolve()
    if not (path / "calvin_env" / "conf" / "scene").is_dir():
        raise UserError(f"CALVIN_ROOT: {root} has no calvin_env/conf/scene; give the root of a checkout of mees/calvin")
    return path


def official_scene(name: str, calvin_root: str | os.PathLike | None = None) -> SceneDescription:
    """Describe CALVIN's scene A, B, C or D from an official checkout's YAML and URDF files.

    Args:
        name: "A" to "D".
        calvin_root: the checkout; None: the environment variable CALVIN_ROOT.

    Raises:
        UserError: unknown scene, no checkout, or a missing file.
    """
    if name not in SCENES:
        raise UserError(f"scene: {name!r} is unknown; choose one of {', '.join(SCENES)}")
    return _official_scene(name, resolve_calvin_root(calvin_root) / "calvin_env")


@functools.lru_cache(maxsize=16)
def _official_scene(name: str, base: Path) -> SceneDescription:
    return official_description(name, _yaml(base / "conf" / "scene" / f"calvin_scene_{name}.yaml"), base)


def official_description(name: str, scene: Mapping[str, Any], base: Path) -> SceneDescription:
    """Describe a scene by what its official YAML file says.

    Args:
        name: "A" to "D".
        scene: the file's content; data sets carry a copy of it.
        base: the checkout's folder calvin_env, with conf and data.

    Raises:
        UserError: a file is missing.
    """
    data = base / "data"
    robot = _yaml(base / "conf" / "robot" / "panda_longer_finger.yaml")
    static = _yaml(base / "conf" / "cameras" / "cameras" / "static.yaml")
    gripper = _yaml(base / "conf" / "cameras" / "cameras" / "gripper.yaml")
    scaling = float(scene["global_scaling"])
    table = scene["objects"]["fixed_objects"]["table"]
    surfaces = {key: (_vector(low), _vector(high)) for key, (low, high) in scene["surfaces"].items()}
    blocks = []
    for key, value in scene["objects"]["movable_objects"].items():
        urdf = data / value["file"]
        size = _xml(urdf).find("link/collision/geometry/box").get("size")
        blocks.append(Block(key.removeprefix("block_"), str(urdf), _vector(_numbers(size) * scaling)))
    lights = {
        key: Light(value["link"], tuple(float(c) for c in value["color"])) for key, value in table["lights"].items()
    }
    table_urdf = data / table["file"]
    button = next(key for key, value in table["buttons"].items() if value["effect"] == "led")
    switch = next(key for key, value in table["switches"].items() if value["effect"] == "lightbulb")
    return SceneDescription(
        name=name,
        assets="official",
        robot_urdf=str(data / robot["filename"]),
        table_urdf=str(table_urdf),
        blocks=tuple(blocks),
        plane_urdf=str(data / "plane" / "plane.urdf"),
        surfaces=surfaces,
        fixtures=_official_fixtures(table_urdf, scaling, surfaces),
        static_camera=Camera(
            static["fov"], static["nearval"], static["farval"],
            _vector(static["look_from"]), _vector(static["look_at"]), _vector(static["up_vector"]),
        ),
        gripper_camera=Camera(gripper["fov"], gripper["nearval"], gripper["farval"]),
        bulb=lights["lightbulb"],
        led=lights["led"],
        global_scaling=scaling,
        robot_position=_vector(scene["robot_base_position"]),
        robot_euler=_vector(scene["robot_base_orientation"]),
        rest_joints=tuple(float(q) for q in scene["robot_initial_joint_positions"]),
        table_position=_vector(table["initial_pos"]),
        table_euler=_vector(table["initial_orn"]),
        slide_joint="base__slide",
        drawer_joint="base__drawer",
        button_joint=button,
        switch_joint=switch,
    )  # fmt: skip


def scene_description(
    scene: str | SceneDescription, assets: str = "builtin", calvin_root: str | None = None, variation: int | None = None
) -> SceneDescription:
    """Return the description of a scene by name; see PlayTableEnv for the arguments.

    Raises:
        UserError: unknown scene or assets, a variation of an official scene, missing files.
    """
    if isinstance(scene, SceneDescription):
        return scene
    if assets == "builtin":
        from arvrm.sim.builtin import builtin_scene

        return builtin_scene(scene, variation)
    if assets != "official":
        raise UserError(f"assets: {assets!r} is unknown; choose 'builtin' or 'official'")
    if variation is not None:
        raise UserError("variation: official scenes have none; use assets='builtin' or variation=None")
    return official_scene(scene, calvin_root)


def _official_fixtures(urdf: Path, scaling: float, surfaces: Mapping[str, Box]) -> Fixtures:
    """Measure CALVIN's table: its collision meshes are unions of convex parts whose boxes tell the handles apart."""
    slide, drawer, button, switch = (
        _Part(urdf, joint, scaling) for joint in ("base__slide", "base__drawer", "base__button", "base__switch")
    )
    plank, top = _Part(urdf, "base__plank", scaling), _Part(urdf, None, scaling)
    # Door: the panel is the widest part, the handle's bar the outermost of the others (link frame: z away from it).
    # The bar is 16 cm long and slants with the door; a vertical gripper meets its outer face below its middle.
    panel = max(slide.boxes, key=lambda box: np.prod(box[1] - box[0]))
    handle = [box for box in slide.boxes if box is not panel]
    low, high = np.min([box[0] for box in handle], axis=0), np.max([box[1] for box in handle], axis=0)
    middle = (low + high) / 2
    slider_handle = slide.world([middle[0], middle[1] - _GRASP_BELOW_MIDDLE, high[2] - _BAR_FACE_INSET])
    # Drawer: seen from the front (-y), the bar is the outermost part and the front plate the widest upright one.
    boxes = [drawer.world_box(box) for box in drawer.boxes]
    bars = [box for box in boxes if box[0][1] < min(b[0][1] for b in boxes) + 1e-3]
    bar = max(bars, key=lambda box: box[1][0] - box[0][0])
    front = max((box for box in boxes if box not in bars), key=lambda box: box[1][0] - box[0][0])
    floor = min((box for box in boxes if box is not front), key=lambda box: box[1][2] - box[0][2])
    drawer_handle = (np.array(bar[0]) + bar[1]) / 2
    gap = np.array([drawer_handle[0], (bar[1][1] + front[0][1]) / 2, drawer_handle[2]])
    press = button.world_box(button.boxes[0])
    # Lever: two arms carry a cross bar, which is what lies farthest from the hinge (link frame: along y).
    far = max(box[1][1] for box in switch.boxes)
    cross = [box for box in switch.boxes if box[1][1] > far - 1e-3 and box[0][1] > far / 2]
    ends = np.array([[switch.low[0], min(b[0][1] for b in cross), min(b[0][2] for b in cross)],
                     [switch.high[0], far, max(b[1][2] for b in cross)]])  # fmt: skip
    shelf, plate = plank.world_box(plank.boxes[0]), surfaces["table"]
    inside = [box for box in boxes if box is not front and box not in bars]
    return Fixtures(
        slider_handle=_vector(slider_handle),
        slider_direction=slide.direction,
        slider_range=slide.travel,
        drawer_handle=_vector(drawer_handle),
        drawer_gap=_vector(gap),
        drawer_direction=drawer.direction,
        drawer_range=drawer.travel,
        button_top=((press[0][0] + press[1][0]) / 2, (press[0][1] + press[1][1]) / 2, press[1][2]),
        button_size=_vector(np.subtract(press[1], press[0])),
        button_range=button.travel,
        switch_bar=_vector(switch.world(ends.mean(axis=0))),
        switch_direction=switch.direction,
        switch_range=switch.travel,
        surfaces=surfaces,
        table_box=(
            _vector((top.low[0], top.low[1], plate[0][2] - _BLOCK_HALF)),
            _vector((top.high[0], shelf[0][1], plate[0][2] - _BLOCK_HALF)),
        ),
        cabinet_box=((shelf[0][0], shelf[0][1], shelf[1][2]), (shelf[1][0], shelf[1][1], shelf[1][2])),
        drawer_box=(
            (floor[0][0], floor[0][1], floor[1][2]),
            (floor[1][0], floor[1][1], max(box[1][2] for box in inside)),
        ),
    )


_GRASP_BELOW_MIDDLE = 0.022
_BAR_FACE_INSET = 0.0027
_BLOCK_HALF = 0.02


class _Part:
    """A link's collision mesh as axis-aligned boxes of its convex parts, link frame, scaled; and its joint."""

    def __init__(self, urdf: Path, joint: str | None, scaling: float):
        root = _xml(urdf)
        if joint is None:
            child, element = "base_link", None
        else:
            element = next((j for j in root.iter("joint") if j.get("name") == joint), None)
            if element is None:
                raise UserError(f"{urdf}: joint {joint!r} is missing; restore the official file")
            child = element.find("child").get("link")
        self.origin, self.rotation, self.travel, self.direction = np.zeros(3), np.eye(3), 0.0, (0.0, 0.0, 0.0)
        if element is not None:
            origin = element.find("origin")
            self.origin = _numbers(origin.get("xyz")) * scaling
            self.rotation = euler_to_matrix(_numbers(origin.get("rpy")))
            if element.get("type") == "prismatic":
                self.travel = float(element.find("limit").get("upper")) * scaling
                self.direction = _vector(np.round(self.rotation @ _numbers(element.find("axis").get("xyz")), 4) + 0.0)
        link = next(item for item in root.iter("link") if item.get("name") == child)
        mesh = urdf.parent / link.find("collision/geometry/mesh").get("filename")
        self.boxes = [(points.min(axis=0) * scaling, points.max(axis=0) * scaling) for points in _mesh_parts(mesh)]
        self.low = np.min([box[0] for box in self.boxes], axis=0)
        self.high = np.max([box[1] for box in self.boxes], axis=0)
        self._points = {id(box): points * scaling for box, points in zip(self.boxes, _mesh_parts(mesh), strict=True)}

    def world(self, point) -> np.ndarray:
        return self.origin + self.rotation @ np.asarray(point, dtype=float)

    def world_box(self, box) -> Box:
        points = self._points[id(box)] @ self.rotation.T + self.origin
        return _vector(points.min(axis=0)), _vector(points.max(axis=0))


def _mesh_parts(file: Path) -> list[np.ndarray]:
    """Return the vertices (n, 3) of each named part of an OBJ file, or of a binary STL as one part."""
    if not file.is_file():
        raise UserError(f"{file}: missing; restore the scene's assets")
    if file.suffix.lower() == ".stl":
        content = file.read_bytes()
        (count,) = struct.unpack_from("<I", content, 80)
        kind = np.dtype([("normal", "<3f4"), ("vertices", "<9f4"), ("attribute", "<u2")])
        return [np.frombuffer(content, kind, count, 84)["vertices"].reshape(-1, 3).astype(np.float64)]
    vertices: list[list[float]] = []
    parts: list[set[int]] = []
    for line in file.read_text().splitlines():
        words = line.split()
        if not words:
            continue
        if words[0] == "v":
            vertices.append([float(word) for word in words[1:4]])
        elif words[0] in ("o", "g"):
            parts.append(set())
        elif words[0] == "f":
            if not parts:
                parts.append(set())
            parts[-1].update(int(word.split("/")[0]) - 1 for word in words[1:])
    points = np.array(vertices)
    return [points[sorted(part)] for part in parts if part]


def _meshes(urdf: str | os.PathLike) -> list[Path]:
    names = (mesh.get("filename").removeprefix("package://") for mesh in _xml(Path(urdf)).iter("mesh"))
    return list(dict.fromkeys(Path(urdf).parent / name for name in names))


def _xml(file: Path) -> ElementTree.Element:
    try:
        # plane.urdf declares XML version 0.0, which Expat refuses; PyBullet reads it.
        text = file.read_text().replace('version="0.0"', 'version="1.0"')
        return ElementTree.fromstring(text.encode())
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; restore the scene's assets") from error
    except ElementTree.ParseError as error:
        raise UserError(f"{file}: not a URDF file ({error}); restore the scene's assets") from error


def _yaml(file: Path) -> dict:
    try:
        return yaml.safe_load(file.read_text())
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; give the root of a checkout of mees/calvin") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not YAML; restore the official file") from error


def _numbers(text: str) -> np.ndarray:
    return np.array([float(word) for word in text.split()])


def _vector(values) -> Vector:
    x, y, z = (float(value) for value in values)
    return x, y, z
