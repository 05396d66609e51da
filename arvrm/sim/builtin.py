"""The built-in scenes A, B, C and D: the play table and a Panda from our own primitives, with random variations.

Positions, sizes, travels, joint and link names follow CALVIN's four tables (calvin_env's URDF files, scaled by 0.8;
here everything is already in world metres), so that its chain starts, tasks and predicates apply unchanged. Shapes,
meshes and textures are ours and made on the fly into a folder of this process, which goes when the process ends.

A variation is a seeded change of *one* named scene: fixtures move by centimetres, may swap sides, and colours and light
change; the cameras are the robot's own and stay. A layout that resembles another named scene is drawn again, so
training on varied A, B and C never shows the layout of D.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from arvrm.geometry import euler_to_matrix
from arvrm.interface import SCENES, UserError
from arvrm.sim import assets_build as build
from arvrm.sim.assets_build import Mesh
from arvrm.sim.scene import Block, Box, Camera, Fixtures, Light, Lighting, SceneDescription, Vector

Colour = tuple[float, float, float]

_TOP = 0.44  # upper face of the table
_SLOPE = np.pi / 6  # the back panel leans this far from the vertical
_PANEL_FRONT = 0.02  # y of the panel's foot, at the table's face
_PANEL_TOP = 0.64785
_CABINET_HALF = 0.26
_DOOR = 0.28  # width of the sliding door


@dataclass(frozen=True)
class Layout:
    """Where the fixtures of one table sit (world frame, m)."""

    button: tuple[float, float]
    """x and y of the button."""
    switch: tuple[float, float]
    """x of the switch and how far its lowest position lies above CALVIN's along the panel."""
    cabinet: float
    """x of the cabinet's middle."""
    door: float
    """x of the closed door's left edge; it opens to the left."""
    door_range: float
    drawer: float
    """x of the drawer's middle."""
    handle: float = 0.14
    """x of the door's handle from the door's left edge."""

    def distance(self, other: Layout) -> float:
        """Largest difference (m) in x between matching fixtures."""
        return max(
            abs(self.button[0] - other.button[0]),
            abs(self.switch[0] - other.switch[0]),
            abs(self.cabinet - other.cabinet),
            abs(self.drawer - other.drawer),
        )


@dataclass(frozen=True)
class Style:
    """Colours (RGB in 0..1) and texture seed of one table."""

    wood: Colour
    door: Colour
    drawer: Colour
    handle: Colour = (0.30, 0.30, 0.31)
    button: Colour = (0.03, 0.03, 0.03)
    robot: Colour = (0.93, 0.93, 0.94)
    joints: Colour = (0.36, 0.37, 0.40)
    floor: Colour = (0.80, 0.81, 0.83)
    contrast: float = 0.14
    planks: int = 0
    rings: float = 6.0
    seed: int = 0


_LAYOUTS = {
    "A": Layout((-0.28, -0.12), (0.30, 0.0), -0.10, -0.10, 0.28, 0.10),
    "B": Layout((0.28, -0.12), (-0.32, 0.0), 0.08, 0.088, 0.304, 0.18),
    "C": Layout((-0.12, -0.12), (-0.32, 0.0), 0.08, 0.06, 0.24, 0.10),
    "D": Layout((-0.12, -0.12), (0.30, 0.0), -0.10, -0.10, 0.28, 0.18),
}

_STYLES = {
    "A": Style((0.47, 0.22, 0.15), (0.38, 0.16, 0.11), (0.42, 0.19, 0.13), seed=1),
    "B": Style((0.93, 0.76, 0.53), (0.86, 0.67, 0.44), (0.88, 0.70, 0.48), contrast=0.08, seed=2),
    "C": Style((0.62, 0.40, 0.20), (0.36, 0.15, 0.10), (0.36, 0.15, 0.10), planks=6, seed=3),
    "D": Style((0.58, 0.47, 0.32), (0.50, 0.39, 0.25), (0.54, 0.43, 0.29), contrast=0.12, rings=4, seed=4),
}

_Z = 0.46  # height of a block's centre on the table
_SURFACES: dict[str, dict[str, Box]] = {
    "A": {
        "table": ((-0.2, -0.15, _Z), (0.35, -0.03, _Z)),
        "slider_left": ((-0.32, 0.05, _Z), (-0.16, 0.12, _Z)),
        "slider_right": ((-0.05, 0.05, _Z), (0.13, 0.12, _Z)),
    },
    "B": {
        "table": ((-0.35, -0.15, _Z), (0.15, -0.03, _Z)),
        "slider_left": ((-0.12, 0.05, _Z), (0.06, 0.12, _Z)),
        "slider_right": ((0.15, 0.05, _Z), (0.33, 0.12, _Z)),
    },
    "C": {
        "table": ((0.0, -0.15, _Z), (0.35, -0.03, _Z)),
        "slider_left": ((-0.12, 0.05, _Z), (0.06, 0.12, _Z)),
        "slider_right": ((0.15, 0.05, _Z), (0.3, 0.12, _Z)),
    },
    "D": {
        "table": ((0.0, -0.15, _Z), (0.35, -0.03, _Z)),
        "slider_left": ((-0.32, 0.05, _Z), (-0.16, 0.12, _Z)),
        "slider_right": ((-0.05, 0.05, _Z), (0.13, 0.12, _Z)),
    },
}

