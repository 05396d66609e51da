"""The policy that carries a motion it has seen over to the places where a hand would act."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from arvrm.interface import Drawing, ImagesWanted, Observation, PlanRequest, PolicySpec, Robot
from arvrm.model.checkpoint import load_checkpoint
from arvrm.model.residual import EXECUTE
from arvrm.model.threads import torch_threads
from arvrm.motions.library import load_library
from arvrm.motions.path import Bent, bend, entry_of, grips, lets_go, straight
from arvrm.motions.plan import Plan, onward, plan_actions
from arvrm.policy.drawing import drawing_of
from arvrm.policy.places import Choice, PlaceSeer, Sight
from arvrm.policy.residual import Residual

LOOK_EVERY = 16
"""Steps after which it looks again while the touch is ahead."""
LEAVING = 16
"""Steps at most in which the motion of the instruction before is finished."""
_SAME_M = 0.03
"""Where the robot is further from its path, something else has moved it."""
_MOVED_M = 0.008
"""A goal that lies no further from the one before is the same."""
_LESS_SURE = 0.1
"""A place seen so much less surely than before (the arm hides it now) corrects nothing."""
_HELD_M = (0.01, 0.07)
"""Width of a closed gripper that holds something, between these."""
_FETCHES = 2
"""So often a hand that should hold something goes to take something up."""
_BEHIND_M, _STUCK_M = 0.05, 0.002
"""The arm is blocked where it is so far behind its target and hardly moved since the last plan."""


class Seer(Protocol):
    """Looks at the scene and says what might be done where.

    Attributes:
        lookout: (6,) a pose from which it sees more, m and rad; None: it knows none.
    """

    lookout: np.ndarray | None

    def look(self, requests: list[PlanRequest]) -> list[Sight]: ...

    def to_take(self, request: PlanRequest) -> Sight | None:
        """Look for something to take up, whatever the words are; None: it knows no motion that takes anything."""


@dataclass
class _Rollout:
    """One instruction of one rollout, as it goes."""

    instruction: str
    sight: Sight | None = None
    choice: Choice | None = None
    bent: Bent | None = None
    goal: np.ndarray = field(default_factory=lambda: np.zeros(6))
    """The target at the touch as the path was bent, before corrections moved it."""
    cursor: int = 0
    looked: int = 0
    tcp: np.ndarray | None = None
    fetched: int = 0
    """How often it took something up, since its hand was empty."""
    elsewhere: int = 0
    """How often it went to look from another pose."""
    tried: Counter = field(default_factory=Counter)
    tries: int = 0
    """How often it had touched in vain at the place of the present choice."""
    gripper: float = 1.0
    leaving: list[tuple[np.ndarray, float]] = field(default_factory=list)
    """What is left of the motion of the instruction before: the judge does not wait until the hand is off."""

    def rest(self, target: np.ndarray) -> list[tuple[np.ndarray, float]]:
        """Return poses and gripper commands that are left of the path, if it has touched and was not left."""
        if (
            self.bent is None
            or self.choice is None
            or self.cursor <= self.bent.touch
            or self.cursor >= len(self.bent.poses)
        ):
            return []
        if np.linalg.norm(self.bent.poses[self.cursor - 1, :3] - target[:3]) > _SAME_M:
            return []
        rows = slice(self.cursor, self.cursor + LEAVING)
        return list(zip(self.bent.poses[rows], self.bent.gripper[rows].tolist(), strict=True))


def again_at(choice: Choice, tries: int) -> Choice:
    """Return a choice as it is to be done after so many tries at its place."""
    return replace(choice, goal=choice.goal.next(tries, grips(choice.motion.path)))


class AnalogyPolicy:
    """Plans by following, in closed loop, the path of a motion bent to where a hand would act.

    State is kept for each rollout by itself, so that plans do not depend on who else is waiting.

    Args:
        residual: what corrects the path near and after the touch; None: it is followed as it is.
        threads: of torch while it plans; None: as many as there are.
    """

    def __init__(
        self,
        robot: Robot,
        seer: Seer,
        image_sizes: dict[str, int],
        batch: int = 1,
        residual: Residual | None = None,
        threads: int | None = None,
    ) -> None:
        self.robot, self.seer, self.residual, self.threads = robot, seer, residual, threads
        self.spec = PolicySpec(robot.name, image_sizes, (0,), EXECUTE, batch, looks_when_needed=True)
        self._rollouts: dict[int, _Rollout] = {}
        self._notes: dict[int, Counter] = {}

    def notes(self, rollout: int) -> dict[str, int]:
        """What happened in a rollout that a reader of its result should know: text -> how often."""
        return dict(self._notes.get(rollout, {}))

    def drawing(self, rollout: int) -> Drawing | None:
        """The predicted hand, how sure it is, what is left of the path, and the motion that is carried over."""
        known = self._rollouts.get(rollout)
        if known is None or known.sight is None:
            return None
        left = None if known.bent is None else known.bent.poses[known.cursor :]
        return drawing_of(known.sight, known.choice, left, self.seer)

    def ended(self, rollout: int) -> None:
        """Forget a rollout."""
        self._rollouts.pop(rollout, None)
        self._notes.pop(rollout, None)

    def plan(self, requests: list[PlanRequest]) -> list[np.ndarray | ImagesWanted]:
        """Return one (EXECUTE, 7) float32 chunk per request; see `interface.Policy`."""
        with torch_threads(self.threads):
            return [self._answer(request) for request in requests]

    def _answer(self, request: PlanRequest) -> np.ndarray | ImagesWanted:
        try:
            return self._plan(request)
        except ImagesWanted as wanted:
            return wanted

    def _plan(self, request: PlanRequest) -> np.ndarray:
        state = request.history[-1].state
        target, robot_obs = np.asarray(state["target_pose"], np.float64), np.asarray(state["robot_obs"], np.float64)
        known = self._rollouts.get(request.rollout)
        if known is None or request.step == 0 or known.instruction != request.instruction:
            rest = [] if known is None else known.rest(target)
            known = self._rollouts[request.rollout] = _Rollout(request.instruction, gripper=float(robot_obs[14]))
            known.leaving = rest
        self._follow(known, request, target, robot_obs)
        chunk = self._chunk(known, request.history[-1], target).astype(np.float32)
        known.tcp = robot_obs[:3]
        return chunk

    def _follow(self, known: _Rollout, request: PlanRequest, target: np.ndarray, robot_obs: np.ndarray) -> None:
        """Begin, correct or leave the path.

        Raises:
            ImagesWanted: it must look; nothing has changed yet.
        """
        tcp, held = robot_obs[:3], _HELD_M[0] < robot_obs[6] < _HELD_M[1] and robot_obs[14] < 0
        moved = np.inf if known.tcp is None else float(np.linalg.norm(tcp - known.tcp))
        if known.leaving:
            return
        if known.bent is None or (known.choice is None and known.cursor >= len(known.bent.poses)):
            self._begin(known, request, target, held)
            return
        if known.choice is None:
            return
        before = known.cursor < known.bent.touch
        if known.cursor >= len(known.bent.poses):
            self._begin(known, request, target, held)
            self._note(request, "path over")
        elif before and moved < _STUCK_M and np.linalg.norm(target[:3] - tcp) > _BEHIND_M:
            self._begin(known, request, target, held)
            self._note(request, "blocked")
        elif before and request.step - known.looked >= LOOK_EVERY:
            self._correct(known, request, target)

    def _begin(self, known: _Rollout, request: PlanRequest, target: np.ndarray, held: bool) -> None:
        """Look, and begin the best choice among those tried least; what is to be put down must be in the hand first."""
        sight = self._look(known, request)
        for note in sight.notes:
            self._note(request, note)
        if not sight.sure and known.elsewhere < 1 and self.seer.lookout is not None:
            self._note(request, "looks from another pose")
            known.elsewhere += 1
            known.choice, known.bent, known.cursor = None, straight(target, self.seer.lookout, known.gripper), 0
            return
        if not sight.choices:
            known.choice = known.bent = None
            return
        least = min(known.tried[choice.key] for choice in sight.choices)
        choice = next(choice for choice in sight.choices if known.tried[choice.key] == least)
        known.tries = sum(count for (_, place), count in known.tried.items() if place == choice.hypothesis)
        taken = None
        if lets_go(choice.motion.path) and not held and known.fetched < _FETCHES:
            taken = self.seer.to_take(request)
        if taken is not None and taken.choices:
            self._note(request, "an empty hand takes something up first")
            choice, known.tries = taken.choices[0], known.fetched
            known.fetched += 1
        else:
            known.tried[choice.key] += 1
        if known.tries:
            self._note(request, "touches beside the place, or across")
        choice = again_at(choice, known.tries)
        known.choice, known.cursor = choice, 0
        known.bent = bend(choice.motion.path, target, choice.goal)
        known.goal = known.bent.poses[known.bent.touch]

    def _correct(self, known: _Rollout, request: PlanRequest, target: np.ndarray) -> None:
        """Look again, and bend what is left of the path where the place has moved."""
        assert known.choice is not None and known.bent is not None
        sight = self._look(known, request)
        again = next((choice for choice in sight.choices if choice.key == known.choice.key), None)
        if again is None:
            return
        again = again_at(again, known.tries)
        if again.goal.confidence < known.choice.goal.confidence - _LESS_SURE:
            return
        if np.linalg.norm(again.goal.touch - known.choice.goal.touch) < _MOVED_M:
            return
        path, begin = again.motion.path, int(known.bent.rows[known.cursor])
        if begin < path.touch:
            known.choice, known.cursor = again, 0
            known.bent = bend(path, target, again.goal, None if begin <= entry_of(path) else begin)
            known.goal = known.bent.poses[known.bent.touch]

    def _look(self, known: _Rollout, request: PlanRequest) -> Sight:
        if not request.history[-1].images:
            raise ImagesWanted
        known.sight, known.looked = self.seer.look([request])[0], request.step
        return known.sight

    def _chunk(self, known: _Rollout, seen: Observation, target: np.ndarray) -> np.ndarray:
        """Return the actions (EXECUTE, 7) that move the target along the path, one row of it a step.

        Raises:
            ImagesWanted: the residual must look; nothing has changed yet.
        """
        if known.leaving:
            return self._leave(known, target)
        bent, begin = known.bent, known.cursor
        corrects = self._is_corrected(known)
        if corrects and not seen.images:
            raise ImagesWanted
        if bent is not None:
            known.cursor = min(begin + EXECUTE, len(bent.poses))
        if self.residual is None or not corrects:
            actions = plan_actions(bent, begin, target, known.gripper)
        else:
            plan = None
            if bent is not None and known.choice is not None:
                plan = Plan(bent, begin, known.goal, known.choice.goal.confidence)
            corrected = self.residual.corrected(plan, seen, known.gripper)
            actions = corrected.actions
            if bent is not None and corrected.moved.any():
                known.bent = onward(bent, known.cursor, bent.poses[known.cursor - 1] + corrected.moved)
        known.gripper = float(actions[-1, 6])
        return actions

    def _leave(self, known: _Rollout, target: np.ndarray) -> np.ndarray:
        """Return a chunk of what is left of the motion before; where that is over, the target stays."""
        rest, known.leaving = known.leaving[:EXECUTE], known.leaving[EXECUTE:]
        poses, commands = np.array([pose for pose, _ in rest]), np.array([command for _, command in rest])
        leaving = Bent(poses, commands, np.zeros(len(rest), int), -1)
        actions = plan_actions(leaving, 0, target, known.gripper)
        known.gripper = float(actions[-1, 6])
        return actions

    def _is_corrected(self, known: _Rollout) -> bool:
        """Whether the residual acts: where nothing is planned, and from where the approach to the touch begins."""
        if self.residual is None:
            return False
        if known.bent is None:
            return True
        row = known.cursor
        if known.choice is None or row >= len(known.bent.poses):
            return False
        near = known.bent.rows[row] > entry_of(known.choice.motion.path)
        return bool(near) and (self.residual.net.config.after_touch or row <= known.bent.touch)

    def _note(self, request: PlanRequest, text: str) -> None:
        self._notes.setdefault(request.rollout, Counter())[text] += 1


def load_analogy(
    checkpoint: str | Path, device: str = "cpu", batch: int = 1, threads: int | None = None
) -> AnalogyPolicy:
    """Load a checkpoint that `finetune motion=analogy` or `motion=residual` made.

    Args:
        batch, threads: of the policy.

    Raises:
        UserError: there is none, it is of another kind, or its library of motions is damaged.
    """
    loaded = load_checkpoint(checkpoint, device, kind="analogy")
    assert loaded.robot is not None
    camera = loaded.robot.cameras[0].name
    seer = PlaceSeer(loaded.model, load_library(checkpoint, loaded.config.library), camera)
    sizes, residual = {camera: loaded.metadata.images[camera]}, None
    if loaded.model.residual is not None:
        gripper = next(one.name for one in loaded.robot.cameras if one.role == "gripper")
        sizes[gripper] = loaded.metadata.images[gripper]
        residual = Residual(loaded.model.residual, gripper)
    return AnalogyPolicy(loaded.robot, seer, sizes, batch, residual, threads)
