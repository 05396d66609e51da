"""Geometry, textures and URDF text of the built-in scenes, made from primitives at run time.

Everything here is ours: boxes, prisms, cylinders, spheres and noise. The software renderer pays for every triangle and
for every pixel of a triangle's bounding box, so visual meshes leave out faces that no camera can see, and collision
shapes are boxes, spheres and small convex hulls, apart from the visuals.

Lengths are metres, angles radians; a mesh's frame is its link's frame.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

Vector = Sequence[float]

_BOX_FACES = {
    # Corner order: bit 0 is x, bit 1 is y, bit 2 is z. Counter-clockwise seen from outside.
    "-x": (0, 4, 6, 2),
    "+x": (1, 3, 7, 5),
    "-y": (0, 1, 5, 4),
    "+y": (2, 6, 7, 3),
    "-z": (0, 2, 3, 1),
    "+z": (4, 5, 7, 6),
}


class Mesh:
    """A triangle soup with flat normals and planar texture coordinates."""

    def __init__(self) -> None:
        self.triangles: list[np.ndarray] = []
        self.normals: list[np.ndarray | None] = []

    def polygon(self, corners: Sequence[Vector], normals: Sequence[Vector] | None = None) -> Mesh:
        """Add a convex polygon, counter-clockwise seen from outside; `normals` per corner shade it smoothly."""
        points = np.asarray(corners, float)
        for k in range(1, len(points) - 1):
            self.triangles.append(points[[0, k, k + 1]])
            self.normals.append(None if normals is None else np.asarray(normals, float)[[0, k, k + 1]])
        return self

    def box(self, low: Vector, high: Vector, faces: str = "-x +x -y +y -z +z") -> Mesh:
        """Add the named faces of an axis-aligned box."""
        low, high = np.asarray(low, float), np.asarray(high, float)
        corners = [np.where([k & 1, k & 2, k & 4], high, low) for k in range(8)]
        for name in faces.split():
            self.polygon([corners[k] for k in _BOX_FACES[name]])
        return self

    def prism_x(self, profile: Sequence[Vector], low: float, high: float, sides: Sequence[int] | None = None,
                ends: str = "-+") -> Mesh:
        """Extrude a convex (y, z) profile, counter-clockwise seen from +x, from x = low to high.

        Args:
            profile: (n, 2) corners.
            sides: which edges k -> k + 1 become faces; all where None.
            ends: which end caps to add.
        """
        count = len(profile)
        for k in range(count) if sides is None else sides:
            (y0, z0), (y1, z1) = profile[k], profile[(k + 1) % count]
            self.polygon([(low, y0, z0), (high, y0, z0), (high, y1, z1), (low, y1, z1)][::-1])
        if "+" in ends:
            self.polygon([(high, y, z) for y, z in profile])
        if "-" in ends:
            self.polygon([(low, y, z) for y, z in reversed(profile)])
        return self

    def cylinder(self, start: Vector, end: Vector, radius: float, end_radius: float | None = None, sides: int = 8,
                 caps: str = "-+", turn: float = 0.0) -> Mesh:
        """Add a cylinder or a cone, shaded smoothly around its axis."""
        start, end = np.asarray(start, float), np.asarray(end, float)
        end_radius = radius if end_radius is None else end_radius
        first, second, axis = _frame(end - start)
        angles = turn + 2 * np.pi * np.arange(sides) / sides
        rim = np.cos(angles)[:, None] * first + np.sin(angles)[:, None] * second
        low, high = start + radius * rim, end + end_radius * rim
        for k in range(sides):
            n = (k + 1) % sides
            self.polygon([low[k], low[n], high[n], high[k]], [rim[k], rim[n], rim[n], rim[k]])
        if "+" in caps:
            self.polygon(high)
        if "-" in caps:
            self.polygon(low[::-1])
        return self

    def sphere(self, centre: Vector, radius: float, sides: int = 8, rings: int = 5, axis: Vector = (0, 0, 1),
               low: float = -np.pi / 2, high: float = np.pi / 2) -> Mesh:
        """Add a sphere, or the zone of it between the latitudes `low` and `high`, shaded smoothly."""
        first, second, pole = _frame(np.asarray(axis, float))
        latitudes = np.linspace(low, high, rings + 1)
        angles = 2 * np.pi * np.arange(sides) / sides

        def normal(latitude: float, angle: float) -> np.ndarray:
            flat = np.cos(angle) * first + np.sin(angle) * second
            return np.cos(latitude) * flat + np.sin(latitude) * pole

        centre = np.asarray(centre, float)
        for bottom, top in zip(latitudes[:-1], latitudes[1:], strict=True):
            for k in range(sides):
                a, b = angles[k], angles[(k + 1) % sides]
                normals = [normal(bottom, a), normal(bottom, b), normal(top, b), normal(top, a)]
                self.polygon([centre + radius * n for n in normals], normals)
        return self

    def transformed(self, rotation: np.ndarray, translation: Vector = (0, 0, 0)) -> Mesh:
        """Return a copy, rotated by a (3, 3) matrix, then moved."""
        copy = Mesh()
        copy.triangles = [t @ np.asarray(rotation).T + np.asarray(translation, float) for t in self.triangles]
        copy.normals = [None if n is None else n @ np.asarray(rotation).T for n in self.normals]
        return copy

    def __len__(self) -> int:
        return len(self.triangles)

    def save(self, path: Path, texture: str | None = None, repeat: float = 0.4) -> None:
        """Write a Wavefront OBJ; with `texture` (a file name beside it) also its material, tiled every `repeat` m."""
        lines = []
        if texture:
            path.with_suffix(".mtl").write_text(f"newmtl skin\nKd 1 1 1\nmap_Kd {texture}\n")
            lines += [f"mtllib {path.with_suffix('.mtl').name}", "usemtl skin"]
        corners = np.stack(self.triangles)
        flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        double_area = np.linalg.norm(flat, axis=1, keepdims=True)
        flat /= np.maximum(double_area, 1e-12)
        normals = np.stack([np.tile(flat[k], (3, 1)) if n is None else n for k, n in enumerate(self.normals)])
        solid = double_area[:, 0] > 1e-12  # a sphere's poles collapse some triangles
        corners, flat, normals = corners[solid], flat[solid], normals[solid]
        # The texture's grain (u) runs along x on every face but those that look along x. The renderer takes fractional
        # parts, which turn negative below zero: shift into the positive.
        axes = np.array([(1, 2), (0, 2), (0, 1)])[np.argmax(np.abs(flat), axis=1)]
        textures = np.take_along_axis(corners, np.repeat(axes[:, None], 3, axis=1), axis=2) / repeat + 10.0
        table = np.concatenate([corners, textures, normals], axis=2).reshape(-1, 8).tolist()
        vertex = "v {:.6f} {:.6f} {:.6f}\nvt {:.5f} {:.5f}\nvn {:.4f} {:.4f} {:.4f}"
        lines += [vertex.format(*row) for row in table]
        lines += [f"f {i}/{i}/{i} {i + 1}/{i + 1}/{i + 1} {i + 2}/{i + 2}/{i + 2}" for i in range(1, len(table), 3)]
        _write(path, "\n".join(lines).encode() + b"\n")


def _frame(axis: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    axis = axis / np.linalg.norm(axis)
    helper = np.eye(3)[int(np.argmin(np.abs(axis)))]
    first = np.cross(axis, helper)
    first /= np.linalg.norm(first)
    return first, np.cross(axis, first), axis


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    temporary.replace(path)


def save_png(path: Path, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 image as PNG with nothing but the standard library."""
    height, width, _ = image.shape
    rows = b"".join(b"\0" + image[y].tobytes() for y in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    _write(path, b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 6))
           + chunk(b"IEND", b""))


