"""What a real clip or demonstration has, read from a store, and ways to cut and vary it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from arvrm.episodes import EpisodeHeader, EpisodeStore
from arvrm.interface import Robot
from arvrm.moments.body import body_colours
from arvrm.moments.signals import Signals, hand_signals, robot_signals, small


@dataclass(frozen=True)
class Raw:
    """An episode as its signals are made of it.

    Attributes:
        instruction: its sentence.
        robot: its robot; None for a hand.
        arrays: (N, ...) each: a hand's keypoints and visible; what a robot observes, and "actions".
        size: (height, width) of the first camera's images.
        fps: steps a second.
        cameras: for each camera (F, H, W, 3) uint8.
        image_steps: (F,) the rows that the images show.
        offset: the row of the stored episode that is its first.
        colours: the robot's own (`body.body_colours`).
    """

    instruction: str
    robot: Robot | None
    arrays: dict[str, np.ndarray]
    size: tuple[int, int]
    fps: float
    cameras: list[np.ndarray]
    image_steps: np.ndarray
    offset: int = 0
    colours: np.ndarray | None = None

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def taken(self, rows: np.ndarray) -> Raw:
        """Only these rows, in this order; an image stands where its row does."""
        places = {int(step): f for f, step in enumerate(self.image_steps)}
        at = [(k, places[int(row)]) for k, row in enumerate(rows) if int(row) in places]
        steps, images = np.array([k for k, _ in at], int), [f for _, f in at]
        return replace(
            self,
            arrays={name: value[rows] for name, value in self.arrays.items()},
            cameras=[camera[images] for camera in self.cameras],
            image_steps=steps,
            offset=self.offset + int(rows[0]),
        )

    def varied(self, rng: np.random.Generator) -> Raw:
        """Cut half of the time, mirrored (a hand), faster or slower, with noise (a hand)."""
        count = len(self)
        first, end = 0, count
        if rng.random() < 0.6 and count > 12:
            first = int(rng.integers(0, max(1, int(0.4 * count))))
            end = int(rng.integers(min(first + 8, count), count + 1))
        found = self.taken(np.arange(first, end))
        found = replace(found, fps=self.fps * float(np.exp(rng.uniform(-0.4, 0.4))))
        return found if self.robot else found._mirrored_and_noisy(rng)

    def _mirrored_and_noisy(self, rng: np.random.Generator) -> Raw:
        points = self.arrays["keypoints"].astype(np.float64)
        cameras = self.cameras
        if rng.random() < 0.5:
            points[..., 0] = self.size[1] - points[..., 0]
            cameras = [camera[:, :, ::-1] for camera in cameras]
        noise = rng.uniform(0, 0.4) * self.size[0] / 96
        points[..., :2] += rng.normal(0, noise, points[..., :2].shape)
        points[..., :2] += rng.normal(0, noise, (1, *points.shape[1:-1], 2))
        return replace(self, arrays=self.arrays | {"keypoints": points}, cameras=cameras)

    def there_and_back(self, last: int) -> Raw:
        """Up to a row and back again: whoever does that before the touch has touched nothing."""
        rows = np.arange(last + 1)
        return self.taken(np.concatenate([rows, rows[-2::-1]]))


def raw_episode(store: EpisodeStore, header: EpisodeHeader, colours: np.ndarray | None = None) -> Raw:
    """Read an episode. Nothing is read but what a real one has.

    Raises:
        UserError: the store's robot is not known, or a record is damaged.
    """
    cameras, robot = list(header.cameras), None
    names: list[str] = ["keypoints", "visible"]
    if header.embodiment != "human":
        robot = store.robot
        assert robot is not None
        names = [name for name in (*robot.observed, "actions") if name in header.arrays]
    images = [store.frames(header.id, camera, range(header.frames)) for camera in cameras[: 2 if robot else 1]]
    return Raw(
        header.instruction, robot, store.arrays(header.id, names), header.cameras[cameras[0]], header.fps, images,
        np.asarray(header.image_steps), 0, colours if robot else None,
    )  # fmt: skip


def colours_of(store: EpisodeStore, most: int = 100) -> np.ndarray:
    """The colours of a store's robot, from some of its episodes."""
    headers = [header for header in store.headers() if header.frames > 1]
    picked = headers[:: max(1, len(headers) // most)]
    films = (store.frames(h.id, next(iter(h.cameras)), range(h.frames)) for h in picked)
    return body_colours(small(film).transpose(0, 3, 1, 2) for film in films)


def signals_of(raw: Raw) -> Signals:
    """Make the signals; their rows are those of the stored episode."""
    steps = raw.image_steps
    if raw.robot is None:
        points, visible = raw.arrays["keypoints"], raw.arrays["visible"]
        images = raw.cameras[0] if len(steps) else None
        found = hand_signals(points, visible, raw.size, raw.fps, images, steps, raw.instruction)
    else:
        found = robot_signals(raw.robot, raw.arrays, raw.fps, raw.cameras if len(steps) else None, steps,
                              raw.instruction, raw.colours)  # fmt: skip
    return replace(found, rows=found.rows + raw.offset)
