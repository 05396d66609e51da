"""The simulator: CALVIN's play table without CALVIN's dependencies. Importing it registers `arvrm/PlayTable-v0`."""

import gymnasium

from arvrm.sim.bullet import warn_of_two

if "arvrm/PlayTable-v0" not in gymnasium.registry:
    gymnasium.register(id="arvrm/PlayTable-v0", entry_point="arvrm.sim.env:PlayTableEnv")

warn_of_two()
