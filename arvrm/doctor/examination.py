"""What `arvrm sim doctor` looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from arvrm.config import bounded, check_bounds
from arvrm.doctor.demonstrations import examine_demonstrations, load_demonstrations
from arvrm.doctor.findings import Finding
from arvrm.doctor.machine import examine_machine, usual_recordings
from arvrm.doctor.replay import examine_policy
from arvrm.interface import Policy, UserError


@dataclass(frozen=True)
class DoctorConfig:
    """What to look at.

    Attributes:
        recordings: recordings (.npz) of the official simulator, or folders of them; none: the folder that the
            environment variable ARVRM_GOLDEN names, if it does.
        calvin_root: an official checkout; null: the environment variable CALVIN_ROOT's.
        most: recordings to replay at most; those with images come first.
        store: episode store of CALVIN's robot, whose demonstrations are replayed through the policy.
        policy: checkpoint, or whatever else `evaluate --policy` takes and plans.
        checkpoint: folder of the learnt policy. index: retrieval index, if the policy retrieves at rollout.
        conventions: what a policy's server wants and answers: a JSON file, or a name that arvrm knows (docs/remote.md).
        answer_seconds: that a server may take to answer.
        execute_steps: actions of a chunk executed before planning again; null: the policy's own.
        device: cpu or cuda, where the policy plans.
        episodes: demonstrations to replay at most, spread over the store.
        machine: look at the machine; false: at demonstrations and policy only.
        json: print JSON in place of the page.
    """

    recordings: tuple[str, ...] = ()
    calvin_root: str | None = None
    most: int = bounded(24, least=1, most=10**6)
    store: str | None = None
    policy: str | None = None
    checkpoint: str | None = None
    index: str | None = None
    conventions: str | None = None
    answer_seconds: float = bounded(60.0, above=0, most=86400)
    execute_steps: int | None = bounded(None, least=1, most=10**4)
    device: str = "cpu"
    episodes: int = bounded(12, least=1, most=10**4)
    machine: bool = True
    json: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.plans and self.store is None:
            raise UserError("sim doctor: a policy is tested on demonstrations; pass --store DIR")
        if self.policy in ("expert", "random"):
            raise UserError(f"sim doctor: policy {self.policy!r} acts inside its world; name one that plans")

    @property
    def plans(self) -> bool:
        """Whether there is a policy to look at."""
        return self.policy is not None or self.checkpoint is not None


def examine(config: DoctorConfig, make_policy: Callable[[], Policy] | None = None) -> Iterator[Finding]:
    """Yield all findings.

    Args:
        make_policy: makes the policy that the configuration names.
    """
    if config.machine:
        yield from examine_machine(config.recordings or usual_recordings(), config.calvin_root, config.most)
    if config.store is None:
        return
    demonstrations = load_demonstrations(config.store, config.episodes)
    yield from examine_demonstrations(config.store, demonstrations)
    if make_policy is not None:
        yield from examine_policy(make_policy(), demonstrations)
