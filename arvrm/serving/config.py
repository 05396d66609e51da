"""What is served, to whom, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from arvrm import plugins
from arvrm.config import bounded, check_bounds


@dataclass(frozen=True)
class ServeConfig:
    """What is served, and where.

    Attributes:
        checkpoint: folder of the learnt policy. index: retrieval index, if the policy retrieves at rollout.
        policy: checkpoint, or package.module:factory of a policy of one's own (docs/extending.md), called with this
            configuration.
        robot: package.module:object of a robot that only one's own code knows; None: those that are known by name.
        protocol: openpi or vla-eval.
        conventions: what clients send and want (docs/remote.md): a JSON file or a name that arvrm knows; None: with
            openpi the robot's own arrays and actions, with vla-eval those of its CALVIN benchmark.
        steps_per_answer: actions of an answer, after which clients ask again; None: as the conventions say, else all of
            a plan, or 1 where the policy looks back to steps within it.
        host: address to listen at; the default is reached from this machine only. There is no password.
        port: 0: any that is free; which one is printed.
        sessions: at most so many at once; one more is refused (503).
        message_mib: at most so many MiB a message.
        wait_ms: how long a request waits for others to be planned with.
        drain_seconds: after SIGTERM new sessions are refused, and those there are may go on for so long.
        execute_steps: actions of a chunk before planning again; None: the checkpoint's own.
        seed: for policies of one's own that draw.
        device: cpu or cuda. batch: requests that the policy plans for at once; actions are equal to those of
            `evaluate` to the bit where both have the same number.
        threads: torch threads that plan.
    """

    checkpoint: str | None = None
    index: str | None = None
    policy: str = "checkpoint"
    robot: str | None = None
    protocol: Literal["openpi", "vla-eval"] = "openpi"
    conventions: str | None = None
    steps_per_answer: int | None = bounded(None, least=1, most=10**4)
    host: str = "127.0.0.1"
    port: int = bounded(8000, least=0, most=65535)
    sessions: int = bounded(64, least=1, most=4096)
    message_mib: int = bounded(16, least=1, most=1024)
    wait_ms: float = bounded(2.0, least=0, most=10_000)
    drain_seconds: float = bounded(10.0, least=0, most=86400)
    execute_steps: int | None = bounded(None, least=1, most=10**4)
    seed: int = bounded(0, least=0)
    device: str = "cpu"
    batch: int = bounded(4, least=1, most=10**4)
    threads: int = bounded(1, least=1, most=1024)

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.policy != "checkpoint" and not plugins.is_path(self.policy):
            raise ValueError(f"policy {self.policy!r} is neither checkpoint nor package.module:factory")