_BLOCK_LENGTHS = {  # m along x, in the order of scene_obs; the other two sides are 4 cm
    "A": {"pink": 0.04, "blue": 0.08, "red": 0.056},
    "B": {"red": 0.04, "blue": 0.08, "pink": 0.056},
    "C": {"blue": 0.04, "red": 0.08, "pink": 0.056},
    "D": {"red": 0.056, "blue": 0.04, "pink": 0.08},
}
_BLOCK_COLOURS: dict[str, Colour] = {"red": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0), "pink": (1.0, 0.0, 1.0)}

_STATIC = Camera(
    10.0, 0.01, 10.0,
    (2.871459009488717, -2.166602199425597, 2.555159848480571),
    (-0.026242351159453392, -0.0302329882979393, 0.3920000493526459),
    (0.4041403970338857, 0.22629790978217404, 0.8862616969685161),
)  # fmt: skip
_GRIPPER = Camera(75.0, 0.01, 2.0)


def builtin_scene(name: str, variation: int | None = None) -> SceneDescription:
    """Describe (and write, once a process) a built-in scene.

    Args:
        name: "A" to "D".
        variation: None for the canonical scene; else a seed that moves fixtures by centimetres (and sometimes to the
            other side), and changes colours, textures and light.

    Returns:
        a scene whose files live in a folder of this process, those of the last 128 different scenes at least.

    Raises:
        UserError: unknown scene or a negative seed.
    """
    if name not in SCENES:
        raise UserError(f"scene: {name!r} is unknown; choose one of {', '.join(SCENES)}")
    if variation is not None and variation < 0:
        raise UserError(f"variation: {variation} is negative; give a seed of 0 or more, or none")
    key = (os.getpid(), name, variation)
    with _LOCK:
        if key not in _CACHE:
            if len(_CACHE) >= _CACHE_SIZE:  # there may be one variation an episode: do not fill the disk
                _forget(next(iter(_CACHE)))
            _CACHE[key] = _make(name, variation)
        return _CACHE[key]


_CACHE: dict[tuple, SceneDescription] = {}
_CACHE_SIZE = 128
_LOCK = threading.Lock()
_FOLDERS: dict[int, Path] = {}


def _folder() -> Path:
    """Return this process's folder for generated files; a forked child makes its own."""
    pid = os.getpid()
    if pid not in _FOLDERS:
        _FOLDERS[pid] = Path(tempfile.mkdtemp(prefix="arvrm-scene-"))
        atexit.register(_remove, pid)
    return _FOLDERS[pid]


def _remove(pid: int) -> None:
    if pid == os.getpid():
        shutil.rmtree(_FOLDERS.pop(pid), ignore_errors=True)


def _forget(key: tuple) -> None:
    scene = _CACHE.pop(key)
    if key[0] == os.getpid():
        shutil.rmtree(Path(scene.table_urdf).parent, ignore_errors=True)


def _make(name: str, variation: int | None) -> SceneDescription:
    layout, style, static, lighting = _LAYOUTS[name], _STYLES[name], _STATIC, Lighting()
    surfaces = _SURFACES[name]
    if variation is not None:
        rng = np.random.default_rng([SCENES.index(name), variation])
        layout = vary_layout(name, rng)
        style = vary_style(style, rng)
        lighting = vary_lighting(rng)
        surfaces = _surfaces(layout)
    folder = _folder() / f"{name}-{'canonical' if variation is None else variation}"
    folder.mkdir()
    fixtures = _fixtures(layout, surfaces)
    blocks = tuple(
        Block(block, str(_write_block(folder, block, length)), (length, 0.04, 0.04))
        for block, length in _BLOCK_LENGTHS[name].items()
    )
    return SceneDescription(
        name=name,
        assets="builtin",
        robot_urdf=str(_write_robot(folder, style)),
        table_urdf=str(_write_table(folder, layout, style)),
        plane_urdf=str(_write_floor(folder, style)),
        blocks=blocks,
        surfaces=surfaces,
        fixtures=fixtures,
        static_camera=static,
        gripper_camera=_GRIPPER,
        bulb=Light("light_link", (1.0, 1.0, 0.0, 1.0)),
        led=Light("led_link", (0.0, 1.0, 0.0, 1.0)),
        global_scaling=1.0,
        pedestal=None,  # part of the robot's mesh, with fewer triangles
        lighting=lighting,
    )


# ------------------------------------------------------------------------------------------------------ variations


def vary_layout(name: str, rng: np.random.Generator) -> Layout:
    """Draw a layout around the named scene's own: centimetres, at times the other side; never another named one's."""
    own = _LAYOUTS[name]
    others = [layout for key, layout in _LAYOUTS.items() if key != name]
    while True:
        layout = _draw_layout(own, rng)
        if all(layout.distance(other) > 0.05 for other in others):
            return layout


def _draw_layout(own: Layout, rng: np.random.Generator) -> Layout:
    side = 1 if own.switch[0] > 0 else -1
    if rng.random() < 0.25:
        side = -side
    cabinet = -0.095 * side + rng.uniform(-0.02, 0.02)
    # The door's place within the cabinet is the scene's own; the switch stands clear of door and table edge.
    door_range = own.door_range
    door = np.clip(cabinet + own.door - own.cabinet + rng.uniform(-0.02, 0.02), door_range - 0.43, 0.43 - _DOOR)
    if side > 0:
        switch = rng.uniform(max(door + _DOOR, cabinet + _CABINET_HALF) + 0.075, 0.365)
    else:
        switch = rng.uniform(-0.365, min(door - door_range, cabinet - _CABINET_HALF) - 0.075)
    button = own.button[0]
    if rng.random() < 0.25:
        button = -button
    button += rng.uniform(-0.05, 0.05)
    button = float(np.clip(button, -0.32, 0.32))
    drawer = float(np.clip(own.drawer + rng.uniform(-0.05, 0.05), 0.02, 0.21))
    return Layout(
        button=(button, -0.12 + rng.uniform(-0.012, 0.012)),
        switch=(float(switch), rng.uniform(-0.015, 0.03)),
        cabinet=float(cabinet),
        door=float(door),
        door_range=door_range,
        drawer=drawer,
        handle=0.14 + rng.uniform(-0.03, 0.03),
    )


