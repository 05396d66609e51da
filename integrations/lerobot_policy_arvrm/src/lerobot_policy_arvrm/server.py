"""LeRobot's own policy server, for its robot client, with policies of type "arvrm" among those it takes.

`python -m lerobot_policy_arvrm.server --host=127.0.0.1 --port=8080`: as `lerobot.async_inference.policy_server`, which
looks for no plugins and has a list of the types it takes. It speaks pickle: whoever reaches the port runs code here.
"""

from __future__ import annotations

from lerobot.async_inference.constants import SUPPORTED_POLICIES
from lerobot.async_inference.policy_server import serve

from lerobot_policy_arvrm.configuration_arvrm import ArvrmConfig

TYPE = ArvrmConfig.get_choice_name(ArvrmConfig)
if TYPE not in SUPPORTED_POLICIES:
    SUPPORTED_POLICIES.append(TYPE)

if __name__ == "__main__":
    serve()
