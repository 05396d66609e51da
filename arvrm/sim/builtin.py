"""The built-in scenes A, B, C and D: the play table and a Panda from our own primitives, with random variations.

Positions, sizes, travels, joint and link names follow CALVIN's four tables (calvin_env's URDF files, scaled by 0.8;
here everything is already in world metres), so that its chain starts, tasks and predicates apply unchanged. Shapes,
meshes and textures are ours and made on the fly into a folder of this process, which goes when the process ends.
"""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np

from arvrm.files import process_folder
from arvrm.interface import SCENES, UserError
from arvrm.sim.builtin_layout import (
    LAYOUTS,
    STYLES,
    SURFACES,
    place_surfaces,
    vary_layout,
    vary_lighting,
    vary_style,
)
from arvrm.sim.builtin_robot import write_robot
from arvrm.sim.builtin_table import fixtures_of, write_block, write_floor, write_table
from arvrm.sim.scene import Block, Camera, Light, Lighting, SceneDescription

_BLOCK_LENGTHS = {  # m along x, in the order of scene_obs; the other two sides are 4 cm
    "A": {"pink": 0.04, "blue": 0.08, "red": 0.056},
    "B": {"red": 0.04, "blue": 0.08, "pink": 0.056},
    "C": {"blue": 0.04, "red": 0.08, "pink": 0.056},
    "D": {"red": 0.056, "blue": 0.04, "pink": 0.08},
}
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
        # Its files may be gone: the process's folder was given up, or something tidied the temporary files.
        if key not in _CACHE or not Path(_CACHE[key].robot_urdf).exists():
            _CACHE.pop(key, None)
            if len(_CACHE) >= _CACHE_SIZE:  # there may be one variation an episode: do not fill the disk
                _forget(next(iter(_CACHE)))
            _CACHE[key] = _make(name, variation)
        return _CACHE[key]


_CACHE: dict[tuple, SceneDescription] = {}
_CACHE_SIZE = 128
_LOCK = threading.Lock()


def _forget(key: tuple) -> None:
    scene = _CACHE.pop(key)
    if key[0] == os.getpid():
        shutil.rmtree(Path(scene.table_urdf).parent, ignore_errors=True)


def _make(name: str, variation: int | None) -> SceneDescription:
    layout, style, lighting = LAYOUTS[name], STYLES[name], Lighting()
    surfaces = SURFACES[name]
    if variation is not None:
        rng = np.random.default_rng([SCENES.index(name), variation])
        layout = vary_layout(name, rng)
        style = vary_style(style, rng)
        lighting = vary_lighting(rng)
        surfaces = place_surfaces(layout)
    folder = process_folder() / f"{name}-{'canonical' if variation is None else variation}"
    folder.mkdir(exist_ok=True)
    fixtures = fixtures_of(layout, surfaces)
    blocks = tuple(
        Block(block, str(write_block(folder, block, length)), (length, 0.04, 0.04))
        for block, length in _BLOCK_LENGTHS[name].items()
    )
    return SceneDescription(
        name=name,
        assets="builtin",
        robot_urdf=str(write_robot(folder, style)),
        table_urdf=str(write_table(folder, layout, style)),
        plane_urdf=str(write_floor(folder, style)),
        blocks=blocks,
        surfaces=surfaces,
        fixtures=fixtures,
        static_camera=_STATIC,
        gripper_camera=_GRIPPER,
        bulb=Light("light_link", (1.0, 1.0, 0.0, 1.0)),
        led=Light("led_link", (0.0, 1.0, 0.0, 1.0)),
        global_scaling=1.0,
        pedestal=None,  # part of the robot's mesh, with fewer triangles
        lighting=lighting,
    )