def wood(colour: Vector, rng: np.random.Generator, size: int = 128, contrast: float = 0.18, rings: float = 6.0,
         planks: int = 0) -> np.ndarray:
    """Return a tileable (size, size, 3) uint8 wood texture, its grain along u.

    Args:
        colour: mean RGB in 0..1.
        contrast: relative brightness of the grain.
        rings: growth lines per tile.
        planks: boards per tile, 0 for one solid piece.
    """
    v, u = np.meshgrid(np.arange(size) / size, np.arange(size) / size, indexing="ij")
    bend = np.zeros_like(u)
    for _ in range(4):
        waves = rng.integers(1, 4)
        bend += rng.normal(0, 0.25) * np.sin(2 * np.pi * (waves * u + rng.integers(0, 3) * v + rng.random()))
    grain = np.sin(2 * np.pi * (int(rings) * v + bend)) * 0.5
    # Fine fibres: noise smoothed along the grain only.
    noise = rng.normal(size=(size, size))
    spectrum = np.fft.fft(noise, axis=1) * np.exp(-((np.fft.fftfreq(size) * size / 5.0) ** 2))
    fibres = np.fft.ifft(spectrum, axis=1).real
    value = grain + 0.5 * fibres / (fibres.std() + 1e-9)
    shade = 1 + contrast * value
    if planks:
        board = np.minimum((v * planks).astype(int), planks - 1)
        shade *= (1 + 0.12 * rng.normal(size=planks))[board]
        shade *= np.where(np.abs(v * planks - np.round(v * planks)) < 0.03, 0.7, 1.0)
    image = np.asarray(colour)[None, None] * shade[..., None]
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------ URDF


