"""Policy, world and chains of an evaluation, from the names in its configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from arvrm import plugins, processes, robots
from arvrm.evaluation.config import EvaluateConfig
from arvrm.evaluation.jobs import make_jobs, own_jobs
from arvrm.evaluation.playtable import PlayTableWorld
from arvrm.interface import Job, Policy, PolicySpec, UserError, World, WorldFactory
from arvrm.remote import Found, RemotePolicy, ask_who, is_address


@dataclass(frozen=True)
class Chosen:
    """What an evaluation rolls out.

    Attributes:
        policy_factory: None: expert or random, which act inside the workers.
        own_chains: the jobs are the world's own.
        policy_identity, world_identity: what identifies them, for the results and --resume; None: nothing does.
    """

    policy_factory: Callable[[], Policy] | None
    policy_identity: dict[str, Any] | None
    make_world: WorldFactory
    world_identity: dict[str, str] | None
    jobs: list[Job]
    own_chains: bool = False


@dataclass(frozen=True)
class NamedWorld:
    """A world factory by its name, which each worker process looks up itself."""

    name: str

    def __call__(self, config: EvaluateConfig, spec: PolicySpec) -> World:
        return plugins.load(self.name, "--world")(config, spec)


def choose(
    config: EvaluateConfig,
    policy_factory: Callable[[], Policy] | None,
    policy_identity: dict[str, Any] | None,
    make_world: WorldFactory | None,
    jobs: list[Job] | None,
) -> Chosen:
    """Complete what the caller gives by what the configuration names.

    Raises:
        UserError: something that is named cannot be loaded, or an option does not fit it.
    """
    if config.robot:
        robots.chosen(config.robot)
    world_identity, own = None, None
    if make_world is None and config.world is None:
        make_world = PlayTableWorld
    elif make_world is None:
        assert config.world is not None
        own = getattr(_callable(config.world, "--world"), "jobs", None)
        make_world, world_identity = NamedWorld(config.world), plugins.identity(config.world, "--world")
    if policy_factory is None and is_address(config.policy):
        found = ask_who(config.policy, config.conventions, config.answer_seconds)
        policy_factory, policy_identity = _remote_policy(config, found), policy_identity or found.identity
    elif policy_factory is None and config.plans:
        if config.policy == "checkpoint":
            raise UserError("evaluate: policy = 'checkpoint' needs a checkpoint; pass --checkpoint DIR")
        policy_factory = named_policy(config)
        policy_identity = policy_identity or plugins.identity(config.policy, "--policy")
    if jobs is None:
        jobs = make_jobs(config) if own is None else own_jobs(config, own)
    return Chosen(policy_factory, policy_identity, make_world, world_identity, jobs, own is not None)


def _callable(name: str, flag: str) -> Any:
    found = plugins.load(name, flag)
    if not callable(found):
        raise UserError(f"{flag} {name}: is a {type(found).__name__}; name a class or function (docs/extending.md)")
    return found


def _remote_policy(config: EvaluateConfig, found: Found) -> Callable[[], Policy]:
    return lambda: RemotePolicy(found, config.answer_seconds, config.execute_steps, config.batch)


def named_policy(config: EvaluateConfig) -> Callable[[], Policy]:
    """Return what makes the policy that `config.policy` names as package.module:factory, or by a server's address."""
    if is_address(config.policy):
        return _remote_policy(config, ask_who(config.policy, config.conventions, config.answer_seconds))
    factory = _callable(config.policy, "--policy")

    def make() -> Policy:
        policy = factory(replace(config, device=processes.device(config.device)))
        if not isinstance(getattr(policy, "spec", None), PolicySpec) or not hasattr(policy, "plan"):
            raise UserError(f"--policy {config.policy}: gave no policy with `spec` and `plan` (docs/extending.md)")
        return policy

    return make