def _surfaces(layout: Layout) -> dict[str, Box]:
    """Place block starts as CALVIN does: beside the button, and in both halves of the cabinet."""
    if layout.button[0] < 0:
        table = (layout.button[0] + 0.1, 0.35)
    else:
        table = (-0.35, layout.button[0] - 0.12)
    shift = layout.door
    low, high = layout.cabinet - _CABINET_HALF, layout.cabinet + _CABINET_HALF
    left = (max(low + 0.04, shift - 0.22), shift - 0.06)
    right = (shift + 0.05, min(high - 0.03, shift + 0.23))
    return {
        "table": ((table[0], -0.15, _Z), (table[1], -0.03, _Z)),
        "slider_left": ((left[0], 0.05, _Z), (left[1], 0.12, _Z)),
        "slider_right": ((right[0], 0.05, _Z), (right[1], 0.12, _Z)),
    }


def vary_style(style: Style, rng: np.random.Generator) -> Style:
    """Draw colours and textures: mostly woods, sometimes paint. Blocks keep their colours: instructions name them."""

    def surface() -> Colour:
        if rng.random() < 0.7:  # woods: from pale birch to dark walnut
            dark = rng.uniform(0.25, 0.95)
            return tuple(np.clip(dark * np.array([1.0, rng.uniform(0.55, 0.85), rng.uniform(0.3, 0.65)]), 0, 1))
        paint = rng.uniform(0.25, 0.95) * (0.6 + 0.4 * rng.random(3))
        return tuple(np.clip(paint, 0, 1))

    base = surface()
    alike = rng.random() < 0.4
    grey = rng.uniform(0.08, 0.5)
    shade = rng.uniform(0.8, 1.0)
    return replace(
        style,
        wood=base,
        door=tuple(0.9 * np.array(base)) if alike else surface(),
        drawer=tuple(0.95 * np.array(base)) if alike else surface(),
        handle=tuple(np.clip(grey + rng.normal(0, 0.04, 3), 0, 1)),
        robot=tuple(np.clip(shade + rng.normal(0, 0.02, 3), 0, 1)),
        floor=tuple(np.clip(rng.uniform(0.55, 0.95) + rng.normal(0, 0.05, 3), 0, 1)),
        contrast=rng.uniform(0.03, 0.15),
        planks=int(rng.choice([0, 0, 4, 6, 8])),
        rings=float(rng.integers(3, 9)),
        seed=int(rng.integers(1 << 31)),
    )


def vary_lighting(rng: np.random.Generator) -> Lighting:
    """Draw a light from above: direction, slightly coloured, brighter or dimmer."""
    angle, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.3)
    direction = (float(np.cos(angle) * np.cos(height)), float(np.sin(angle) * np.cos(height)), float(np.sin(height)))
    colour = tuple(float(c) for c in np.clip(rng.uniform(0.85, 1.0) + rng.normal(0, 0.03, 3), 0.7, 1.0))
    return Lighting(
        direction=direction,
        colour=colour,
        distance=2.0,
        ambient=rng.uniform(0.5, 0.7),
        diffuse=rng.uniform(0.25, 0.5),
        specular=rng.uniform(0.0, 0.1),
    )


# -------------------------------------------------------------------------------------------------------- geometry


def _panel_y(z: float) -> float:
    """y (m) of the leaning panel's face at height z."""
    return _PANEL_FRONT + (z - _TOP) * np.tan(_SLOPE)


