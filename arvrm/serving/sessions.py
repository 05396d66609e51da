"""One session: what a policy must know of the observations before, and what is left of its plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from arvrm.interface import Observation, PlanRequest, PolicySpec, UserError
from arvrm.remote import Codec, MessageError
from arvrm.robots.calvin import apply_relative_action

_MOST_STEPS = 10**7


class Contract:
    """What all sessions of a server have in common.

    Args:
        codec: says what messages hold.
        spec: the policy's.
        steps: actions of an answer; None: all of a plan, or 1 where the policy looks back to steps within it.

    Raises:
        UserError: the conventions leave out what the policy observes, or `steps` does not divide a plan.
    """

    def __init__(self, codec: Codec, spec: PolicySpec, steps: int | None) -> None:
        self.codec, self.spec = codec, spec
        whole = spec.execute_steps
        looks_within = any(offset % whole for offset in spec.history_offsets)
        self.steps = steps or codec.conventions.steps_per_answer or (1 if looks_within else whole)
        if whole % self.steps:
            raise UserError(
                f"serve: steps_per_answer {self.steps} does not divide the {whole} steps of a plan; change it, or "
                "execute_steps"
            )
        if codec.action.relative_to == "measured" and self.steps > 1:
            raise UserError(f"{codec.place}: a motion from where the arm is measured needs steps_per_answer 1")
        absent = codec.conventions.absent
        self.pose = absent.get("target_pose") if isinstance(absent.get("target_pose"), str) else None
        self.filling = {name: value for name, value in absent.items() if not isinstance(value, str)}
        self._check()

    def _check(self) -> None:
        """Refuse conventions that leave something unsaid, before anybody connects."""
        codec = self.codec
        cameras = [name for name in self.spec.image_sizes if name not in codec.conventions.cameras]
        if cameras:
            raise UserError(
                f"{codec.place}: no camera {cameras[0]!r}, which the policy looks through; say how it is sent"
            )
        state = codec.robot.example(np.random.default_rng(0))
        example = {name: np.full(shape, np.nan) for name, shape in codec.robot.observed.items()}
        for named in codec.state.values():
            for part in named:
                part.write(example, codec.robot, part.read(state, codec.robot))
        for name, values in self.filled(Observation(example), None).state.items():
            if np.isnan(values).any():
                missing = np.flatnonzero(np.isnan(values.ravel()))
                span = name if missing.size == values.size else f"{name}[{missing[0]}:{missing[-1] + 1}]"
                raise UserError(
                    f"{codec.place}: no message has {span}, which the policy observes; say what it is (absent)"
                )

    def filled(self, observation: Observation, target: np.ndarray | None) -> Observation:
        """Return an observation with what conventions put in the place of what is not sent.

        Args:
            target: where the controller aims, by the actions answered; None: where the arm is.
        """
        state = dict(observation.state)
        for name, value in self.filling.items():
            array, _, span = name.partition("[")
            numbers = state.get(array)
            if numbers is None:
                raise UserError(f"{self.codec.place}: absent.{name}: {self.codec.robot.name} does not observe it")
            start, _, stop = span.rstrip("]").partition(":")
            try:
                numbers.reshape(-1)[int(start or 0) : int(stop) if stop else None] = value
            except ValueError as error:
                raise UserError(f"{self.codec.place}: absent.{name}: write it as NAME or NAME[a:b]") from error
        if self.pose is not None:
            measured = state["robot_obs"][:6].copy()
            state["target_pose"] = measured if target is None or self.pose == "measured" else target.copy()
        return Observation(state, observation.images)


class Session:
    """A client's session; what it says between resets is one rollout.

    Args:
        rollouts: gives out numbers that no other session has.
    """

    def __init__(self, contract: Contract, rollouts: Iterator[int]) -> None:
        self.contract, self.rollouts = contract, rollouts
        self.ended: list[int] = []
        """Rollouts that the policy may forget."""
        self.rollout = next(rollouts)
        self._clear()

    def reset(self) -> None:
        """Begin anew: nothing of what was said before counts any more."""
        self.ended.append(self.rollout)
        self.rollout = next(self.rollouts)
        self._clear()

    def _clear(self) -> None:
        self.target: np.ndarray | None = None
        self._begin("")

    def _begin(self, instruction: str) -> None:
        self.instruction = instruction
        self.frames: dict[int, Observation] = {}
        self.plan: tuple[int, np.ndarray] | None = None
        self.step, self.next, self.count = -1, 0, 0

    def observe(self, message: dict[str, Any]) -> None:
        """Take an observation that nothing is to be answered to, of the step that it names.

        Raises:
            MessageError: it is malformed.
        """
        step = _whole(message, "arvrm/step", 0, _MOST_STEPS)
        if step is None:
            raise MessageError("arvrm/step: missing; an observation without an answer says its step")
        instruction, seen = self.contract.codec.observation(message)
        if instruction != self.instruction:
            self._begin(instruction)
        if len(self.frames) > 4 * (self.contract.spec.execute_steps - self.contract.spec.history_offsets[0] + 1):
            raise MessageError("more observations than the policy looks back to; ask for actions")
        self.frames[step] = self.contract.filled(seen, self.target)

    def request(self, message: dict[str, Any], restart: bool = False) -> PlanRequest | None:
        """Take an observation; return what to ask the policy before `answer`, None if the plan there is goes on.

        Args:
            restart: an instruction begins here, also if it is the same; where the controller aims is forgotten.

        Raises:
            MessageError: it is malformed; the session is as it was before.
        """
        contract, spec = self.contract, self.contract.spec
        instruction, seen = contract.codec.observation(message)
        step = _whole(message, "arvrm/step", 0, _MOST_STEPS)
        count = _whole(message, "arvrm/steps", 1, spec.execute_steps) or contract.steps
        begins = restart or instruction != self.instruction or step == 0
        step = step if step is not None else (0 if begins else self.next)
        if begins and step:
            raise MessageError(f"arvrm/step: {step} for a new instruction, which begins with 0")
        if step < self.step and not begins:
            raise MessageError(f"arvrm/step: {step} after {self.step}; reset the session to go back")
        target = None if restart else self.target
        frames = (
            {} if begins else {at: frame for at, frame in self.frames.items() if at >= step + spec.history_offsets[0]}
        )
        frames[step] = contract.filled(seen, target)
        end = None if begins or self.plan is None else self.plan[0] + spec.execute_steps
        goes_on = end is not None and step < end
        if goes_on and end is not None and step + count > end:
            raise MessageError(f"arvrm/steps: {count} from step {step} go beyond the plan; ask for fewer")
        looked = [max(0, step + offset) for offset in spec.history_offsets]
        missing = [at for at in looked if at not in frames]
        if missing and not goes_on:
            raise MessageError(
                f"no observation of step {missing[0]}, to which the policy looks back from {step}; send one each step "
                "(serve --steps-per-answer 1)"
            )
        if begins:
            self._begin(instruction)
        self.frames, self.target, self.step, self.count = frames, target, step, count
        if goes_on:
            return None
        return PlanRequest(instruction, tuple(frames[at] for at in looked), rollout=self.rollout, step=step)

    def answer(self, chunk: np.ndarray | None) -> np.ndarray:
        """Return the actions of the step requested, as the wire has them.

        Args:
            chunk: what the policy has planned for it; None: nothing was asked of it.
        """
        contract = self.contract
        if chunk is not None:
            self.plan = (self.step, np.asarray(chunk)[: contract.spec.execute_steps])
        assert self.plan is not None
        start = self.step - self.plan[0]
        actions = self.plan[1][start : start + self.count]
        seen = self.frames[self.step]
        sent = contract.codec.actions_sent(actions, seen)
        self.next = self.step + self.count
        if contract.pose == "tracked":
            target = np.asarray(seen.state["target_pose"], np.float64)
            for action in actions:
                target = apply_relative_action(target, action)
            self.target = target
        return sent


def _whole(message: dict[str, Any], key: str, least: int, most: int) -> int | None:
    value = message.get(key)
    if value is None:
        return None
    if isinstance(value, np.integer):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise MessageError(f"{key}: {str(value)[:30]!r}; send a whole number from {least} to {most}")
    return value
