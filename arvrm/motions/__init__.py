"""Motions that were seen, kept to be carried over to other places, and the map from a hand to where a robot acts."""

from arvrm.motions.camera import fit_camera, read_camera
from arvrm.motions.carried import Carrier, Track
from arvrm.motions.hand_map import HandMap, fit_map, fit_opening, predicted_gaps
from arvrm.motions.library import Motion, load_library, save_library
from arvrm.motions.path import Bent, Goal, Path, bend, path_of
from arvrm.motions.phase import Phased
from arvrm.motions.plan import Plan, PlanView, onward, plan_view, whole
from arvrm.motions.retrieve import TERMS, RetrieveConfig, Retriever

__all__ = [
    "TERMS",
    "Bent",
    "Carrier",
    "Goal",
    "HandMap",
    "Motion",
    "Path",
    "Phased",
    "Plan",
    "PlanView",
    "RetrieveConfig",
    "Retriever",
    "Track",
    "bend",
    "fit_camera",
    "fit_map",
    "fit_opening",
    "load_library",
    "onward",
    "path_of",
    "plan_view",
    "predicted_gaps",
    "read_camera",
    "save_library",
    "whole",
]
