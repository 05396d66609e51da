"""One page for one instruction: where a hand would touch, which motion is carried over there, and why."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from arvrm.episodes import EpisodeHeader, EpisodeStore
from arvrm.files import HTML, claimed, replacing
from arvrm.films import draw_over
from arvrm.interface import KEYPOINTS, Stroke, UserError
from arvrm.model.checkpoint import read_described
from arvrm.model.metadata import CheckpointMetadata, metadata_from
from arvrm.model.places import PIXELS, PredictedHands, predict_hands
from arvrm.model.words import sentence_words
from arvrm.moments import episode_moments
from arvrm.motions import Motion, bend
from arvrm.motions.retrieve import acting_points
from arvrm.policy.drawing import drawing_of, skeleton
from arvrm.policy.places import PlaceSeer
from arvrm.show.figures import map_figure, page_template, safe

if TYPE_CHECKING:
    from arvrm.policy.analogy import AnalogyPolicy

SIDE = 480
"""Pixels of the page's pictures."""
OPEN_M = 0.08
"""Width of an open gripper."""
_LISTED, _COMPARED = 8, 16
"""Motions that are listed; clips that are compared by place."""
_HOT = np.array([229, 72, 77])


@dataclass(frozen=True)
class Picture:
    """What is looked at.

    Attributes:
        image: (S, S, 3) uint8.
        robot: (7,) the TCP's pose (m, rad) and the gripper's width (m); None: no robot is known in it.
        origin: a line about it.
    """

    image: np.ndarray
    robot: np.ndarray | None
    origin: str


@dataclass(frozen=True)
class Explained:
    """What the page says.

    Attributes:
        sentence, origin: what was asked, and of which picture.
        image: (H, W, 3) uint8.
        strokes: over it.
        heat: (h, w) of the touch.
        places: (n, 2) hypotheses, in shares of the image, in order.
        confidence: of touch and end.
        notes: what is to be said aloud.
        choice: a line about the motion; "": there is none.
        source: titles and pictures (H, W, 3) of the episode that the motion came from.
        missing: why there are none.
        terms: names of the similarities; alternatives: (id, sentence, place, values) of each motion, best first.
        rows: names and shares (21,) of the map; tips: what thumb and index tips hold of the position.
    """

    sentence: str
    origin: str
    image: np.ndarray
    strokes: Sequence[Stroke]
    heat: np.ndarray
    places: np.ndarray
    confidence: tuple[float, float]
    notes: Sequence[str]
    choice: str
    source: Sequence[tuple[str, np.ndarray]]
    missing: str
    terms: Sequence[str]
    alternatives: Sequence[tuple[str, str, int, Sequence[float]]]
    rows: Sequence[tuple[str, np.ndarray]]
    tips: float


def explanation(policy: AnalogyPolicy, checkpoint: str | Path, picture: Picture, sentence: str) -> Explained:
    """Look at a picture with a policy's eyes.

    Args:
        checkpoint: the policy's, which says where its demonstrations and clips came from.
    """
    seer = policy.seer
    assert isinstance(seer, PlaceSeer)
    # Without a robot in the picture the way begins where motions do.
    assert seer.lookout is not None
    robot = np.append(seer.lookout, OPEN_M) if picture.robot is None else picture.robot
    sight = seer.sight(picture.image, sentence, robot)
    choice = sight.choices[0] if sight.choices else None
    poses = None if choice is None else bend(choice.motion.path, robot[:6], choice.goal).poses
    hands, m = sight.hands, seer.map
    assert hands is not None
    hypotheses = np.concatenate([hands.keypoints[0, :1], hands.others[0, 0]])
    metadata = metadata_from(read_described(checkpoint).metadata, str(checkpoint))
    source: list[tuple[str, np.ndarray]] = []
    missing: list[str] = []
    if choice is not None:
        for found, lacking in (_demonstration(metadata, choice.motion), _clip(metadata, seer, hands, sentence)):
            source += found
            missing += [lacking] if lacking else []
    return Explained(
        sentence=sentence,
        origin=picture.origin,
        image=picture.image,
        strokes=drawing_of(sight, choice, poses, seer).strokes,
        heat=hands.heat[0, 0],
        places=acting_points(hypotheses) / PIXELS,
        confidence=(float(hands.confidence[0, 0]), float(hands.confidence[0, 1])),
        notes=sight.notes,
        choice="" if choice is None else _said(choice.motion),
        source=source,
        missing=" ".join(missing),
        terms=() if choice is None else tuple(choice.terms),
        alternatives=[
            (one.motion.id, one.motion.sentence, one.hypothesis, list(one.terms.values()))
            for one in sight.choices[:_LISTED]
        ],
        rows=list(zip("xyz", m.position, strict=True)),
        tips=float(m.tips_mass),
    )


def _said(motion: Motion) -> str:
    """A line about a motion."""
    way = ", the hand's own way" if motion.embodiment == "human" else ""
    way = f", in the way of {motion.by}" if motion.by else way
    return f"{motion.id} ({motion.embodiment}{way}): “{motion.sentence}”"


