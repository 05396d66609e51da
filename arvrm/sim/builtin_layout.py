"""Where the fixtures of the built-in scenes sit, how they are coloured and lit, and how a seed varies that.

Positions and travels follow CALVIN's four tables, scaled to world metres. A variation is a seeded change of *one* named
scene: fixtures move by centimetres, may swap sides, and colours and light change; the cameras are the robot's own and
stay. A layout that resembles another named scene is drawn again, so training on varied A, B and C never shows D's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from arvrm.sim.scene import Box, Lighting

Colour = tuple[float, float, float]

CABINET_HALF = 0.26  # half the cabinet's width
DOOR = 0.28  # width of the sliding door


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


LAYOUTS = {
    "A": Layout((-0.28, -0.12), (0.30, 0.0), -0.10, -0.10, 0.28, 0.10),
    "B": Layout((0.28, -0.12), (-0.32, 0.0), 0.08, 0.088, 0.304, 0.18),
    "C": Layout((-0.12, -0.12), (-0.32, 0.0), 0.08, 0.06, 0.24, 0.10),
    "D": Layout((-0.12, -0.12), (0.30, 0.0), -0.10, -0.10, 0.28, 0.18),
}

STYLES = {
    "A": Style((0.47, 0.22, 0.15), (0.38, 0.16, 0.11), (0.42, 0.19, 0.13), seed=1),
    "B": Style((0.93, 0.76, 0.53), (0.86, 0.67, 0.44), (0.88, 0.70, 0.48), contrast=0.08, seed=2),
    "C": Style((0.62, 0.40, 0.20), (0.36, 0.15, 0.10), (0.36, 0.15, 0.10), planks=6, seed=3),
    "D": Style((0.58, 0.47, 0.32), (0.50, 0.39, 0.25), (0.54, 0.43, 0.29), contrast=0.12, rings=4, seed=4),
}

Z = 0.46  # height of a block's centre on the table
SURFACES: dict[str, dict[str, Box]] = {
    "A": {
        "table": ((-0.2, -0.15, Z), (0.35, -0.03, Z)),
        "slider_left": ((-0.32, 0.05, Z), (-0.16, 0.12, Z)),
        "slider_right": ((-0.05, 0.05, Z), (0.13, 0.12, Z)),
    },
    "B": {
        "table": ((-0.35, -0.15, Z), (0.15, -0.03, Z)),
        "slider_left": ((-0.12, 0.05, Z), (0.06, 0.12, Z)),
        "slider_right": ((0.15, 0.05, Z), (0.33, 0.12, Z)),
    },
    "C": {
        "table": ((0.0, -0.15, Z), (0.35, -0.03, Z)),
        "slider_left": ((-0.12, 0.05, Z), (0.06, 0.12, Z)),
        "slider_right": ((0.15, 0.05, Z), (0.3, 0.12, Z)),
    },
    "D": {
        "table": ((0.0, -0.15, Z), (0.35, -0.03, Z)),
        "slider_left": ((-0.32, 0.05, Z), (-0.16, 0.12, Z)),
        "slider_right": ((-0.05, 0.05, Z), (0.13, 0.12, Z)),
    },
}


def vary_layout(name: str, rng: np.random.Generator) -> Layout:
    """Draw a layout around the named scene's own: centimetres, at times the other side; never another named one's."""
    own = LAYOUTS[name]
    others = [layout for key, layout in LAYOUTS.items() if key != name]
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
    door = np.clip(cabinet + own.door - own.cabinet + rng.uniform(-0.02, 0.02), door_range - 0.43, 0.43 - DOOR)
    if side > 0:
        switch = rng.uniform(max(door + DOOR, cabinet + CABINET_HALF) + 0.075, 0.365)
    else:
        switch = rng.uniform(-0.365, min(door - door_range, cabinet - CABINET_HALF) - 0.075)
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


def place_surfaces(layout: Layout) -> dict[str, Box]:
    """Place block starts as CALVIN does: beside the button, and in both halves of the cabinet."""
    if layout.button[0] < 0:
        table = (layout.button[0] + 0.1, 0.35)
    else:
        table = (-0.35, layout.button[0] - 0.12)
    shift = layout.door
    low, high = layout.cabinet - CABINET_HALF, layout.cabinet + CABINET_HALF
    left = (max(low + 0.04, shift - 0.22), shift - 0.06)
    right = (shift + 0.05, min(high - 0.03, shift + 0.23))
    return {
        "table": ((table[0], -0.15, Z), (table[1], -0.03, Z)),
        "slider_left": ((left[0], 0.05, Z), (left[1], 0.12, Z)),
        "slider_right": ((right[0], 0.05, Z), (right[1], 0.12, Z)),
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
