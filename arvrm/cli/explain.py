"""The verb that shows what a policy by analogy has in mind for one picture and one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from arvrm.config import bounded, check_bounds
from arvrm.interface import LONGEST_SENTENCE, SCENES, UserError

if TYPE_CHECKING:
    from arvrm.motions import Motion
    from arvrm.policy.analogy import AnalogyPolicy

_LISTED = 8


@dataclass(frozen=True)
class ExplainConfig:
    """Which policy, which picture and which words.

    Attributes:
        checkpoint: folder of a policy that `finetune motion=analogy` made.
        text: the instruction.
        output: the page.
        image: a picture of any size, such as a photo of one's own table; its middle square is looked at.
        store, episode, step: or a frame of an episode of a store: the latest one at or before this step.
        scene: or the play table of scene A, B, C or D, as the official chain of this number begins.
        assets, calvin_root, layout: which table: see `arvrm evaluate`; a number of a varied layout of a built-in scene.
        chain: that number.
        overwrite: replace an existing page.
    """

    checkpoint: str
    text: str
    output: str = "explain.html"
    image: str | None = None
    store: str | None = None
    episode: str | None = None
    step: int = bounded(0, least=0, most=10**9)
    scene: str | None = None
    assets: Literal["builtin", "calvin"] = "builtin"
    calvin_root: str | None = None
    layout: int | None = bounded(None, least=0, most=2**31)
    chain: int = bounded(0, least=0, most=999)
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.scene is not None and self.scene not in SCENES:
            raise ValueError(f"scene {self.scene!r} is none of {', '.join(SCENES)}")


@dataclass(frozen=True)
class _Picture:
    """What is looked at.

    Attributes:
        image: (S, S, 3) uint8.
        robot: (7,) the TCP's pose and the gripper's width; None: the picture shows no robot.
        origin: a line about it.
    """

    image: np.ndarray
    robot: np.ndarray | None
    origin: str


def explain(config: ExplainConfig) -> Path:
    """Write the page.

    Raises:
        UserError: the checkpoint is none of a policy by analogy, or the picture cannot be read.
    """
    from arvrm.model.checkpoint import read_described
    from arvrm.motions import bend
    from arvrm.motions.retrieve import acting_points
    from arvrm.policy.analogy import load_analogy
    from arvrm.policy.drawing import drawing_of
    from arvrm.show.explain import Explained, write_explanation

    if not config.text.strip() or len(config.text) > LONGEST_SENTENCE:
        raise UserError(f"explain: text: give an instruction of 1 to {LONGEST_SENTENCE} letters")
    if sum(given is not None for given in (config.image, config.store, config.scene)) != 1:
        raise UserError("explain: give one picture: image, store with episode, or scene")
    if (config.store is None) != (config.episode is None):
        raise UserError("explain: store and episode go together; give both or neither")
    kind = read_described(config.checkpoint).kind
    if kind != "analogy":
        raise UserError(f"{config.checkpoint}: is of kind {kind}; explain shows motion=analogy (else: `arvrm exhibit`)")
    policy = load_analogy(config.checkpoint)
    picture = _picture_of(config, policy)
    # Without a robot in the picture the way begins where motions do.
    robot = np.append(policy.seer.lookout, 0.08) if picture.robot is None else picture.robot
    sight = policy.seer.sight(picture.image, config.text, robot)
    choice = sight.choices[0] if sight.choices else None
    poses = None if choice is None else bend(choice.motion.path, robot[:6], choice.goal).poses
    drawing = drawing_of(sight, choice, poses, policy.seer)
    hands, m = sight.hands, policy.seer.map
    assert hands is not None
    hypotheses = np.concatenate([hands.keypoints[0, :1], hands.others[0, 0]])
    source, missing = ((), "") if choice is None else _source(config, choice.motion)
    found = Explained(
        sentence=config.text,
        origin=picture.origin,
        image=picture.image,
        strokes=drawing.strokes,
        heat=hands.heat[0, 0],
        places=acting_points(hypotheses) / 96,
        confidence=(float(hands.confidence[0, 0]), float(hands.confidence[0, 1])),
        notes=sight.notes,
        choice="" if choice is None else f"{choice.motion.id} ({choice.motion.embodiment}): “{choice.motion.sentence}”",
        source=source,
        missing=missing,
        terms=() if choice is None else tuple(choice.terms),
        alternatives=[
            (one.motion.id, one.motion.sentence, one.hypothesis, list(one.terms.values()))
            for one in sight.choices[:_LISTED]
        ],
        rows=[*zip("xyz", m.position, strict=True), ("finger 1", m.across[0]), ("finger 2", m.across[1])],
        tips=float(m.tips_mass),
    )
    return write_explanation(found, config.output, config.overwrite)


def _picture_of(config: ExplainConfig, policy: AnalogyPolicy) -> _Picture:
    if config.image is not None:
        return _photo(config.image)
    if config.store is not None:
        return _frame(config, policy)
    return _table(config, policy)


def _photo(path: str) -> _Picture:
    from PIL import Image

    from arvrm.sources.video import VideoError, rgb_of, warnings_as_errors

    try:
        with warnings_as_errors(), Image.open(path) as opened:
            image = rgb_of(opened)
    except VideoError as error:
        raise UserError(f"{path}: {error}; give a smaller picture, or a JPEG or PNG") from error
    except (OSError, ValueError, SyntaxError, Warning, MemoryError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read as a picture ({error}); give a JPEG or PNG") from error
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    cut = "" if image.shape[0] == image.shape[1] else ", its middle square"
    origin = (
        f"{Path(path).name}{cut}. No robot is known in it: the path begins above where demonstrations do, and is drawn "
    )
    return _Picture(image[top : top + side, left : left + side], None, origin + "as their camera would see it.")


def _frame(config: ExplainConfig, policy: AnalogyPolicy) -> _Picture:
    from arvrm.episodes import EpisodeStore

    assert config.store is not None and config.episode is not None
    store = EpisodeStore(config.store)
    if config.episode not in store:
        raise UserError(f"{config.store}: has no episode {config.episode!r}; `arvrm inspect` lists them")
    header = store.header(config.episode)
    row = max(int(np.searchsorted(header.image_steps, config.step, side="right")) - 1, 0)
    step = int(header.image_steps[row])
    camera = next(iter(header.cameras))
    image = store.frames(config.episode, camera, [row])[0]
    robot = None
    if header.embodiment == "robot":
        robot = store.arrays(config.episode, ("robot_obs",))["robot_obs"][step, :7]
    return _Picture(image, robot, f"{Path(config.store).name}: {config.episode}, step {step}, scene {header.scene}.")


def _table(config: ExplainConfig, policy: AnalogyPolicy) -> _Picture:
    from arvrm.evaluation.jobs import official_chains
    from arvrm.sim.env import PlayTableEnv
    from arvrm.sim.starts import reset_to_chain

    assert config.scene is not None
    size = next(iter(policy.spec.image_sizes.values()))
    env = PlayTableEnv(
        scene=config.scene,
        assets="official" if config.assets == "calvin" else config.assets,
        calvin_root=config.calvin_root,
        static_size=size,
        variation=config.layout,
        render_observations=False,
    )
    try:
        reset_to_chain(env, official_chains()[config.chain])
        image, robot = env.render_cameras()["rgb_static"], env.robot_obs()[:7]
    finally:
        env.close()
    kind = "official" if config.assets == "calvin" else "built-in"
    layout = "" if config.layout is None else f", layout {config.layout}"
    return _Picture(image, robot, f"{kind} scene {config.scene}{layout}, as official chain {config.chain} begins.")


def _source(config: ExplainConfig, motion: Motion) -> tuple[list[tuple[str, np.ndarray]], str]:
    """Pictures of the episode that a motion came from: its first image with its own hand, and its touch."""
    from arvrm.episodes import EpisodeStore
    from arvrm.films import draw_over
    from arvrm.model.checkpoint import load_checkpoint
    from arvrm.policy.drawing import skeleton

    stores = load_checkpoint(config.checkpoint, kind="analogy").metadata.stores
    for known in stores:
        try:
            store = EpisodeStore(known.path)
            if motion.id not in store:
                continue
        except UserError:
            continue
        header = store.header(motion.id)
        camera = next(iter(header.cameras))
        rows = [0, max(int(np.searchsorted(header.image_steps, motion.path.touch, side="right")) - 1, 0)]
        first, touch = store.frames(motion.id, camera, rows)
        own = draw_over(first, skeleton(motion.hand[0]))
        return [("its first image, with the hand that is predicted there", own), ("at its touch", touch)], ""
    return [], f"The store that {motion.id} came from ({', '.join(one.path for one in stores)}) is not here any more."