def _door_frame(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    return np.array([layout.door, 0.075, 0.535264]), euler_to_matrix((np.pi / 3, 0, 0))


def _switch_frame(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    up = np.array([0.0, np.sin(_SLOPE), np.cos(_SLOPE)])
    origin = np.array([layout.switch[0], 0.0609282, 0.4948897]) + layout.switch[1] * up
    return origin, euler_to_matrix((5 * np.pi / 6, 0, 0))


def _vector(values) -> Vector:
    x, y, z = (float(v) for v in values)
    return x, y, z


_BUTTON_TRAVEL, _SWITCH_TRAVEL, _DRAWER_TRAVEL = 0.02, 0.088, 0.22
_HANDLE_BELOW, _HANDLE_DEPTH = 0.022, 0.0773  # where on the door's bar a vertical gripper grasps (door's frame)


def _fixtures(layout: Layout, surfaces: dict[str, Box]) -> Fixtures:
    door, door_turn = _door_frame(layout)
    switch, switch_turn = _switch_frame(layout)
    return Fixtures(
        slider_handle=_vector(door + door_turn @ [layout.handle, -_HANDLE_BELOW, _HANDLE_DEPTH]),
        slider_direction=(-1.0, 0.0, 0.0),
        slider_range=layout.door_range,
        drawer_handle=(layout.drawer, -0.25, 0.36),
        drawer_gap=(layout.drawer, -0.21, 0.36),
        drawer_direction=(0.0, -1.0, 0.0),
        drawer_range=_DRAWER_TRAVEL,
        button_top=(layout.button[0], layout.button[1], 0.484),
        button_size=(0.064, 0.064, 0.024),
        button_range=_BUTTON_TRAVEL,
        switch_bar=_vector(switch + switch_turn @ [0.0, 0.054, -0.008]),
        switch_direction=(0.0, float(np.sin(_SLOPE)), float(np.cos(_SLOPE))),
        switch_range=_SWITCH_TRAVEL,
        surfaces=surfaces,
        table_box=((-0.44, -0.18, _TOP), (0.44, _PANEL_FRONT, _TOP)),
        cabinet_box=((layout.cabinet - _CABINET_HALF, 0.02, _TOP), (layout.cabinet + _CABINET_HALF, 0.16, _TOP)),
        drawer_box=((layout.drawer - 0.18, -0.16, 0.34), (layout.drawer + 0.18, 0.04, 0.40)),
    )


def _write_block(folder: Path, name: str, length: float) -> Path:
    size = build.numbers((length, 0.04, 0.04))
    box = f'<geometry><box size="{size}"/></geometry>'
    colour = build.numbers((*_BLOCK_COLOURS[name], 1))
    contact = '<contact><lateral_friction value="0.7"/><spinning_friction value="0.001"/></contact>'
    parts = [
        f'<visual>{build.origin()}{box}<material name="{name}"><color rgba="{colour}"/></material></visual>',
        f"<collision>{build.origin()}{box}</collision>",
    ]
    path = folder / f"block_{name}.urdf"
    path.write_text(build.robot(f"block_{name}", [build.link("base_link", parts, 1.0, contact=contact)]))
    return path


def _write_floor(folder: Path, style: Style) -> Path:
    """The ground: a solid slab that catches fallen blocks, drawn as the few grey tiles that the camera can see."""
    tiles = Mesh()
    for x, y in ((-0.75, -0.35), (-0.25, -0.85), (0.25, -0.35)):
        tiles.polygon([(x - 0.25, y - 0.25, 0), (x + 0.25, y - 0.25, 0), (x + 0.25, y + 0.25, 0),
                       (x - 0.25, y + 0.25, 0)])  # fmt: skip
    tiles.save(folder / "floor.obj")
    parts = [build.visual("floor.obj", style.floor), build.box_shape((-100, -100, -10), (100, 100, 0))]
    contact = '<contact><lateral_friction value="1"/></contact>'
    path = folder / "floor.urdf"
    path.write_text(build.robot("floor", [build.link("planeLink", parts, contact=contact)]))
    return path


def _write_table(folder: Path, layout: Layout, style: Style) -> Path:
    rng = np.random.default_rng(style.seed)
    for name, colour in (("wood", style.wood), ("door", style.door), ("drawer", style.drawer)):
        image = build.wood(colour, rng, contrast=style.contrast, rings=style.rings, planks=style.planks)
        build.save_png(folder / f"{name}.png", image)
    links = [_base(folder, layout, style), *_button(folder, layout, style), *_switch(folder, layout, style),
             *_door(folder, layout, style), *_drawer(folder, layout, style), *_lights(folder, layout),
             *_plank(folder, layout)]  # fmt: skip
    path = folder / "table.urdf"
    path.write_text(build.robot(f"table_{path.parent.name}", links))
    return path


_WHITE = (1.0, 1.0, 1.0)


def _base(folder: Path, layout: Layout, style: Style) -> str:
    c0, c1 = layout.cabinet - _CABINET_HALF, layout.cabinet + _CABINET_HALF
    d0, d1 = layout.drawer - 0.2, layout.drawer + 0.2
    beam = 0.62784  # lower edge of the cabinet's upper beam
    foot, top = _panel_y(_TOP), _panel_y(_PANEL_TOP)

    # Collision: boxes and convex prisms around the drawer's bay and the cabinet.
    boxes = [
        ((-0.44, -0.18, 0.40), (0.44, 0.02, _TOP)),  # plate
        ((-0.44, 0.02, 0.40), (0.44, 0.18, 0.42)),  # below the cabinet
        ((c0, 0.16, 0.42), (c1, 0.18, _PANEL_TOP)),  # cabinet's back
        ((-0.42, -0.16, 0.30), (0.42, 0.16, 0.32)),  # below the drawer
        ((-0.42, -0.16, 0.32), (d0, 0.16, 0.40)),
        ((d1, -0.16, 0.32), (0.42, 0.16, 0.40)),
        ((d0, 0.06, 0.32), (d1, 0.16, 0.40)),
    ]
    for x in (-0.44, 0.40):
        for y in (-0.18, 0.148):
            boxes.append(((x, y, 0.0), (x + 0.04, y + 0.032, 0.40)))
    shapes = [build.box_shape(low, high) for low, high in boxes]
    profile = [(foot, 0.42), (0.18, 0.42), (0.18, _PANEL_TOP), (top, _PANEL_TOP), (foot, _TOP)]
    over = [(_panel_y(beam), beam), (0.18, beam), (0.18, _PANEL_TOP), (top, _PANEL_TOP)]
    for key, side, low, high in (("left", profile, -0.44, c0), ("right", profile, c1, 0.44), ("over", over, c0, c1)):
        Mesh().prism_x(side, low, high).save(folder / f"base_{key}.obj")
        shapes.append(build.mesh_shape(f"base_{key}.obj"))
    bx, by = layout.button
    shapes.append(build.cylinder_shape((bx, by, 0.45), 0.04, 0.02))

    # Visual: the faces that can be seen from the front, from above and from both sides.
    wood = Mesh()
    wood.box((-0.44, -0.18, 0.40), (0.44, 0.02, _TOP), "-x +x -y +z")
    wood.box((-0.44, 0.02, 0.40), (0.44, 0.18, _TOP), "-x +x")
    wood.prism_x(profile[2:] + [(foot, _TOP), (0.18, _TOP)], -0.44, c0, sides=(1,), ends="-")
    wood.prism_x(profile[2:] + [(foot, _TOP), (0.18, _TOP)], c1, 0.44, sides=(1,), ends="+")
    wood.polygon([(c0, top, _PANEL_TOP), (c0, _panel_y(beam), beam), (c1, _panel_y(beam), beam),
                  (c1, top, _PANEL_TOP)])  # fmt: skip
    wood.polygon([(-0.44, top, _PANEL_TOP), (0.44, top, _PANEL_TOP), (0.44, 0.18, _PANEL_TOP),
                  (-0.44, 0.18, _PANEL_TOP)])  # fmt: skip
    wood.polygon([(c0, 0.16, _TOP), (c1, 0.16, _TOP), (c1, 0.16, beam), (c0, 0.16, beam)])  # inside: back
    inside = [(foot, _TOP), (0.16, _TOP), (0.16, beam), (_panel_y(beam), beam)]
    wood.polygon([(c0, y, z) for y, z in inside])
    wood.polygon([(c1, y, z) for y, z in reversed(inside)])
    wood.box((-0.42, -0.16, 0.30), (d0, 0.16, 0.40), "-y -x")
    wood.box((d1, -0.16, 0.30), (0.42, 0.16, 0.40), "-y +x")
    for x in (-0.44, 0.40):
        wood.box((x, -0.18, 0.0), (x + 0.04, -0.148, 0.4), "-y +x")
    wood.box((0.40, 0.148, 0.0), (0.44, 0.18, 0.4), "-y +x")
    wood.cylinder((bx, by, _TOP), (bx, by, 0.46), 0.04, sides=12, caps="+")
    wood.save(folder / "base.obj", "wood.png")
    # Two slots on the panel in which the switch runs.
    slots = Mesh()
    origin, turn = _switch_frame(layout)
    for x in (-0.05, 0.05):
        corners = [(x - 0.004, 0.001, 0), (x + 0.004, 0.001, 0), (x + 0.004, 0.001, -0.12), (x - 0.004, 0.001, -0.12)]
        slots.polygon([origin + turn @ np.array(p) for p in corners])
    slots.save(folder / "slots.obj")
    visuals = [build.visual("base.obj", _WHITE), build.visual("slots.obj", tuple(0.35 * np.array(style.wood)))]
    return build.link("base_link", visuals + shapes)


def _button(folder: Path, layout: Layout, style: Style) -> list[str]:
    # Link frame: y up (as in CALVIN, so that the joint's axis and sign agree).
    Mesh().cylinder((0, 0, 0), (0, 0.024, 0), 0.032, sides=12, caps="+").save(folder / "button.obj")
    parts = [build.visual("button.obj", style.button),
             build.cylinder_shape((0, 0.012, 0), 0.032, 0.024, (np.pi / 2, 0, 0))]  # fmt: skip
    place = (*layout.button, _Z)
    return [
        build.link("button_link", parts, 0.154, (0, 0.012, 0)),
        build.joint("base__button", "prismatic", "base_link", "button_link", place, (np.pi / 2, 0, 0), (0, -1, 0),
                    (0.0, _BUTTON_TRAVEL)),
    ]  # fmt: skip


def _bar(mesh: Mesh, points: list[Vector], radius: float, sides: int = 6) -> Mesh:
    """A bent bar through the points, hexagonal."""
    for start, end in zip(points[:-1], points[1:], strict=True):
        direction = np.subtract(end, start) / np.linalg.norm(np.subtract(end, start))
        mesh.cylinder(np.asarray(start) - 0.6 * radius * direction, np.asarray(end) + 0.6 * radius * direction, radius,
                      sides=sides, caps="-+", turn=np.pi / sides)  # fmt: skip
    return mesh


def _switch(folder: Path, layout: Layout, style: Style) -> list[str]:
    origin, _ = _switch_frame(layout)
    bar = [(-0.05, 0, -0.008), (-0.05, 0.054, -0.008), (0.05, 0.054, -0.008), (0.05, 0, -0.008)]
    _bar(Mesh(), bar, 0.012).save(folder / "switch.obj")
    parts = [
        build.visual("switch.obj", style.handle),
        build.box_shape((-0.06, 0.044, -0.022), (0.06, 0.064, 0.006)),
        build.box_shape((-0.06, 0.0, -0.022), (-0.04, 0.044, 0.006)),
        build.box_shape((0.04, 0.0, -0.022), (0.06, 0.044, 0.006)),
    ]
    return [
        build.link("switch_link", parts, 0.239, (0, 0.04, -0.008)),
        build.joint("base__switch", "prismatic", "base_link", "switch_link", origin, (5 * np.pi / 6, 0, 0), (0, 0, -1),
                    (0.0, _SWITCH_TRAVEL)),
    ]  # fmt: skip


def _door(folder: Path, layout: Layout, style: Style) -> list[str]:
    origin, _ = _door_frame(layout)
    h = layout.handle
    panel = Mesh().box((0, -0.11, 0.0), (_DOOR, 0.11, 0.02), "-x +x +y +z")
    panel.save(folder / "door.obj", "door.png")
    bar = [(h, -0.068, 0.02), (h, -0.068, 0.068), (h, 0.068, 0.068), (h, 0.068, 0.02)]
    _bar(Mesh(), bar, 0.0125).save(folder / "door_handle.obj")
    parts = [
        build.visual("door.obj", _WHITE),
        build.visual("door_handle.obj", style.handle),
        build.box_shape((0, -0.11, 0.0), (_DOOR, 0.11, 0.02)),
        build.box_shape((h - 0.02, -0.08, 0.058), (h + 0.02, 0.08, 0.08)),
        build.box_shape((h - 0.02, -0.08, 0.02), (h + 0.02, -0.058, 0.058)),
        build.box_shape((h - 0.02, 0.058, 0.02), (h + 0.02, 0.08, 0.058)),
    ]
    return [
        build.link("slide_link", parts, 1.543, (0.14, 0, 0.0163)),
        build.joint("base__slide", "prismatic", "base_link", "slide_link", origin, (np.pi / 3, 0, 0), (-1, 0, 0),
                    (0.0, layout.door_range)),
    ]  # fmt: skip


def _drawer(folder: Path, layout: Layout, style: Style) -> list[str]:
    # Link frame: y up, z out of the table.
    front = ((-0.22, -0.02, 0.16), (0.22, 0.08, 0.18))
    floor = ((-0.2, 0.0, -0.06), (0.2, 0.02, 0.16))
    sides = [((-0.2, 0.02, -0.06), (-0.18, 0.08, 0.16)), ((0.18, 0.02, -0.06), (0.2, 0.08, 0.16)),
             ((-0.18, 0.02, -0.06), (0.18, 0.08, -0.04))]  # fmt: skip
    wood = Mesh().box(*front, "-x +x +y +z -z").box((-0.18, 0.0, -0.04), (0.18, 0.02, 0.16), "+y")
    wood.box(*sides[0], "+x +y -x").box(*sides[1], "-x +y +x").box(*sides[2], "+z +y")
    wood.save(folder / "drawer.obj", "drawer.png")
    bar = [(-0.108, 0.04, 0.18), (-0.108, 0.04, 0.248), (0.108, 0.04, 0.248), (0.108, 0.04, 0.18)]
    _bar(Mesh(), bar, 0.0125).save(folder / "drawer_handle.obj")
    shapes = [front, floor, *sides, ((-0.12, 0.02, 0.24), (0.12, 0.06, 0.26)),
              ((-0.12, 0.02, 0.18), (-0.1, 0.06, 0.24)), ((0.1, 0.02, 0.18), (0.12, 0.06, 0.24))]  # fmt: skip
    parts = [build.visual("drawer.obj", _WHITE), build.visual("drawer_handle.obj", style.handle)]
    parts += [build.box_shape(low, high) for low, high in shapes]
    return [
        build.link("drawer_link", parts, 4.231, (0, 0.0266, 0.0791)),
        build.joint("base__drawer", "prismatic", "base_link", "drawer_link", (layout.drawer, 0, 0.32),
                    (np.pi / 2, 0, 0), (0, 0, 1), (0.0, _DRAWER_TRAVEL)),
    ]  # fmt: skip


def _lights(folder: Path, layout: Layout) -> list[str]:
    """The LED above the button, the bulb above the switch; the environment colours them."""
    Mesh().box((-0.08, 0, -0.02), (0.08, 0.016, 0.02), "-x +x +y +z").save(folder / "led.obj")
    centre = (0, 0.0216, -0.028)
    Mesh().sphere(centre, 0.028, sides=10, rings=5, axis=(0, 1, 0), low=-0.9).save(folder / "bulb.obj")
    led = [build.visual("led.obj", _WHITE), build.box_shape((-0.08, 0, -0.02), (0.08, 0.016, 0.02))]
    bulb = [build.visual("bulb.obj", _WHITE), build.sphere_shape(centre, 0.028)]
    turn = (np.pi / 2, 0, 0)
    x = layout.button[0]
    if abs(x - layout.switch[0]) < 0.12:  # stand clear of the bulb
        x = layout.switch[0] - np.copysign(0.12, layout.switch[0])
    return [
        build.link("led_link", led, 0.204, (0, 0.008, 0)),
        build.joint("base__led", "fixed", "base_link", "led_link", (x, 0.16, _PANEL_TOP), turn),
        build.link("light_link", bulb, 0.174, centre),
        build.joint("base__light", "fixed", "base_link", "light_link", (layout.switch[0], 0.132, _PANEL_TOP), turn),
    ]


def _plank(folder: Path, layout: Layout) -> list[str]:
    """The cabinet's floor: a link of its own, so that contacts tell cabinet from table."""
    low, high = (-_CABINET_HALF, 0, -0.07), (_CABINET_HALF, 0.02, 0.07)
    floor = Mesh().box(low, high, "+y")
    floor.save(folder / "plank.obj", "wood.png")
    # CALVIN's hull carries blocks 1 mm higher than its mesh shows; its chain starts count on that.
    parts = [build.visual("plank.obj", _WHITE), build.box_shape(low, (high[0], high[1] + 0.001, high[2]))]
    return [
        build.link("plank_link", parts, 2.844, (0, 0.01, 0)),
        build.joint("base__plank", "fixed", "base_link", "plank_link", (layout.cabinet, 0.09, 0.42),
                    (np.pi / 2, 0, 0)),
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- robot

_HALF_TURN = np.pi / 2
_ARM = (
    # Franka Emika Panda: (place, Euler angles) of joint i in link i - 1, mass (kg), centre of mass.
    ((0, 0, 0.333), (0, 0, 0), 2.7, (0, -0.04, -0.05)),
    ((0, 0, 0), (-_HALF_TURN, 0, 0), 2.73, (0, -0.04, 0.06)),
    ((0, -0.316, 0), (_HALF_TURN, 0, 0), 2.04, (0.01, 0.01, -0.05)),
    ((0.0825, 0, 0), (_HALF_TURN, 0, 0), 2.08, (-0.03, 0.03, 0.02)),
    ((-0.0825, 0.384, 0), (-_HALF_TURN, 0, 0), 3.0, (0, 0.04, -0.12)),
    ((0, 0, 0), (_HALF_TURN, 0, 0), 1.3, (0.04, 0, 0)),
    ((0.088, 0, 0), (_HALF_TURN, 0, 0), 0.2, (0, 0, 0.08)),
)
_ARM_LIMITS = (  # mechanical limits; the controller clips to narrower ones
    (-2.9671, 2.9671), (-1.8326, 1.8326), (-2.9671, 2.9671), (-3.1416, 0.0), (-2.9671, 2.9671), (-0.0873, 3.8223),
    (-2.9671, 2.9671),
)  # fmt: skip

_Cylinder = tuple[Vector, Vector, float]
_ARM_CYLINDERS: tuple[tuple[tuple[_Cylinder, ...], tuple[_Cylinder, ...]], ...] = (
    # Per link 1 to 7: white shells and grey joint caps, as (start, end, radius).
    (
        (((0, 0, -0.192), (0, 0, 0.02), 0.058), ((0, -0.11, 0), (0, 0.0, 0), 0.058)),
        (((0, -0.13, 0), (0, -0.11, 0), 0.052),),
    ),
    (
        (((0, 0, 0), (0, -0.194, 0), 0.058), ((0, 0, 0), (0, 0, 0.11), 0.058)),
        (((0, 0, 0.11), (0, 0, 0.13), 0.052),),
    ),
    (
        (
            ((0, 0, -0.121), (0, 0, 0), 0.056),
            ((0, 0, -0.02), (0.0825, 0.03, 0), 0.052),
            ((0.0825, -0.02, 0), (0.0825, 0.095, 0), 0.055),
        ),
        (((0.0825, 0.095, 0), (0.0825, 0.112, 0), 0.05),),
    ),
    (
        (
            ((0, 0, 0), (0, 0, 0.095), 0.055),
            ((0, 0, 0.02), (-0.0825, 0.03, 0), 0.052),
            ((-0.0825, 0, 0), (-0.0825, 0.124, 0), 0.055),
        ),
        (((0, 0, 0.095), (0, 0, 0.112), 0.05),),
    ),
    (
        (
            ((0, 0, -0.26), (0, 0, -0.13), 0.056),
            ((0, 0.005, -0.15), (0, 0.06, -0.02), 0.055),
            ((0, 0.04, 0), (0, 0.115, 0), 0.05),
        ),
        (((0, 0.115, 0), (0, 0.13, 0), 0.045),),
    ),
    (
        (
            ((0, 0, -0.044), (0, 0, 0.05), 0.05),
            ((0, 0, 0), (0.088, 0.015, 0), 0.045),
            ((0.088, -0.05, 0), (0.088, 0.07, 0), 0.047),
        ),
        (((0.088, 0.07, 0), (0.088, 0.082, 0), 0.04),),
    ),
    ((((0, 0, 0.05), (0, 0, 0.107), 0.043),), ()),
)


def _cylinder_shape(part: _Cylinder) -> str:
    start, end, radius = (np.asarray(part[0], float), np.asarray(part[1], float), part[2])
    axis = end - start
    length = float(np.linalg.norm(axis))
    axis = axis / length
    pitch, yaw = float(np.arccos(np.clip(axis[2], -1, 1))), float(np.arctan2(axis[1], axis[0]))
    return build.cylinder_shape((start + end) / 2, radius, length, (0, pitch, yaw))


def _write_robot(folder: Path, style: Style) -> Path:
    """Write the Panda; its meshes are the same for all scenes of a process."""
    shared = folder.parent / "panda"
    if not shared.is_dir():
        _write_robot_meshes(shared)
    foot = [build.visual("../panda/link0.obj", style.robot), build.box_shape((-0.14, -0.09, 0), (0.07, 0.09, 0.10)),
            build.cylinder_shape((0, 0, 0.07), 0.07, 0.14)]  # fmt: skip
    parts = [build.link("panda_link0", foot, 2.9, (0, 0, 0.05))]
    for k, (place, turn, mass, centre) in enumerate(_ARM):
        shells, caps = _ARM_CYLINDERS[k]
        elements = [build.visual(f"../panda/link{k + 1}_shell.obj", style.robot)]
        if caps:
            elements.append(build.visual(f"../panda/link{k + 1}_cap.obj", style.joints))
        elements += [_cylinder_shape(part) for part in shells]
        effort, velocity = (87, 2.175) if k < 4 else (12, 2.61)
        parts.append(build.link(f"panda_link{k + 1}", elements, mass, centre))
        parts.append(build.joint(f"panda_joint{k + 1}", "revolute", f"panda_link{k}", f"panda_link{k + 1}", place, turn,
                                 (0, 0, 1), _ARM_LIMITS[k], effort, velocity))  # fmt: skip
    parts += _gripper(style)
    path = folder / "robot.urdf"
    path.write_text(build.robot("panda", parts))
    return path


_PAD = ((0.0161, -0.0092, 0.0047), (0.0201, 0.0092, 0.0297))


def _write_robot_meshes(folder: Path) -> None:
    folder.mkdir()
    base = Mesh().cylinder((0, 0, 0.0), (0, 0, 0.14), 0.085, 0.065, sides=10, caps="")
    base.cylinder((-0.05, 0, -0.24), (-0.05, 0, 0), 0.13, sides=12, caps="+")  # the pedestal
    base.save(folder / "link0.obj")
    for k, (shells, caps) in enumerate(_ARM_CYLINDERS):
        for kind, cylinders in (("shell", shells), ("cap", caps)):
            mesh = Mesh()
            for start, end, radius in cylinders:
                mesh.cylinder(start, end, radius, sides=8)
            if cylinders:
                mesh.save(folder / f"link{k + 1}_{kind}.obj")
    outline = [(-0.1, 0.0), (0.1, 0.0), (0.104, 0.02), (0.09, 0.06), (-0.09, 0.06), (-0.104, 0.02)]
    Mesh().prism_x(outline, -0.03, 0.03).save(folder / "hand.obj")
    # Finger: (y, z) outline, inner face at y = 4 mm, tip 96 mm below the finger's joint.
    outline = [(0.0062, 0.0), (0.027, 0.0), (0.0215, 0.034), (0.0068, 0.0962), (0.0040, 0.0962), (0.0040, 0.064)]
    finger = Mesh().prism_x(outline, -0.0098, 0.0098)
    finger.save(folder / "finger_left.obj")
    finger.transformed(np.diag([-1.0, -1.0, 1.0])).save(folder / "finger_right.obj")
    Mesh().box(*_PAD).save(folder / "pad.obj")
    # The camera looks out of its own box (+y): leave that face out.
    Mesh().box((-0.04, -0.0125, -0.005), (0.04, 0.0125, 0.005), "-x +x -y -z +z").save(folder / "camera.obj")


def _gripper(style: Style) -> list[str]:
    """Hand, two long fingers with pads, the camera on the hand and the tool centre point, in CALVIN's order."""
    hand_box = build.box_shape((-0.0315, -0.103, -0.02), (0.0315, 0.103, 0.06))
    hand_parts = [build.visual("../panda/hand.obj", style.robot), hand_box]
    contact = ('<contact><stiffness value="30000.0"/><damping value="1000.0"/><spinning_friction value="0.1"/>'
               '<lateral_friction value="1.0"/></contact>')  # fmt: skip
    soft = '<contact><lateral_friction value="1"/><spinning_friction value="0.001"/></contact>'
    grey = tuple(0.92 * np.array(style.robot))

    def finger_link(side: str, sign: int) -> str:
        file = f"../panda/finger_{side}.obj"
        return build.link(f"panda_{side}finger", [build.visual(file, grey), build.mesh_shape(file)], 0.1,
                          (0, 0.01 * sign, 0.02), contact)  # fmt: skip

    tip = [build.visual("../panda/pad.obj", style.robot), build.box_shape(*_PAD)]
    return [
        build.link("panda_link8"),
        build.link("panda_hand", hand_parts, 0.81, (0, 0, 0.04)),
        finger_link("left", 1),
        finger_link("right", -1),
        build.link("panda_grasptarget"),
        build.link("gripper_cam", [build.visual("../panda/camera.obj", style.robot)], 0.2),
        build.link("tcp", mass=1e-5),
        build.link("finger_left_tip", tip, 1e-4, contact=soft),
        build.link("finger_right_tip", tip, 1e-4, contact=soft),
        build.joint("panda_joint8", "fixed", "panda_link7", "panda_link8", (0, 0, 0.107)),
        build.joint("panda_hand_joint", "fixed", "panda_link8", "panda_hand", (0, 0, 0), (0, 0, -np.pi / 4)),
        build.joint("panda_finger_joint1", "prismatic", "panda_hand", "panda_leftfinger", (0, 0, 0.0584), (0, 0, 0),
                    (0, 1, 0), (0.0, 0.04), 20, 0.2),
        build.joint("panda_finger_joint2", "prismatic", "panda_hand", "panda_rightfinger", (0, 0, 0.0584), (0, 0, 0),
                    (0, -1, 0), (0.0, 0.04), 20, 0.2),
        build.joint("panda_grasptarget_hand", "fixed", "panda_hand", "panda_grasptarget", (0, 0, 0.105)),
        build.joint("camera_joint", "fixed", "panda_hand", "gripper_cam", (-0.1, 0, 0), (1.3, 0, -1.57)),
        build.joint("tcp_joint", "fixed", "panda_hand", "tcp", (0, 0, 0.14)),
        build.joint("joint_finger_tip_left", "fixed", "panda_leftfinger", "finger_left_tip", (0.0009, 0.021, 0.066),
                    (0, 0, -1.57)),
        build.joint("joint_finger_tip_right", "fixed", "panda_rightfinger", "finger_right_tip",
                    (-0.0009, -0.021, 0.066), (0, 0, 1.57)),
    ]  # fmt: skip
