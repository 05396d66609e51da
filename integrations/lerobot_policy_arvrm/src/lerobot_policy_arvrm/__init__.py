"""A LeRobot policy of type "arvrm": a checkpoint of `arvrm finetune`, planned with by arvrm itself.

LeRobot imports this module when it looks for plugins; that registers the configuration, and LeRobot finds the policy
and its processors beside it by their names.
"""

from lerobot_policy_arvrm.configuration_arvrm import ArvrmConfig
from lerobot_policy_arvrm.modeling_arvrm import ArvrmPolicy
from lerobot_policy_arvrm.processor_arvrm import make_arvrm_pre_post_processors

__all__ = ["ArvrmConfig", "ArvrmPolicy", "make_arvrm_pre_post_processors"]
