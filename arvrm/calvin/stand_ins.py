"""Which modules stand in for which, and the finders that put them before a script's imports.

Asked for calvin_env or calvin_agent, Python gets: the stand-in of the table below; else, of calvin_agent, the file of
the user's own checkout (what needs neither the simulator nor old packages runs as it is); else a line that names what
is missing. Other packages of CALVIN's old environment have small stand-ins, used only where they are not installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from arvrm.calvin.missing import Missing, MissingName, Placeholder, say
from arvrm.calvin.options import Options, checkout
from arvrm.calvin.options import options as chosen_options

REMEDY = "docs/dropin.md lists what is"


@dataclass(frozen=True)
class StandIn:
    """One module: where its names come from, and which of the original's names can be imported but not used."""

    source: str = ""
    names: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


MODULES = {
    "calvin_env": StandIn(),
    "calvin_env.envs": StandIn(),
    "calvin_env.envs.play_table_env": StandIn("env", ("PlayTableSimEnv", "get_env"), ("run_env",)),
    "calvin_env.envs.tasks": StandIn("tasks", ("Tasks",)),
    "calvin_env.camera": StandIn(),
    "calvin_env.camera.camera": StandIn("cameras", ("Camera",)),
    "calvin_env.camera.static_camera": StandIn("cameras", ("StaticCamera",)),
    "calvin_env.camera.gripper_camera": StandIn("cameras", ("GripperCamera",)),
    "calvin_env.camera.tactile_sensor": StandIn(absent=("TactileSensor",)),
    "calvin_env.robot": StandIn(),
    "calvin_env.robot.robot": StandIn("world", ("Robot",)),
    "calvin_env.scene": StandIn(),
    "calvin_env.scene.play_table_scene": StandIn("world", ("PlayTableScene",)),
    "calvin_env.utils": StandIn(),
    "calvin_env.utils.utils": StandIn(
        "helpers",
        (
            "EglDeviceNotFoundError", "angle_between", "angle_between_angles", "get_egl_device_id", "set_egl_device",
            "timeit", "to_relative_action", "unit_vector", "wxyz_to_xyzw", "xyzw_to_wxyz",
        ),
        (
            "FpsController", "angle_between_quaternions", "count_frames", "get_episode_lengths", "get_git_commit_hash",
            "nano_sleep",
        ),
    ),
    "calvin_agent": StandIn(),
    "calvin_agent.evaluation": StandIn(),
    "calvin_agent.evaluation.multistep_sequences": StandIn(
        "evaluation",
        ("get_sequences",),
        ("check_sequence", "flatten", "get_sequences_for_state", "get_sequences_for_state2", "task_categories", "tasks",
         "update_state", "valid_task"),
    ),
    "calvin_agent.evaluation.utils": StandIn(
        "evaluation",
        (
            "collect_plan", "count_success", "get_env_state_for_initial_condition", "get_log_dir", "print_and_save",
            "temp_seed",
        ),
        (
            "create_tsne", "get_default_model_and_env", "imshow_tensor", "join_vis_lang", "print_task_log",
        ),
    ),
    "calvin_agent.models": StandIn(),
    "calvin_agent.models.calvin_base_model": StandIn("evaluation", ("CalvinBaseModel",)),
    "calvin_agent.utils": StandIn(),
    "calvin_agent.utils.utils": StandIn(
        "helpers",
        ("format_sftp_path", "get_all_checkpoints", "get_checkpoints_for_epochs", "get_last_checkpoint", "timeit"),
        (
            "add_text", "get_git_commit_hash", "get_portion_of_batch_ids", "info_cuda", "info_packages", "nice_print",
            "print_system_env_info",
        ),
    ),
}  # fmt: skip

OTHERS = {
    "gym": StandIn("others", ("Env", "Wrapper", "spaces")),
    "pyhash": StandIn("others", ("fnv1_32",)),
    "pytorch_lightning": StandIn("others", ("seed_everything",)),
    "termcolor": StandIn("others", ("colored",)),
    "moviepy": StandIn(),
    "moviepy.editor": StandIn(absent=("ImageSequenceClip", "VideoFileClip", "concatenate_videoclips", "vfx")),
    "pyrender": StandIn(),
}
"""Packages of CALVIN's old environment that scripts import on top, by what of them evaluation uses."""


