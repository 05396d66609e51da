"""The verb that shows what a policy by analogy has in mind for one picture and one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from arvrm.config import bounded, check_bounds
from arvrm.interface import LONGEST_SENTENCE, SCENES, UserError
from arvrm.show.explain import Picture

if TYPE_CHECKING:
    from arvrm.policy.analogy import AnalogyPolicy


@dataclass(frozen=True)
class ExplainConfig:
    """Which policy, which picture and which words.

    Attributes:
        checkpoint: folder of a policy that `finetune motion=analogy` made, or "builtin".
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


def explain(config: ExplainConfig) -> Path:
    """Write the page.

    Raises:
        UserError: the checkpoint is none of a policy by analogy, or the picture cannot be read.
    """
    from arvrm.model.checkpoint import place_of, read_described
    from arvrm.policy.analogy import load_analogy
    from arvrm.show.explain import explanation, write_explanation

    if not config.text.strip() or len(config.text) > LONGEST_SENTENCE:
        raise UserError(f"explain: text: give an instruction of 1 to {LONGEST_SENTENCE} letters")
    if sum(given is not None for given in (config.image, config.store, config.scene)) != 1:
        raise UserError("explain: give one picture: image, store with episode, or scene")
    if (config.store is None) != (config.episode is None):
        raise UserError("explain: store and episode go together; give both or neither")
    checkpoint = place_of(config.checkpoint)
    kind = read_described(checkpoint).kind
    if kind != "analogy":
        raise UserError(f"{config.checkpoint}: is of kind {kind}; explain shows motion=analogy (else: `arvrm exhibit`)")
    policy = load_analogy(checkpoint)
    found = explanation(policy, checkpoint, _picture_of(config, policy), config.text)
    return write_explanation(found, config.output, config.overwrite)


def _picture_of(config: ExplainConfig, policy: AnalogyPolicy) -> Picture:
    if config.image is not None:
        return _photo(config.image)
    if config.store is not None:
        return _frame(config, policy)
    return _table(config, policy)


def _photo(path: str) -> Picture:
    from arvrm.sources.video import DamagedImage, VideoError, read_image

    try:
        image = read_image(path)
    except DamagedImage as error:
        raise UserError(f"{path}: cannot be read as a picture ({error}); give a JPEG or PNG") from error
    except VideoError as error:
        raise UserError(f"{path}: {error}; give a smaller picture, or a JPEG or PNG") from error
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    cut = "" if image.shape[0] == image.shape[1] else ", its middle square"
    origin = (
        f"{Path(path).name}{cut}. No robot is known in it: the path begins above where demonstrations do, and is drawn "
    )
    return Picture(image[top : top + side, left : left + side], None, origin + "as their camera would see it.")


def _frame(config: ExplainConfig, policy: AnalogyPolicy) -> Picture:
    from arvrm.episodes import EpisodeStore

    assert config.store is not None and config.episode is not None
    store = EpisodeStore(config.store)
    if config.episode not in store:
        raise UserError(f"{config.store}: has no episode {config.episode!r}; `arvrm inspect` lists them")
    header = store.header(config.episode)
    row = header.frame_at(config.step)
    step = int(header.image_steps[row])
    camera = next(iter(header.cameras))
    image = store.frames(config.episode, camera, [row])[0]
    robot = None
    if header.embodiment == "robot":
        robot = store.arrays(config.episode, ("robot_obs",))["robot_obs"][step, :7]
    return Picture(image, robot, f"{Path(config.store).name}: {config.episode}, step {step}, scene {header.scene}.")


def _table(config: ExplainConfig, policy: AnalogyPolicy) -> Picture:
    from arvrm.evaluation.playtable import start_picture

    assert config.scene is not None
    size = next(iter(policy.spec.image_sizes.values()))
    image, robot = start_picture(config.scene, config.assets, config.calvin_root, config.layout, config.chain, size)
    kind = "official" if config.assets == "calvin" else "built-in"
    layout = "" if config.layout is None else f", layout {config.layout}"
    origin = f"{kind} scene {config.scene}{layout}, as official chain {config.chain} begins."
    return Picture(image, robot[:7], origin)
