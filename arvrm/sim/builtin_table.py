"""Writes a built-in play table, its blocks and the floor: URDF files, meshes and textures of our own primitives.

Sizes, joint and link names follow CALVIN's URDF files, so that its tasks and predicates apply unchanged.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from arvrm.geometry import euler_to_matrix
from arvrm.sim import assets_build as build
from arvrm.sim.assets_build import Mesh
from arvrm.sim.builtin_layout import CABINET_HALF, DOOR, Colour, Layout, Style, Z
from arvrm.sim.scene import Box, Fixtures, Vector

_TOP = 0.44  # upper face of the table
_SLOPE = np.pi / 6  # the back panel leans this far from the vertical
_PANEL_FRONT = 0.02  # y of the panel's foot, at the table's face
_PANEL_TOP = 0.64785
_BLOCK_COLOURS: dict[str, Colour] = {"red": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0), "pink": (1.0, 0.0, 1.0)}


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


def fixtures_of(layout: Layout, surfaces: dict[str, Box]) -> Fixtures:
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
        cabinet_box=((layout.cabinet - CABINET_HALF, 0.02, _TOP), (layout.cabinet + CABINET_HALF, 0.16, _TOP)),
        drawer_box=((layout.drawer - 0.18, -0.16, 0.34), (layout.drawer + 0.18, 0.04, 0.40)),
    )


def write_block(folder: Path, name: str, length: float) -> Path:
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


def write_floor(folder: Path, style: Style) -> Path:
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


def write_table(folder: Path, layout: Layout, style: Style) -> Path:
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
    c0, c1 = layout.cabinet - CABINET_HALF, layout.cabinet + CABINET_HALF
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
    place = (*layout.button, Z)
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
    panel = Mesh().box((0, -0.11, 0.0), (DOOR, 0.11, 0.02), "-x +x +y +z")
    panel.save(folder / "door.obj", "door.png")
    bar = [(h, -0.068, 0.02), (h, -0.068, 0.068), (h, 0.068, 0.068), (h, 0.068, 0.02)]
    _bar(Mesh(), bar, 0.0125).save(folder / "door_handle.obj")
    parts = [
        build.visual("door.obj", _WHITE),
        build.visual("door_handle.obj", style.handle),
        build.box_shape((0, -0.11, 0.0), (DOOR, 0.11, 0.02)),
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
    low, high = (-CABINET_HALF, 0, -0.07), (CABINET_HALF, 0.02, 0.07)
    floor = Mesh().box(low, high, "+y")
    floor.save(folder / "plank.obj", "wood.png")
    # CALVIN's hull carries blocks 1 mm higher than its mesh shows; its chain starts count on that.
    parts = [build.visual("plank.obj", _WHITE), build.box_shape(low, (high[0], high[1] + 0.001, high[2]))]
    return [
        build.link("plank_link", parts, 2.844, (0, 0.01, 0)),
        build.joint("base__plank", "fixed", "base_link", "plank_link", (layout.cabinet, 0.09, 0.42),
                    (np.pi / 2, 0, 0)),
    ]  # fmt: skip
