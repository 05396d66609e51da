"""`arvrm serve`: from the configuration to a server that has ended well."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from arvrm import plugins, processes, robots
from arvrm.interface import Policy, PolicySpec, UserError
from arvrm.remote import Codec, load_conventions, native_conventions
from arvrm.remote.links import needed
from arvrm.serving import metadata
from arvrm.serving.batches import Batches
from arvrm.serving.config import ServeConfig
from arvrm.serving.protocols import hello
from arvrm.serving.server import Server
from arvrm.serving.sessions import Contract


def serve(config: ServeConfig) -> int:
    """Serve a policy until SIGTERM or SIGINT. The address goes to stdout when it can be reached.

    Raises:
        UserError: the policy cannot be loaded, conventions do not fit it, or the address cannot be had.
    """
    server = make_server(config)
    asyncio.run(server.run())
    batches = server.batches
    print(f"serve: ended; {server.answered} messages, {batches.plans} plans in {batches.calls} calls", file=sys.stderr)
    return 0


def make_server(config: ServeConfig, ready: Callable[[str], None] | None = None) -> Server:
    """Load the policy and return a server that is about to run.

    Args:
        ready: called with the address when it can be reached; None: it is printed.

    Raises:
        UserError: the policy cannot be loaded, or conventions do not fit it.
    """
    needed("serve")
    if config.robot:
        robots.chosen(config.robot)
    make, identity = _policy(config)
    batches = Batches(make, config.wait_ms / 1000)
    spec = batches.policy.spec
    if spec.robot is None:
        raise UserError("serve: this policy moves any robot; one that is served says which (spec.robot)")
    robot = getattr(batches.policy, "robot", None) or robots.named(spec.robot)  # a checkpoint has numbers of its own
    batches.robot = robot
    preset = {"openpi": None, "vla-eval": "vla-eval-calvin"}[config.protocol]
    name = config.conventions or preset
    conventions = load_conventions(name) if name else native_conventions(robot, spec)
    if conventions.protocol != config.protocol:
        raise UserError(
            f"conventions {conventions.name}: are for {conventions.protocol}, --protocol is {config.protocol}"
        )
    contract = Contract(Codec(conventions, robot, spec.image_sizes), spec, config.steps_per_answer)
    said = {"arvrm": metadata.own(contract, identity)}
    if config.protocol == "openpi":
        said = metadata.roboarena(conventions, spec, robot) | said
    else:
        said = hello(metadata.vla_eval(conventions, spec) | said)
    return Server(config, batches, contract, said, ready or _ready(config, contract))


def _ready(config: ServeConfig, contract: Contract) -> Callable[[str], None]:
    def ready(address: str) -> None:
        looks = ", ".join(f"{name} {size} px" for name, size in contract.spec.image_sizes.items())
        print(
            f"serve: {contract.spec.robot} by {config.protocol}, conventions {contract.codec.conventions.name}, "
            f"{contract.steps} actions an answer; the policy sees {looks or 'no images'}",
            file=sys.stderr,
            flush=True,
        )
        print(address, flush=True)

    return ready


def _policy(config: ServeConfig) -> tuple[Callable[[], Policy], dict[str, Any]]:
    """Return what makes the policy, and what identifies it."""
    if config.policy == "checkpoint":
        if config.checkpoint is None:
            raise UserError("serve: no policy given; pass --checkpoint DIR, or --policy package.module:factory")
        from arvrm.policy import policy_factory

        device = processes.device(config.device)
        return policy_factory(
            config.checkpoint, device, config.index, config.execute_steps, config.batch, config.threads
        )
    factory = plugins.load(config.policy, "--policy")

    def make() -> Policy:
        policy = factory(config)
        if not isinstance(getattr(policy, "spec", None), PolicySpec) or not hasattr(policy, "plan"):
            raise UserError(f"--policy {config.policy}: gave no policy with `spec` and `plan` (docs/extending.md)")
        return policy

    return make, plugins.identity(config.policy, "--policy")
