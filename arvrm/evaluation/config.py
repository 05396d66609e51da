"""What an evaluation rolls out, and where."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from typing import Literal

from arvrm import plugins
from arvrm.clusters import Engine
from arvrm.config import bounded, check_bounds
from arvrm.interface import BLOCKS, SCENES, UserError
from arvrm.remote.links import is_address
from arvrm.sim.render import CameraShift
from arvrm.sim.scene import Lighting

OFFICIAL_CHAINS = 1000
POLICIES = ("checkpoint", "expert", "random")
NOT_COMPARED = (
    "workers",
    "output",
    "resume",
    "overwrite",
    "film_successes",
    "film_failures",
    "threads",
    "device",
    "engine",
)
"""Fields that cannot change a chain's outcome: a run may be resumed with others."""
SWITCHES = ("camera_shift", "lighting", "block_colours")
"""Robustness switches: what may differ from the scene as it is; the renderer is another."""
PLAY_TABLE = ("scene", "assets", "calvin_root", "layouts", "renderer", *SWITCHES)
"""Fields that say which play table, and how it looks; another world has none of them."""
OWN_CHAINS = ("protocol", "chain_file", "starts")
"""Fields that say how CALVIN's chains are made; a world with chains of its own has none of them."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What to roll out and where.

    Attributes:
        policy: checkpoint (learnt), expert (scripted, privileged), random (uniform actions), package.module:factory
            (docs/extending.md), or ws://HOST:PORT: a server of somebody's policy (docs/remote.md).
        conventions: what that server wants and answers: a JSON file, or a name that arvrm knows (docs/remote.md); None:
            as the server itself says, which arvrm's does.
        answer_seconds: that it may take to be there, and to answer; then the chain is a failure.
        world: package.module:factory of a simulator of one's own (docs/extending.md); None: the play table.
        robot: package.module:object of a robot that only one's own code knows; None: those that are known by name.
        checkpoint: folder of the learnt policy, or "builtin": the package's. index: retrieval index, if the policy
            retrieves at rollout.
        execute_steps: actions of a chunk executed before planning again; None: the checkpoint's own.
        protocol: chains (LH-MTLC) or single (every task alone, from `starts` random starts).
        scene: A, B, C or D.
        assets: builtin, or calvin: those of an official checkout.
        layouts: chain i is done in varied layout i modulo this of the built-in scene (generate's `variations` are
            others); 0: in the scene as it is.
        calvin_root: that checkout; None: environment variable CALVIN_ROOT.
        renderer: tiny, egl, or auto (egl where it works); choose the one that rendered the training data.
        camera_shift: robustness switch: moves the static camera by `metres` in a random direction and turns it by
            `degrees` about a random axis, both drawn from `seed`.
        lighting: robustness switch: direction (3, towards the light), colour (3), distance, ambient, diffuse, specular.
        block_colours: robustness switch: red, blue or pink: RGBA, each 0 to 1.
        chains: how many: the first so many of the official 1000, where all tasks are in use, or of the world's own.
        chain_file: JSON list of {"initial_state": {...}, "tasks": [...]} in place of generated chains.
        tasks: restrict chains to these tasks; None: all.
        starts: of each task, with the single-task protocol.
        seed: of sentences drawn, random actions and experts; chains do not depend on it.
        instructions: validation (one sentence a task; a world with chains of its own has its own sentences), unseen
            (held-out paraphrases), calvin (the official sentences under calvin_root), or the path of a JSON file
            {task: sentence or list of sentences}.
        max_steps: control steps per instruction (30 a second).
        workers: simulators side by side, of each process; they change nothing but the time. More than cores is best:
            some simulate while others wait for their plans.
        engine: where the simulators are: local processes, or those of a Ray cluster (docs/performance.md); the policy
            plans in this process.
        batch: requests that the policy plans for at once. It changes the last bits of actions, and so single outcomes.
        threads: torch threads that plan.
        film_successes, film_failures: how many of the best and worst early chains to keep as films.
        output: the results file; its log (.chains.jsonl) and films lie beside it.
        resume: go on with the output's log. overwrite: begin anew.
        device: cpu or cuda, where the policy plans; of several processes each has its own.
    """

    output: str = "results.json"
    policy: str = "checkpoint"
    world: str | None = None
    robot: str | None = None
    conventions: str | None = None
    answer_seconds: float = bounded(60.0, above=0, most=86400)
    checkpoint: str | None = None
    index: str | None = None
    execute_steps: int | None = bounded(None, least=1, most=10**4)
    protocol: Literal["chains", "single"] = "chains"
    scene: str = "D"
    assets: Literal["builtin", "calvin"] = "builtin"
    calvin_root: str | None = None
    layouts: int = bounded(0, least=0, most=10**5)
    renderer: Literal["tiny", "egl", "auto"] = "tiny"
    camera_shift: CameraShift = CameraShift()
    lighting: Lighting = Lighting()
    block_colours: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)
    chains: int = bounded(OFFICIAL_CHAINS, least=1, most=10**5)
    chain_file: str | None = None
    tasks: tuple[str, ...] | None = None
    starts: int = bounded(25, least=1, most=10**6)
    instructions: str = "validation"
    max_steps: int = bounded(360, least=1, most=10**7)
    seed: int = bounded(0, least=0)
    workers: int = bounded(6, least=1, most=1024)
    engine: Engine = "local"
    device: str = "cpu"
    batch: int = bounded(4, least=1, most=10**4)
    threads: int = bounded(1, least=1, most=1024)
    film_successes: int = bounded(0, least=0, most=10**6)
    film_failures: int = bounded(0, least=0, most=10**6)
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.policy not in POLICIES and not plugins.is_path(self.policy) and not is_address(self.policy):
            close = difflib.get_close_matches(self.policy, POLICIES, 1)
            nearest = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"policy {self.policy!r} is none of {', '.join(POLICIES)}, package.module:factory, ws://HOST:PORT{nearest}"
            )
        if self.conventions is not None and not is_address(self.policy):
            raise ValueError(f"conventions {self.conventions!r} are for a server; policy is {self.policy!r}")
        if self.world is not None:
            self._refuse(PLAY_TABLE, f"world {self.world}", "says what the play table looks like")
        if self.scene not in SCENES:
            raise ValueError(f"scene {self.scene!r} is none of {', '.join(SCENES)}")
        if self.layouts and self.assets != "builtin":
            raise ValueError("layouts: official scenes have one; use assets = 'builtin' or layouts = 0")
        for name, colour in self.block_colours.items():
            if name not in BLOCKS or not all(0 <= part <= 1 for part in colour):
                raise ValueError(f"block_colours.{name} = {colour}: give {', '.join(BLOCKS)} four numbers from 0 to 1")

    @property
    def plans(self) -> bool:
        """Whether a policy plans in the parent; experts and random actions act inside the worlds."""
        return self.policy not in ("expert", "random")

    def refuse_own_chains(self) -> None:
        """Refuse, by name, fields by which only CALVIN's chains are made: the world has chains of its own."""
        self._refuse(OWN_CHAINS, f"world {self.world}", "says how CALVIN's chains are made")

    def _refuse(self, names: tuple[str, ...], beside: str, meaning: str) -> None:
        for given in dataclasses.fields(self):
            default = given.default_factory() if callable(given.default_factory) else given.default
            if given.name in names and getattr(self, given.name) != default:
                value = getattr(self, given.name)
                raise UserError(f"evaluate: {given.name} = {value!r} {meaning}, {beside} is another; drop either")
