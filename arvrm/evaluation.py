"""Rollouts by CALVIN's long-horizon protocol: simulators in worker processes, one policy that plans in batches.

A chain of (usually five) instructions starts from its initial state; each instruction gets at most `max_steps` control
steps and succeeds as soon as the task oracle, comparing the info at the instruction's start with the info now, says so;
the next begins where the last one ended, without a reset; the chain ends at its first failure.
Source: Mees et al., CALVIN, IEEE RA-L 2022 (section on LH-MTLC).

Each worker owns one simulator and asks the parent for chunks of actions over a pipe; the parent plans for whatever
requests are waiting. A chain depends on its index and the seed alone, never on the worker that ran it. A launcher may
start several parents, each with a device and workers of its own: each takes the next chain that none has taken.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import itertools
import json
import multiprocessing
import multiprocessing.connection
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from arvrm import processes
from arvrm.config import to_dict
from arvrm.interface import BLOCKS, SCENES, TASKS, Observation, PlanRequest, Policy, PolicySpec, UserError
from arvrm.results import ChainLog, ChainRecord, environment_versions, save_results, summarize
from arvrm.sim.render import CameraShift, choose_renderer
from arvrm.sim.scene import Lighting

OFFICIAL_CHAINS = 1000
NO_IMAGES = PolicySpec(static_size=None, gripper_size=None)
EXPERT_STEPS = 360
"""Control steps in which the expert must prepare the start of a single task."""
SPARE_STARTS = 8
"""Other starts that are tried where the expert cannot prepare a single task."""
JITTER_M, JITTER_RAD = 0.01, 0.3
"""How far blocks are moved and turned at most, each way, at the starts of single tasks."""
FILM_STRIDE = 3
"""Control steps per film frame; `films.FPS` plays it at the speed of life."""
FILM_SIZES = {"static": 200, "gripper": 84}
FILM_TAIL = 6
"""Film frames that show a task's outcome. FILM_SIZES: pixels, whatever the policy's are."""
BEHIND_THE_SCENES = ("workers", "output", "resume", "overwrite", "film_successes", "film_failures", "threads", "device")
"""Fields that cannot change a chain's outcome: a run may be resumed with others."""