def _demonstration(metadata: CheckpointMetadata, motion: Motion) -> tuple[list[tuple[str, np.ndarray]], str]:
    """Pictures of the episode that a motion came from, with its own hand, and at its touch; or why there are none."""
    for store in _stores(metadata):
        if motion.id not in store:
            continue
        header = store.header(motion.id)
        rows = [0, header.frame_at(_touched(store, header, [motion]))]
        first, acting = store.frames(motion.id, next(iter(header.cameras)), rows)
        own = draw_over(first, skeleton(motion.hand[0]))
        return [("its first image, with the hand that is predicted there", own), ("at its touch", acting)], ""
    return [], f"The store that {motion.id} came from is not here any more."


def _touched(store: EpisodeStore, header: EpisodeHeader, motions: Sequence[Motion]) -> int:
    """The step of an episode's touch, as a library knows it if it does."""
    for motion in motions:
        if motion.id == header.id and motion.embodiment == header.embodiment:
            if motion.touched is not None:
                return motion.touched
            if motion.embodiment == "robot":  # a path of a hand has steps of its own
                return motion.path.touch
    return episode_moments(store, header.id).touch


def _clip(
    metadata: CheckpointMetadata, seer: PlaceSeer, hands: PredictedHands, sentence: str
) -> tuple[list[tuple[str, np.ndarray]], str]:
    """A clip that stage 1 learnt from, the nearest by words and then by place, at its touch; or why there is none."""
    gone = "The clips that stage 1 learnt from are not here any more."
    if metadata.pretrained is None:
        return [], gone
    try:
        before = metadata_from(read_described(metadata.pretrained).metadata, metadata.pretrained)
    except UserError:
        return [], gone
    said = sentence_words(seer.net.vlm, seer.text, [sentence])[0]
    for store in _stores(before):
        headers = [header for header in store.headers() if header.embodiment == "human" and header.instruction]
        sentences = sorted({header.instruction for header in headers})
        if not headers:
            continue
        like = dict(zip(sentences, sentence_words(seer.net.vlm, seer.text, sentences) @ said, strict=True))
        best = sorted(headers, key=lambda header: (-float(like[header.instruction]), header.id))[:_COMPARED]
        firsts = np.stack([store.frames(header.id, next(iter(header.cameras)), [0])[0] for header in best])
        own = predict_hands(seer.net.vlm, seer.text, firsts, [header.instruction for header in best])
        apart = np.linalg.norm(own.acting[:, 0] - hands.acting[0, 0], axis=1)
        header = best[int(apart.argmin())]
        row = header.frame_at(_touched(store, header, seer.motions))
        frame = store.frames(header.id, next(iter(header.cameras)), [row])[0]
        return [(f"a clip of a hand that learning began with, at its touch: “{header.instruction}”", frame)], ""
    return [], gone


def _stores(metadata: CheckpointMetadata) -> Iterator[EpisodeStore]:
    """Yield the stores of a checkpoint that are still where they were."""
    for known in metadata.stores:
        with contextlib.suppress(UserError):
            yield EpisodeStore(known.path)


def entry_of(found: Explained) -> dict[str, Any]:
    """Return what a page's template takes in: texts, figures, and pictures as data URIs."""
    return {
        "sentence": found.sentence,
        "origin": found.origin,
        "notes": found.notes,
        "scene": _picture(draw_over(_large(found.image), found.strokes)),
        "heat": _picture(heated(_large(found.image), found.heat, found.places)),
        "confidence": found.confidence,
        "choice": found.choice,
        "source": [{"title": title, "image": _picture(_large(image))} for title, image in found.source],
        "missing": found.missing,
        "terms": found.terms,
        "alternatives": [
            {"id": id, "sentence": said, "place": place, "numbers": [f"{value:.2f}" for value in values]}
            for id, said, place, values in found.alternatives
        ],
        "map": [safe(map_figure(name, list(row), KEYPOINTS)) for name, row in found.rows],
        "tips": found.tips,
    }


def write_explanation(found: Explained, output: str | Path, overwrite: bool = False) -> Path:
    """Write the page; raises UserError where it exists (without `overwrite`) or cannot be written."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(page_template("explain")).render(entry_of(found))
    with claimed(output, overwrite, HTML), replacing(output) as partial:
        partial.write_text(page, encoding="utf-8")
    return Path(output)


def heated(image: np.ndarray, heat: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return an image (H, W, 3) with a heatmap (h, w) laid over it, and numbers at `places` (n, 2; shares)."""
    from PIL import ImageDraw, ImageFont

    height, width = image.shape[:2]
    share = np.sqrt(heat / max(float(heat.max()), 1e-12)).astype(np.float32)
    wide = np.asarray(Image.fromarray(share).resize((width, height), Image.Resampling.BILINEAR))[..., None]
    mixed = image * (1 - 0.75 * wide) + _HOT * (0.75 * wide)
    picture = Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(20)
    for number, (u, v) in enumerate(places, 1):
        at = (float(u) * width, float(v) * height)
        draw.text(at, str(number), fill="#ffffff", font=font, anchor="mm", stroke_width=2, stroke_fill="#16181d")
    return np.asarray(picture)


def _large(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _picture(image: np.ndarray) -> Any:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
