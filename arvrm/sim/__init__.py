"""The simulator: CALVIN's play table without CALVIN's dependencies. Importing it registers `arvrm/PlayTable-v0`."""

import gymnasium

if "arvrm/PlayTable-v0" not in gymnasium.registry:
    gymnasium.register(id="arvrm/PlayTable-v0", entry_point="arvrm.sim.env:PlayTableEnv")