def numbers(values: Vector) -> str:
    return " ".join(f"{float(v):.9g}" for v in values)


def origin(xyz: Vector = (0, 0, 0), rpy: Vector = (0, 0, 0)) -> str:
    return f'<origin xyz="{numbers(xyz)}" rpy="{numbers(rpy)}"/>'


def box_shape(low: Vector, high: Vector) -> str:
    """A URDF collision element: the box between two corners."""
    low, high = np.asarray(low, float), np.asarray(high, float)
    return (f"<collision>{origin((low + high) / 2)}<geometry><box size=\"{numbers(high - low)}\"/></geometry>"
            "</collision>")


def mesh_shape(file: str) -> str:
    """A URDF collision element: the convex hull of a mesh file."""
    return f'<collision>{origin()}<geometry><mesh filename="{file}"/></geometry></collision>'


def cylinder_shape(centre: Vector, radius: float, length: float, rpy: Vector = (0, 0, 0)) -> str:
    return (f'<collision>{origin(centre, rpy)}<geometry><cylinder radius="{radius:.9g}" length="{length:.9g}"/>'
            "</geometry></collision>")


def sphere_shape(centre: Vector, radius: float) -> str:
    return f'<collision>{origin(centre)}<geometry><sphere radius="{radius:.9g}"/></geometry></collision>'


def visual(file: str, rgb: Vector) -> str:
    """A URDF visual element: a mesh file in one colour (multiplied with its texture, where it has one)."""
    name = "c" + "_".join(f"{int(round(255 * c))}" for c in rgb)
    return (f'<visual>{origin()}<geometry><mesh filename="{file}"/></geometry><material name="{name}">'
            f'<color rgba="{numbers(rgb)} 1"/></material></visual>')


def link(name: str, parts: Sequence[str] = (), mass: float = 0.0, centre: Vector = (0, 0, 0), contact: str = "") -> str:
    """A URDF link. The engine computes inertia from the collision shape; the diagonal serves links without one."""
    inertia = max(mass, 1e-6) * 1e-2
    return (f'<link name="{name}">{contact}<inertial>{origin(centre)}<mass value="{mass:.9g}"/><inertia '
            f'ixx="{inertia:.9g}" ixy="0" ixz="0" iyy="{inertia:.9g}" iyz="0" izz="{inertia:.9g}"/></inertial>'
            + "".join(parts) + "</link>")


def joint(name: str, kind: str, parent: str, child: str, xyz: Vector, rpy: Vector = (0, 0, 0),
          axis: Vector | None = None, limits: tuple[float, float] | None = None, effort: float = 0.0,
          velocity: float = 0.0) -> str:
    text = f'<joint name="{name}" type="{kind}">{origin(xyz, rpy)}<parent link="{parent}"/><child link="{child}"/>'
    if axis is not None:
        text += f'<axis xyz="{numbers(axis)}"/>'
    if limits is not None:
        text += (f'<limit lower="{limits[0]:.9g}" upper="{limits[1]:.9g}" effort="{effort:.9g}" '
                 f'velocity="{velocity:.9g}"/>')
    return text + "</joint>"


def robot(name: str, elements: Sequence[str]) -> str:
    return f'<?xml version="1.0"?>\n<robot name="{name}">\n' + "\n".join(elements) + "\n</robot>\n"
