"""When a clip or a demonstration touches, and when it is done, from what a real one has."""

from arvrm.moments.find import Moments, episode_moments, moments_of_store, read_moments
from arvrm.moments.signals import Signals, hand_signals, robot_signals

__all__ = ["Moments", "Signals", "episode_moments", "hand_signals", "moments_of_store", "read_moments", "robot_signals"]