def install(options: Options | None = None) -> None:
    """Put the stand-ins before all imports that follow, in this process and in those that it starts.

    Args:
        options: None: those of the process that started this one, else the defaults.

    Raises:
        UserError: calvin_env or calvin_agent were imported before.
    """
    for name in ("calvin_env", "calvin_agent"):
        loaded = sys.modules.get(name)
        if loaded is not None and not isinstance(getattr(loaded, "__loader__", None), _Loader):
            raise Missing(f"{name} was imported before arvrm.calvin was installed; install it first", name=name)
    (options or chosen_options()).store()
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
        sys.meta_path.append(_OthersFinder())
    child = str(Path(__file__).with_name("child"))
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if child not in paths:
        here = str(Path(__file__).parents[2])  # an installed arvrm is found anyway, a checkout by its folder
        os.environ["PYTHONPATH"] = os.pathsep.join([child, *(path for path in paths if path), here])


class _Loader(Loader):
    def __init__(self, name: str, stand_in: StandIn) -> None:
        self.name, self.stand_in = name, stand_in

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        source = importlib.import_module(f"arvrm.calvin.{self.stand_in.source}") if self.stand_in.source else None
        for name in self.stand_in.names:
            setattr(module, name, getattr(source, name))
        for name in self.stand_in.absent:
            setattr(module, name, Placeholder(f"{self.name}.{name}", REMEDY))
        # Scripts find configuration files from here.
        place = _place(self.name) or Path(__file__).with_name(self.name)
        module.__file__ = str(place / "__init__.py" if self.stand_in == StandIn() else place.with_suffix(".py"))
        module.__getattr__ = self._absent  # type: ignore[method-assign]

    def _absent(self, name: str) -> Any:
        raise MissingName(f"{self.name}.{name} is not part of arvrm.calvin; {REMEDY}")


class _OthersLoader(_Loader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        if "." not in self.name:
            uses = f" ({', '.join(self.stand_in.names)})" if self.stand_in.names else ", without content"
            say(f"{self.name} is not installed; a stand-in takes its place{uses}")

    def _absent(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        package = self.name.split(".")[0]
        return Placeholder(f"{self.name}.{name}", f"pip install {package}, in the version that the script needs")


class _Finder(MetaPathFinder):
    """Of calvin_env and calvin_agent it lets nothing pass."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.split(".")[0] not in ("calvin_env", "calvin_agent"):
            return None
        if fullname in MODULES:
            return ModuleSpec(fullname, _Loader(fullname, MODULES[fullname]), is_package=True)
        place = _place(fullname) if fullname.startswith("calvin_agent.") else None
        if place is None:
            raise Missing(f"{fullname} is not part of arvrm.calvin; {REMEDY}", name=fullname)
        found = _of_checkout(fullname, place)
        if found is None:
            raise Missing(f"{fullname} is not part of arvrm.calvin, nor at {place}; {REMEDY}", name=fullname)
        return found


class _OthersFinder(MetaPathFinder):
    """Asked last, for what is not installed."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname in OTHERS:
            return ModuleSpec(fullname, _OthersLoader(fullname, OTHERS[fullname]), is_package=True)
        return None


def remedy(error: ImportError) -> str | None:
    """Return what to do about an import of a script that failed; None: nothing that is known here."""
    package = (error.name or "").split(".")[0]
    if package in ("calvin_env", "calvin_agent"):
        return "" if isinstance(error, Missing) else f"; {REMEDY}"
    if package in ("hydra", "omegaconf"):
        return "; pip install 'arvrm[calvin]'"
    if package in OTHERS:
        return f"; pip install {package}, in the version that the script needs"
    return None


def _place(name: str) -> Path | None:
    """Return where the official module or package lies in the user's checkout; whether it exists is not asked."""
    root = checkout()
    if root is None:
        return None
    top = "calvin_env" if name.split(".")[0] == "calvin_env" else "calvin_models"
    return root.joinpath(top, *name.split("."))


def _of_checkout(name: str, place: Path) -> ModuleSpec | None:
    package = place / "__init__.py"
    if package.is_file():
        return importlib.util.spec_from_file_location(name, package, submodule_search_locations=[str(place)])
    file = place.with_suffix(".py")
    if file.is_file():
        say(f"{name} is the checkout's own: {file}")
        return importlib.util.spec_from_file_location(name, file)
    if not place.is_dir():
        return None
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(place)]
    return spec
