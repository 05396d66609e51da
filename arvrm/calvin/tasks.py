"""calvin_env.envs.tasks: an oracle made from new_playtable_tasks.yaml, over the predicates of `arvrm.sim.tasks`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

from arvrm.calvin.missing import Missing
from arvrm.calvin.settings import plain
from arvrm.sim import tasks as predicates

Info = Mapping[str, Any]
Judged = dict[str, Any]


class Tasks:
    """Decides which tasks were done between two infos of `PlayTableSimEnv.get_info`.

    Args:
        tasks: name -> [function, its arguments]; the functions are this class's methods, or a subclass's.

    Raises:
        Missing: a task names a function that there is not.
    """

    def __init__(self, tasks: Mapping[str, Any]) -> None:
        self.tasks: dict[str, Callable[..., bool]] = {}
        for name, (function, *arguments) in plain(tasks).items():
            if not hasattr(self, function):
                raise Missing(f"task {name}: function {function!r} of calvin_env's Tasks is not part of arvrm.calvin")
            self.tasks[name] = functools.partial(getattr(self, function), *arguments)
        self.task_to_id = {name: number for number, name in enumerate(self.tasks)}
        self.id_to_task = dict(enumerate(self.tasks))

    @property
    def num_tasks(self) -> int:
        return len(self.tasks)

    def get_task_info(self, start_info: Info, end_info: Info) -> set[str]:
        """Return the tasks that were done."""
        return self.get_task_info_for_set(start_info, end_info, self.tasks)

    def get_task_info_for_set(self, start_info: Info, end_info: Info, task_filter: Collection[str]) -> set[str]:
        """Return those of `task_filter` that were done."""
        return {
            name
            for name, done in self.tasks.items()
            if name in task_filter and done(start_info=start_info, end_info=end_info)
        }

    # The functions that configuration files name. Objects: block_red, ...; distances in m, angles in degrees.

    @staticmethod
    def rotate_object(
        obj_name: str, z_degrees: float, x_y_threshold: float = 30, z_threshold: float = 180,
        movement_threshold: float = 0.1, *, start_info: Info, end_info: Info,
    ) -> bool:  # fmt: skip
        return predicates.rotated(
            judged(start_info), judged(end_info), _block(obj_name), z_degrees, x_y_threshold, z_threshold,
            movement_threshold,
        )  # fmt: skip

    @staticmethod
    def push_object(obj_name: str, x_direction: float, y_direction: float, start_info: Info, end_info: Info) -> bool:
        if bool(x_direction) == bool(y_direction):
            raise ValueError(f"push_object: one of x {x_direction} and y {y_direction} must be 0, the other not")
        distance, axis = (x_direction, 0) if x_direction else (y_direction, 1)
        return predicates.pushed(judged(start_info), judged(end_info), _block(obj_name), distance, axis)

    @staticmethod
    def lift_object(
        obj_name: str, z_direction: float, surface_body: str | None = None, surface_link: str | None = None, *,
        start_info: Info, end_info: Info,
    ) -> bool:  # fmt: skip
        return predicates.lifted(
            judged(start_info), judged(end_info), _block(obj_name), z_direction, surface_body, surface_link
        )

    @staticmethod
    def place_object(dest_body: str, dest_link: str | None = None, *, start_info: Info, end_info: Info) -> bool:
        return predicates.placed(judged(start_info), judged(end_info), dest_body, dest_link)

    @staticmethod
    def push_object_into(
        obj_name: str | list[str], src_body: str, src_link: str, dest_body: str, dest_link: str,
        start_info: Info, end_info: Info,
    ) -> bool:  # fmt: skip
        names = [obj_name] if isinstance(obj_name, str) else obj_name
        start, now = judged(start_info), judged(end_info)
        source, target = (src_body, src_link), (dest_body, dest_link)
        return any(predicates.pushed_into(start, now, _block(name), source, target) for name in names)

    @staticmethod
    def move_door_rel(joint_name: str, threshold: float, start_info: Info, end_info: Info) -> bool:
        return predicates.moved(_doors(start_info), _doors(end_info), joint_name, threshold)

    @staticmethod
    def toggle_light(light_name: str, start_state: int, end_state: int, start_info: Info, end_info: Info) -> bool:
        return predicates.switched(_lights(start_info), _lights(end_info), light_name, start_state, end_state)

    @staticmethod
    def stack_objects(max_vel: float = 1, *, start_info: Info, end_info: Info) -> bool:
        return predicates.stacked(judged(start_info), judged(end_info), max_vel)

    @staticmethod
    def unstack_objects(max_vel: float = 1, *, start_info: Info, end_info: Info) -> bool:
        return predicates.unstacked(judged(start_info), judged(end_info), max_vel)


def judged(info: Info) -> Judged:
    """Return what the predicates read of blocks and contacts, as `PlayTableEnv.task_info` has it."""
    scene, robot = info["scene_info"], info["robot_info"]
    bodies = {robot["uid"]: "robot"}
    links: dict[int, dict[int, str]] = {}
    for name, fixed in scene["fixed_objects"].items():
        bodies[fixed["uid"]] = name
        links[fixed["uid"]] = {number: link for link, number in fixed.get("links", {}).items()}
    bodies.update({block["uid"]: _block(name) for name, block in scene["movable_objects"].items()})

    def touched(contact: tuple) -> tuple[str, Any]:
        body, link = contact[2], contact[4]
        return bodies.get(body, f"body {body}"), links.get(body, {}).get(link, link)

    return {
        "robot_contacts": frozenset(touched(contact)[0] for contact in robot["contacts"]),
        "blocks": {
            _block(name): {
                "position": block["current_pos"],
                "orientation": block["current_orn"],
                "linear_velocity": block["current_lin_vel"],
                "angular_velocity": block["current_ang_vel"],
                "contacts": frozenset(map(touched, block["contacts"])),
            }
            for name, block in scene["movable_objects"].items()
        },
    }


def _block(name: str) -> str:
    return name.removeprefix("block_")


def _doors(info: Info) -> dict[str, float]:
    return {name: door["current_state"] for name, door in info["scene_info"]["doors"].items()}


def _lights(info: Info) -> dict[str, int]:
    return {name: light["logical_state"] for name, light in info["scene_info"]["lights"].items()}
