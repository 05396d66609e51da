"""A trained checkpoint as a policy: observations in, chunks of actions out."""

from arvrm.policy.clips import RolloutClips
from arvrm.policy.frame_cache import FrameCache
from arvrm.policy.planning import CheckpointPolicy, load_policy, policy_factory

__all__ = ["CheckpointPolicy", "FrameCache", "RolloutClips", "load_policy", "policy_factory"]