SWITCHES = ("camera_shift", "lighting", "block_colours")
"""Robustness switches: what may differ from the scene as it is; the renderer is another."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What to roll out and where.

    Attributes:
        policy: checkpoint (learnt), expert (scripted, privileged) or random (uniform actions).
        checkpoint: folder of the learnt policy. index: retrieval index, if the policy retrieves at rollout.
        execute_steps: actions of a chunk executed before planning again; None: the checkpoint's own.
        protocol: chains (LH-MTLC) or single (every task alone, from `starts` random starts).
        scene: A, B, C or D. assets: builtin, or calvin: an official checkout at calvin_root (None: environment variable
            CALVIN_ROOT). renderer: tiny, egl, or auto (egl where it works); choose the one that rendered the training
            data.
        camera_shift: robustness switch: moves the static camera by `metres` in a random direction and turns it by
            `degrees` about a random axis, both drawn from `seed`.
        lighting: robustness switch: direction (3, towards the light), colour (3), distance, ambient, diffuse, specular.
        block_colours: robustness switch: red, blue or pink: RGBA, each 0 to 1.
        chains: how many: the first so many of the official 1000, where all tasks are in use.
        chain_file: JSON list of {"initial_state": {...}, "tasks": [...]} in place of generated chains.
        tasks: restrict chains to these tasks; None: all 34.
        starts: of each task, with the single-task protocol.
        seed: of sentences drawn, random actions and experts; chains do not depend on it.
        instructions: validation (one sentence a task), unseen (held-out paraphrases), calvin (the official sentences
            under calvin_root), or the path of a JSON file {task: sentence or list of sentences}.
        max_steps: control steps per instruction (30 a second).
        workers: simulators side by side, of each process; they change nothing but the time. More than cores is best:
            some simulate while others wait for their plans.
        batch: requests that the policy plans for at once. It changes the last bits of actions, and so single outcomes.
        threads: torch threads that plan.
        film_successes, film_failures: how many of the best and worst early chains to keep as films.
        output: the results file; its log (.chains.jsonl) and films lie beside it.
        resume: go on with the output's log. overwrite: begin anew.
        device: cpu or cuda, where the policy plans; of several processes each has its own.
    """

    output: str = "results.json"
    policy: Literal["checkpoint", "expert", "random"] = "checkpoint"
    checkpoint: str | None = None
    index: str | None = None
    execute_steps: int | None = None
    protocol: Literal["chains", "single"] = "chains"
    scene: str = "D"
    assets: Literal["builtin", "calvin"] = "builtin"
    calvin_root: str | None = None
    renderer: Literal["tiny", "egl", "auto"] = "tiny"
    camera_shift: CameraShift = CameraShift()
    lighting: Lighting = Lighting()
    block_colours: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)
    chains: int = OFFICIAL_CHAINS
    chain_file: str | None = None
    tasks: tuple[str, ...] | None = None
    starts: int = 25
    instructions: str = "validation"
    max_steps: int = 360
    seed: int = 0
    workers: int = 6
    device: str = "cpu"
    batch: int = 4
    threads: int = 1
    film_successes: int = 0
    film_failures: int = 0
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.scene not in SCENES:
            raise ValueError(f"scene {self.scene!r} is none of {', '.join(SCENES)}")
        for name in ("chains", "max_steps", "workers", "starts", "threads", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        if not np.isfinite([self.camera_shift.metres, self.camera_shift.degrees]).all() or self.camera_shift.seed < 0:
            raise ValueError(f"camera_shift = {self.camera_shift}: metres and degrees must be finite, seed at least 0")
        for name, colour in self.block_colours.items():
            if name not in BLOCKS or not all(0 <= part <= 1 for part in colour):
                raise ValueError(f"block_colours.{name} = {colour}: give {', '.join(BLOCKS)} four numbers from 0 to 1")


@dataclass(frozen=True)
class Job:
    """One chain to roll out.

    Attributes:
        index: its number; tasks, instructions: what is to be done and how it is said.
        start: what the world starts from: a `Chain` of arvrm.sim.chains; with the single-task protocol a tuple of
            them, each with the tasks that the expert does beforehand, to be tried until the expert succeeds.
        film: where to film it, if at all.
    """

    index: int
    tasks: tuple[str, ...]
    instructions: tuple[str, ...]
    start: Any
    film: str | None = None


class PlayTableWorld:
    """What a rollout needs of the simulator, the oracle and the experts. Built inside a worker process."""

    def __init__(self, config: EvaluateConfig, spec: PolicySpec):
        from arvrm.sim.env import PlayTableEnv
        from arvrm.sim.tasks import TaskOracle

        sizes = {} if spec.static_size is None else {"static_size": spec.static_size, "gripper_size": spec.gripper_size}
        self.env = PlayTableEnv(
            scene=config.scene,
            assets="official" if config.assets == "calvin" else config.assets,
            calvin_root=config.calvin_root,
            renderer=config.renderer,
            render_observations=False,
            camera_shift=config.camera_shift,
            lighting=config.lighting,
            block_colours=config.block_colours,
            **sizes,
        )
        self.oracle = TaskOracle()
        self.seed = config.seed
        self._expert: Any = None

    def start(self, job: Job) -> dict[str, Any]:
        """Bring the simulator to the job's initial state; return the info there."""
        if not isinstance(job.start, tuple):
            return self._reset(job.start)
        rng = np.random.default_rng([self.seed, job.index, 2])
        for attempt, (chain, before) in enumerate(job.start):
            info = self._reset(chain, rng)
            if all((info := self._prepare(task, job.index, attempt, info)) for task in before):
                return info
        raise RuntimeError(f"the expert could not prepare {job.tasks[0]} in {len(job.start)} attempts")

    def _reset(self, chain: Any, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Start a chain; with `rng` the blocks lie a little elsewhere."""
        from arvrm.sim.chains import chain_start

        self._expert = None  # one of another chain has no motion to finish here
        robot_obs, scene_obs = chain_start(chain, self.env)
        if rng is not None:
            blocks = scene_obs[6:].reshape(3, 6)
            blocks[:, :2] += rng.uniform(-JITTER_M, JITTER_M, (3, 2))
            blocks[:, 5] += rng.uniform(-JITTER_RAD, JITTER_RAD, 3)
        return self.env.reset(options={"robot_obs": robot_obs, "scene_obs": scene_obs})[1]

    def _prepare(self, task: str, index: int, attempt: int, start_info: dict[str, Any]) -> dict[str, Any] | None:
        """Let the expert do a task; return the info at its end, None if it fails."""
        act = self.expert(task, np.random.default_rng([index, attempt, TASKS.index(task)]))
        for _ in range(EXPERT_STEPS):
            info = self.step(act())
            if self.completed(start_info, info, task):
                return info
        return None

    def step(self, action: np.ndarray) -> dict[str, Any]:
        return self.env.step(action)[4]

    def observe(self) -> Observation:
        """Return the observation without images."""
        return Observation(robot_obs=self.env.robot_obs(), target_pose=self.env.target_pose())

    def cameras(self, film: bool = False) -> dict[str, np.ndarray]:
        """Return what the policy sees; for films in FILM_SIZES, whatever the policy's are."""
        return self.env.render_cameras(sizes=FILM_SIZES if film else None)

    def completed(self, start_info: dict[str, Any], info: dict[str, Any], task: str) -> bool:
        return task in self.oracle.completed(start_info, info, tasks=(task,))

    def expert(self, task: str, rng: np.random.Generator) -> Callable[[], np.ndarray]:
        from arvrm.sim.experts import Expert

        # The oracle fires at its threshold; the expert of the task before still finishes its motion first.
        self._expert = Expert(task, self.env, rng, after=self._expert)
        return self._expert.act

    def describe(self) -> dict[str, Any]:
        """Return simulator, asset hash and renderer, for the results' `versions`."""
        return {
            "simulator": "arvrm PlayTable on PyBullet",
            "assets": self.env.description.hash(),
            "renderer": self.env.renderer,
        }

    def close(self) -> None:
        self.env.close()


class PolicyCrash(Exception):
    """The policy failed on one request (in the parent); the chain ends there."""


class Clock:
    """Seconds by kind of work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - begin


@dataclass
class Rollout:
    """One chain in one world. `completed` and `steps` are true at any time, also after an exception."""

    world: Any
    job: Job
    config: EvaluateConfig
    spec: PolicySpec
    plan: Callable[[PlanRequest], np.ndarray]
    progress: Callable[[int, tuple[int, ...]], None] = lambda completed, steps: None
    completed: int = 0
    steps: list[int] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)

    def run(self) -> ChainRecord:
        """Roll the chain out until it ends."""
        film = _Film(self.job.film) if self.job.film else None
        kept = None
        try:
            with self.clock("reset"):
                info = self.world.start(self.job)
            for place in range(len(self.job.tasks)):
                info, success = self._attempt(place, info, film)
                self.completed += success
                self.progress(self.completed, tuple(self.steps))
                if not success:
                    break
            if film is not None:
                with self.clock("film"):
                    kept = film.close()
        finally:
            if film is not None and kept is None:
                film.discard()
        return ChainRecord(
            index=self.job.index,
            tasks=self.job.tasks,
            completed=self.completed,
            steps=tuple(self.steps),
            film=kept,
        )

    def _attempt(self, place: int, start_info: dict[str, Any], film: _Film | None) -> tuple[dict[str, Any], bool]:
        """Attempt one task from the present state; return the info at its end and whether it succeeded."""
        task, instruction = self.job.tasks[place], self.job.instructions[place]
        rng = np.random.default_rng([self.config.seed, self.job.index, place])
        act = self._actor(task, instruction, rng)
        title = f"{place + 1} of {len(self.job.tasks)}"
        info, success = start_info, False
        self.steps.append(0)
        for step in range(self.config.max_steps):
            images = self._images(step)
            if film is not None and step % FILM_STRIDE == 0:
                with self.clock("film"):
                    replanned = self.config.policy == "checkpoint" and step % self.spec.execute_steps < FILM_STRIDE
                    film.show(self.world.cameras(film=True), instruction, title, step, replanned)
            action = act(step, images)
            with self.clock("physics"):
                info = self.world.step(action)
            self.steps[-1] = step + 1
            with self.clock("oracle"):
                success = self.world.completed(start_info, info, task)
            if success:
                break
        if film is not None:
            with self.clock("film"):
                images = self.world.cameras(film=True)
                film.show(images, instruction, title, self.steps[-1], False, success, FILM_TAIL)
        return info, success

    def _images(self, step: int) -> dict[str, np.ndarray] | None:
        """Render where the policy will look: at every step that is some plan's step plus a history offset."""
        if self.spec.static_size is None or not needs_images(self.spec, step):
            return None
        with self.clock("rendering"):
            return self.world.cameras()

    def _actor(self, task: str, instruction: str, rng: np.random.Generator) -> Callable[..., np.ndarray]:
        """Return act(step, images) -> (7,) action for one instruction."""
        if self.config.policy == "expert":
            with self.clock("policy"):
                expert = self.world.expert(task, rng)

            def act_expert(step: int, images: Any) -> np.ndarray:
                with self.clock("policy"):
                    return expert()

            return act_expert
        if self.config.policy == "random":

            def act_random(step: int, images: Any) -> np.ndarray:
                return np.append(rng.uniform(-1, 1, 6), rng.choice([-1.0, 1.0])).astype(np.float32)

            return act_random
        seen: dict[int, Observation] = {}
        chunk: list[np.ndarray] = []

        def act_policy(step: int, images: dict[str, np.ndarray] | None) -> np.ndarray:
            if needs_images(self.spec, step):
                seen[step] = replace(self.world.observe(), **{key: images[key] for key in IMAGE_KEYS} if images else {})
                for old in [s for s in seen if s and s < step + self.spec.history_offsets[0]]:
                    del seen[old]
            if step % self.spec.execute_steps == 0:
                history = tuple(seen[max(0, step + offset)] for offset in self.spec.history_offsets)
                with self.clock("policy"):
                    actions = self.plan(PlanRequest(instruction, history, rollout=self.job.index, step=step))
                chunk[:] = actions[: self.spec.execute_steps]
            return chunk[step % self.spec.execute_steps]

        return act_policy


IMAGE_KEYS = ("rgb_static", "rgb_gripper")


def needs_images(spec: PolicySpec, step: int) -> bool:
    """Whether some plan of the policy looks at this step of an instruction (plans are made every `execute_steps`)."""
    return step == 0 or any((step - offset) % spec.execute_steps == 0 for offset in spec.history_offsets)


class _Film:
    """Frames of one chain on their way into a file; the writer is made with the first frame."""

    def __init__(self, path: str):
        from arvrm.films import FilmWriter

        self.writer = FilmWriter(path)

    def show(
        self,
        images: dict[str, np.ndarray],
        instruction: str,
        title: str,
        step: int,
        replanned: bool,
        outcome: bool | None = None,
        repeat: int = 1,
    ) -> None:
        from arvrm.films import compose_frame

        frame = compose_frame(images, instruction, title, step, replanned, outcome)
        for _ in range(repeat):
            self.writer.add(frame)

    def close(self) -> str | None:
        path = self.writer.close()
        return None if path is None else path.name

    def discard(self) -> None:
        self.writer.discard()


def _work(
    connection: multiprocessing.connection.Connection,
    make_world: Callable[[EvaluateConfig, PolicySpec], Any],
    config: EvaluateConfig,
    spec: PolicySpec,
) -> None:
    """A worker's whole life: build the simulator, roll out jobs until told None or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def plan(request: PlanRequest) -> np.ndarray:
        connection.send(("plan", request))
        kind, value = connection.recv()
        if kind == "crash":
            raise PolicyCrash(value)
        return value

    try:
        try:
            world = make_world(config, spec)
            connection.send(("ready", world.describe()))
        except Exception as error:
            connection.send(("fatal", _one_line(error, isinstance(error, UserError))))
            return
        while (job := connection.recv()) is not None:
            begin = time.perf_counter()
            rollout = Rollout(
                world, job, config, spec, plan, lambda completed, steps: connection.send(("progress", completed, steps))
            )
            try:
                record = rollout.run()
            except UserError as error:
                connection.send(("fatal", str(error)))
                return
            except (EOFError, BrokenPipeError, ConnectionResetError):
                return
            except Exception as error:
                who = "policy" if isinstance(error, PolicyCrash) else "simulator"
                message = str(error) if isinstance(error, PolicyCrash) else _one_line(error)
                record = _crashed(job, rollout.completed, tuple(rollout.steps), f"{who}: {message}")
            total = time.perf_counter() - begin
            cost = dict(rollout.clock.seconds)
            cost["other"] = max(0.0, total - sum(cost.values()))
            connection.send(("done", record, {kind: round(value, 4) for kind, value in cost.items()}))
        world.close()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone; nothing of this chain is recorded


def _crashed(job: Job, completed: int, steps: tuple[int, ...], message: str) -> ChainRecord:
    return ChainRecord(index=job.index, tasks=job.tasks, completed=completed, steps=steps, crashed=message)


def _one_line(error: BaseException, plain: bool = False) -> str:
    if plain:
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({Path(place[0].filename).name}:{place[0].lineno})" if place else ""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300] + where


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, make_world: Callable[..., Any], config: EvaluateConfig, spec: PolicySpec):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, make_world, config, spec), daemon=True)
        self.process.start()
        theirs.close()
        self.job: Job | None = None
        self.completed, self.steps = 0, ()

    def give(self, job: Job) -> None:
        self.job, self.completed, self.steps = job, 0, ()
        self.connection.send(job)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.close()
        if self.process.is_alive():
            self.process.terminate()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def evaluate(
    policy_factory: Callable[[], Policy] | None,
    config: EvaluateConfig,
    make_world: Callable[[EvaluateConfig, PolicySpec], Any] = PlayTableWorld,
    jobs: list[Job] | None = None,
    policy_identity: dict[str, Any] | None = None,
) -> Path:
    """Roll out the configured chains and write the results file.

    Args:
        policy_factory: makes the policy; None for policy = expert or random, which act inside the workers.
        config: what to roll out.
        make_world: builds a worker's simulator (importable: workers are spawned); tests give a small one.
        jobs: chains to roll out in place of those of the configuration.
        policy_identity: what identifies the policy's weights; a run with others cannot be resumed.
    Returns: the path of the results file; of several processes the first one writes it, when all have ended.
    Raises:
        UserError: the output exists, a task or chain file is unknown, the policy returns malformed or NaN actions.
    """
    output = Path(config.output)
    if config.resume and config.overwrite:
        raise UserError(f"{output}: --resume and --overwrite exclude each other; pass one")
    if output.exists() and not (config.resume or config.overwrite):
        raise UserError(f"{output}: exists; pass --resume to go on with it or --overwrite to begin anew")
    if config.policy == "checkpoint" and policy_factory is None:
        raise UserError("evaluate: policy = 'checkpoint' needs a checkpoint; pass --checkpoint DIR")
    jobs = make_jobs(config) if jobs is None else jobs
    fingerprint = {key: value for key, value in to_dict(config).items() if key not in BEHIND_THE_SCENES}
    for name in SWITCHES:  # unset ones are left out: logs from before they existed can be resumed
        if getattr(config, name) == getattr(EvaluateConfig(), name):
            del fingerprint[name]
    if config.tasks is None and config.chains <= OFFICIAL_CHAINS:
        fingerprint.pop("chains")  # the first n official chains are the same for any n: more may be added to a log
    # Tried once, not in every worker; and chains drawn by another renderer must not mix with those of a log.
    fingerprint["renderer"] = renderer = choose_renderer(config.renderer)
    fingerprint["identity"] = policy_identity
    fingerprint["jobs"] = _digest(jobs[:1])
    log_path = output.with_suffix(".chains.jsonl")
    crew = _crew()
    config_here = replace(config, renderer=renderer)
    if crew and not processes.is_main():
        return _help(policy_factory, config_here, make_world, jobs, fingerprint, log_path, crew)
    parts = sorted(log_path.parent.glob(f"{log_path.name}.part*"))
    if parts and not (config.resume or config.overwrite):
        raise UserError(f"{parts[0]}: exists; pass --resume to go on with it or --overwrite to begin anew")
    with ChainLog(log_path, fingerprint, resume=config.resume, overwrite=config.overwrite) as log:
        for part in parts:  # of a run of several processes that was killed
            part.unlink() if config.overwrite else log.absorb(part)
        indices = {job.index for job in jobs}
        missing = [job for job in jobs if job.index not in log.records]
        if crew:
            crew.put("plan", {"missing": [job.index for job in missing], "seconds": log.seconds})
        run = _Run(policy_factory, config_here, make_world, missing, log, len(jobs), crew)
        if missing:
            run.go()
        for number in range(1, processes.world() if crew else 1):
            run.hear(crew.take(f"done {number}"))
            log.absorb(_part(log_path, number))
        records = [_without_missing_film(record, output) for index, record in log.records.items() if index in indices]
        films = _choose_films(records, config, output)
        records = [record if record.film in films else replace(record, film=None) for record in records]
        results = summarize(records, seed=config.seed)
        busy = sum(log.cost.values()) or 1.0
        results |= {
            "seconds": round(log.seconds, 1),
            "chains_per_hour": round(3600 * len(log.records) / log.seconds, 1) if log.seconds else None,
            "time_share": {kind: round(value / busy, 4) for kind, value in sorted(log.cost.items())},
            "planning": run.planning(),
            "films": [str(Path(film_folder(output).name) / name) for name in films],
            "policy_identity": policy_identity,
            "config": to_dict(config),
            "versions": environment_versions() | (run.world or _old_world(output)),
        }
    return save_results(output, results)


def _part(log_path: Path, number: int) -> Path:
    """The log of the process `number`, which ends up in the first one's."""
    return log_path.with_name(f"{log_path.name}.part{number}")


_calls = itertools.count()


def _crew() -> processes.Board | None:
    """What the processes of this evaluation share, None for one that is alone."""
    board = processes.board()
    return board and board.section(f"evaluation {next(_calls)}")


def _help(
    policy_factory: Callable[[], Policy] | None,
    config: EvaluateConfig,
    make_world: Callable[..., Any],
    jobs: list[Job],
    fingerprint: dict[str, Any],
    log_path: Path,
    crew: processes.Board,
) -> Path:
    """What a process does that is not the first: chains, into a log of its own."""
    plan = crew.take("plan")
    wanted = set(plan["missing"])
    missing = [job for job in jobs if job.index in wanted]
    with ChainLog(_part(log_path, processes.rank()), fingerprint, overwrite=True) as log:
        log.seconds = plan["seconds"]
        run = _Run(policy_factory, config, make_world, missing, log, len(jobs), crew)
        if missing:
            run.go()
    crew.put(f"done {processes.rank()}", run.tell())
    return Path(config.output)


class _Queue:
    """Chains yet to be rolled out; of several processes each takes the next one that none has taken."""

    def __init__(self, jobs: list[Job], crew: processes.Board | None):
        self.jobs, self.crew, self.taken = jobs, crew, 0

    def __bool__(self) -> bool:
        return (self.crew.add("taken", 0) if self.crew else self.taken) < len(self.jobs)

    def take(self) -> Job | None:
        self.taken = self.crew.add("taken", 1) if self.crew else self.taken + 1
        return self.jobs[self.taken - 1] if self.taken <= len(self.jobs) else None


def film_folder(output: Path) -> Path:
    """Where an evaluation keeps its films: beside the results file."""
    return output.with_name(f"{output.stem}_films")


def _digest(jobs: list[Job]) -> str:
    return hashlib.sha256(repr([(job.index, job.tasks, job.instructions) for job in jobs]).encode()).hexdigest()[:16]


def _old_world(output: Path) -> dict[str, Any]:
    """The simulator's description from the results file of a resumed run that had nothing left to do."""
    try:
        versions = json.loads(output.read_text())["versions"]
    except (OSError, ValueError, KeyError):
        return {}
    return {key: versions[key] for key in ("simulator", "assets", "renderer") if key in versions}


def _without_missing_film(record: ChainRecord, output: Path) -> ChainRecord:
    return record if record.film and (film_folder(output) / record.film).exists() else replace(record, film=None)


def _film_candidates(config: EvaluateConfig) -> int:
    """Outcomes are unknown beforehand: so many early chains are filmed, and the most telling kept."""
    return 2 * (config.film_successes + config.film_failures)


def _choose_films(records: list[ChainRecord], config: EvaluateConfig, output: Path) -> list[str]:
    """Keep the longest chains that came far and the shortest that failed; delete the other candidates."""
    filmed = sorted((record for record in records if record.film), key=lambda record: record.index)
    best = sorted((r for r in filmed if r.completed > 0), key=lambda r: -r.completed)[: config.film_successes]
    failed = [r for r in filmed if r.completed < len(r.tasks) and r not in best]
    worst = sorted(failed, key=lambda r: r.completed)[: config.film_failures]
    chosen = [record.film for record in best + worst]
    for record in filmed:
        if record.film not in chosen:
            (film_folder(output) / record.film).unlink(missing_ok=True)
    return chosen


class _Run:
    """The parent of one evaluation: gives jobs to workers, plans for them, logs what they finish."""

    def __init__(
        self,
        policy_factory: Callable[[], Policy] | None,
        config: EvaluateConfig,
        make_world: Callable[..., Any],
        missing: list[Job],
        log: ChainLog,
        total: int,
        crew: processes.Board | None = None,
    ):
        self.crew = crew
        self.policy = policy_factory() if config.policy == "checkpoint" and missing else None
        self.spec = self.policy.spec if self.policy else NO_IMAGES
        self.config, self.make_world, self.log, self.total = config, make_world, log, total
        filmed = _film_candidates(config)
        folder = film_folder(Path(config.output))
        chains = [
            replace(job, film=str(folder / f"chain_{job.index:05d}.mp4")) if job.index < filmed else job
            for job in missing
        ]
        self.queue = _Queue(chains, crew)
        share = -(-len(chains) // processes.world()) if crew else len(chains)
        self.simulators = min(config.workers, share)
        self.world: dict[str, Any] = {}
        self.before, self.begin = log.seconds, time.perf_counter()
        self.done_before = len(log.records)
        self.completed_before = sum(logged.completed for logged in log.records.values())
        self.plans, self.batches, self.plan_seconds = 0, 0, 0.0
        self.shown = 0.0

    def planning(self) -> dict[str, Any]:
        """How planning went in this run: plans, mean batch, milliseconds a plan. Empty without a learnt policy."""
        if not self.plans:
            return {}
        return {
            "plans": self.plans,
            "mean_batch": round(self.plans / self.batches, 2),
            "ms_per_plan": round(1000 * self.plan_seconds / self.plans, 2),
        }

    def tell(self) -> dict[str, Any]:
        """Return what the first process wants to `hear` of another one's run."""
        return {"world": self.world, "planning": [self.plans, self.batches, self.plan_seconds]}

    def hear(self, told: dict[str, Any]) -> None:
        self.world = self.world or told["world"]
        plans, batches, seconds = told["planning"]
        self.plans, self.batches, self.plan_seconds = (
            self.plans + plans,
            self.batches + batches,
            self.plan_seconds + seconds,
        )

    def go(self) -> None:
        """Roll out everything in the queue."""
        workers: list[_Worker] = []
        try:
            for _ in range(self.simulators):
                workers.append(_Worker(self.make_world, self.config, self.spec))
            asking: list[tuple[_Worker, PlanRequest]] = []
            while workers:
                waiting = {id(worker) for worker, _ in asking}
                ready = multiprocessing.connection.wait(
                    [worker.connection for worker in workers if id(worker) not in waiting], 1.0 if self.crew else None
                )
                if processes.orphaned():
                    raise KeyboardInterrupt
                for worker in [worker for worker in workers if worker.connection in ready]:
                    try:
                        message = worker.connection.recv()
                    except (EOFError, ConnectionResetError):
                        workers.remove(worker)
                        workers += self._bury(worker)
                        continue
                    if message[0] == "plan":
                        asking.append((worker, message[1]))
                    elif self._handle(worker, message):
                        workers.remove(worker)
                        worker.process.join(timeout=5)
                        worker.stop()
                # Plan for a full batch, or when all are waiting for it.
                while asking and (len(asking) >= self.spec.batch or len(asking) == len(workers)):
                    some, asking = asking[: self.spec.batch], asking[self.spec.batch :]
                    self._answer(some)
        finally:
            for worker in workers:
                worker.stop()

    def _handle(self, worker: _Worker, message: tuple) -> bool:
        """Act on a worker's message; return True when the worker has nothing left to do."""
        kind = message[0]
        if kind == "fatal":
            raise UserError(message[1])
        if kind == "progress":
            _, worker.completed, worker.steps = message
            return False
        if kind == "ready":
            self.world = message[1]
        elif kind == "done":
            self._finish(message[1], message[2])
        job = self.queue.take()
        if job is not None:
            worker.give(job)
            return False
        worker.job = None
        worker.connection.send(None)
        return True

    def _bury(self, worker: _Worker) -> list[_Worker]:
        """A worker process died: its chain is a failure; return its successor, if there is work left."""
        worker.process.join(timeout=5)
        code = worker.process.exitcode
        worker.stop()
        if worker.job is None:
            raise UserError(f"evaluate: a simulator process ended with code {code} before its first chain")
        message = f"simulator: process ended with code {code}"
        self._finish(_crashed(worker.job, worker.completed, worker.steps, message), {})
        return [_Worker(self.make_world, self.config, self.spec)] if self.queue else []

    def _answer(self, asking: list[tuple[_Worker, PlanRequest]]) -> None:
        begin = time.perf_counter()
        asking.sort(key=lambda pair: pair[1].rollout)
        requests = [request for _, request in asking]
        answers: list[tuple[str, Any]]
        try:
            answers = [("actions", chunk) for chunk in self.policy.plan(requests)]
            if len(answers) != len(requests):
                raise ValueError(f"{len(answers)} chunks for {len(requests)} requests")
        except UserError:
            raise
        except Exception as error:
            answers = self._answer_alone(requests, error)
        for (kind, chunk), request in zip(answers, requests, strict=True):
            if kind == "actions":
                check_chunk(chunk, self.spec, request)
        self.plans += len(requests)
        self.batches += 1
        self.plan_seconds += time.perf_counter() - begin
        for (worker, _), answer in zip(asking, answers, strict=True):
            # A worker that died since is buried when its pipe is next read.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                worker.connection.send(answer)

    def _answer_alone(self, requests: list[PlanRequest], error: Exception) -> list[tuple[str, Any]]:
        """After a failed batch, plan one by one, so that only the chains at fault crash."""
        if len(requests) == 1:
            return [("crash", _one_line(error))]
        answers: list[tuple[str, Any]] = []
        for request in requests:
            try:
                answers.append(("actions", self.policy.plan([request])[0]))
            except UserError:
                raise
            except Exception as alone:
                answers.append(("crash", _one_line(alone)))
        return answers

    def _finish(self, record: ChainRecord, cost: dict[str, float]) -> None:
        elapsed = time.perf_counter() - self.begin
        self.log.append(record, self.before + elapsed, cost)
        if record.crashed:
            print(f"chain {record.index} crashed: {record.crashed}", file=sys.stderr)
        done, completed = len(self.log.records), sum(logged.completed for logged in self.log.records.values())
        if self.crew:
            finished, more = self.crew.add("finished", 1), self.crew.add("completed", record.completed)
            if not processes.is_main():
                return
            # Of the other processes' chains it knows the numbers only.
            done, completed = self.done_before + finished, self.completed_before + more
        now = time.perf_counter()
        if now - self.shown > 5 or done >= self.total:
            self.shown = now
            rate = (done - self.done_before) / elapsed
            left = max(0, self.total - done) / rate
            print(
                f"evaluate: {done}/{self.total} chains, average length {completed / done:.2f}, "
                f"{3600 * rate:.0f} an hour, {int(left // 60)}:{int(left % 60):02d} left",
                file=sys.stderr,
                flush=True,
            )


def check_chunk(chunk: np.ndarray, spec: PolicySpec, request: PlanRequest) -> None:
    """Raise UserError unless `chunk` is (C >= execute_steps, 7), finite, with a gripper of exactly -1 or 1."""
    chunk = np.asarray(chunk)
    place = f"policy: chain {request.rollout}, step {request.step} ({request.instruction!r})"
    if chunk.ndim != 2 or chunk.shape[1] != 7 or len(chunk) < spec.execute_steps:
        raise UserError(f"{place}: actions of shape {chunk.shape}, expected (at least {spec.execute_steps}, 7)")
    if not np.isfinite(chunk).all():
        raise UserError(f"{place}: NaN or infinity in actions; the checkpoint is broken, train it again")
    if not np.isin(chunk[:, 6], (-1.0, 1.0)).all():
        raise UserError(f"{place}: gripper {chunk[:, 6].tolist()}, expected exactly -1 or 1; binarise it in the policy")


def make_jobs(config: EvaluateConfig) -> list[Job]:
    """Return the chains that the configuration asks for, with their sentences.

    Raises:
        UserError: an unknown task (the nearest is named), an unreadable chain or sentence file.
    """
    tasks = TASKS if config.tasks is None else check_tasks(config.tasks)
    if config.protocol == "single" and config.chain_file:
        raise UserError("chain_file: single tasks start from chains of their own; drop it or use --protocol chains")
    if config.protocol == "single":
        wanted = _single_starts(config, tasks)
    else:
        wanted = [(chain.tasks, chain) for chain in _chains(config, tasks)]
    say = sentences(config, {task for these, _ in wanted for task in these})
    return [
        Job(
            index=index,
            tasks=tuple(these),
            instructions=tuple(
                say(task, np.random.default_rng([config.seed, index, place, 1])) for place, task in enumerate(these)
            ),
            start=start,
        )
        for index, (these, start) in enumerate(wanted)
    ]


def check_tasks(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return `names` if all are tasks; raise a UserError that names the nearest task otherwise."""
    for name in names:
        if name not in TASKS:
            nearest = difflib.get_close_matches(name, TASKS, 1, 0.0)[0]
            raise UserError(f"unknown task {name!r}; did you mean {nearest!r}?")
    return names


def _chains(config: EvaluateConfig, tasks: tuple[str, ...]) -> list[Any]:
    from arvrm.sim.chains import generate_chains, load_chains

    if config.chain_file:
        chains = load_chains(config.chain_file)
        for index, chain in enumerate(chains):
            if other := set(chain.tasks) - set(tasks):
                raise UserError(f"{config.chain_file}[{index}]: {min(other)} is none of --tasks; drop either")
        return chains[: config.chains]
    if set(tasks) == set(TASKS) and config.chains <= OFFICIAL_CHAINS:
        return official_chains()[: config.chains]
    return generate_chains(config.chains, tasks)


def official_chains() -> list[Any]:
    """Return what `generate_chains(1000)` does, which takes some seconds, from a file that it made."""
    from arvrm.sim.chains import Chain

    stored = json.loads(resources.files("arvrm").joinpath("resources/official_chains.json").read_text())
    return [
        Chain(dict(zip(stored["keys"], state, strict=True)), tuple(TASKS[number] for number in tasks))
        for state, tasks in stored["chains"]
    ]


def _single_starts(config: EvaluateConfig, tasks: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    """`starts` starts of each task: where it stands early in an official chain, whose tasks before it the expert does.

    So a block is held where it is to be placed, and the drawer open where something is to be taken out of it. Blocks
    are moved a little besides, since some tasks stand in few chains.
    """
    chains = official_chains()
    found = []
    for task in tasks:
        rng = np.random.default_rng([config.seed, TASKS.index(task)])
        places = [(chain, chain.tasks.index(task)) for chain in chains if task in chain.tasks]
        # Early places first: fewer tasks to prepare. The order among equals is drawn.
        order = sorted(rng.permutation(len(places)), key=lambda number: places[number][1])
        for number in range(config.starts):
            tries = [order[(number + more) % len(order)] for more in range(1 + SPARE_STARTS)]
            starts = [(places[k][0], places[k][0].tasks[: places[k][1]]) for k in tries]
            found.append(((task,), tuple(starts)))
    return found


def sentences(
    config: EvaluateConfig, tasks: Collection[str] | None = None
) -> Callable[[str, np.random.Generator], str]:
    """Return say(task, rng), the instruction that a policy hears for a task; see `EvaluateConfig.instructions`.

    Args:
        tasks: what must have a sentence; None: `config.tasks`.
    Raises:
        UserError: the source is unreadable or lacks a task that is needed.
    """
    from arvrm import instructions

    if config.instructions == "validation":
        return lambda task, rng: instructions.validation_instruction(task)
    if config.instructions == "unseen":
        return lambda task, rng: str(rng.choice(instructions.unseen_instructions(task)))
    if config.instructions == "calvin":
        from arvrm.sim.scene import resolve_calvin_root

        known = instructions.calvin_instructions(resolve_calvin_root(config.calvin_root), "validation")
    else:
        known = instructions.load_instruction_file(config.instructions)
        missing = [task for task in sorted(tasks or config.tasks or TASKS) if task not in known]
        if missing:
            raise UserError(f"{config.instructions}: no sentence for {missing[0]!r}; add one or restrict --tasks")
    return lambda task, rng: known[task][0] if len(known[task]) == 1 else str(rng.choice(known[task]))
