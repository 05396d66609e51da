"""Several stores made one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arvrm.episodes.database import check_is_store, close_database
from arvrm.episodes.store import EpisodeStore
from arvrm.episodes.writer import EpisodeWriter
from arvrm.files import replacing_folder
from arvrm.interface import UserError
from arvrm.robots.described import unlike

_EPISODES_AT_ONCE = 64  # episodes of a merge in one transaction


def merge_stores(inputs: Sequence[str | Path], output: str | Path, overwrite: bool = False) -> EpisodeStore:
    """Copy the episodes of several stores into one, records unchanged: as if they had been written there.

    The manifest keeps each input's manifest under `merged`. The output appears under its name when it is whole.

    Raises:
        UserError: no input, an id in two inputs, different JPEG quality, two robots, or the output exists.
    """
    if not inputs:
        raise UserError(f"{output}: nothing to merge; name at least one store")
    stores = [EpisodeStore(path) for path in inputs]
    output = Path(output)
    if any(output.resolve() == Path(path).resolve() for path in inputs):
        raise UserError(f"{output}: is also an input; give the merged store another path")
    owner: dict[str, Path] = {}
    for store in stores:
        for id in store.ids:
            if id in owner:
                raise UserError(f"{store.path}: episode {id!r} is also in {owner[id]}; make one again with --prefix")
            owner[id] = store.path
    jpeg = stores[0].manifest["jpeg"]
    for store in stores[1:]:
        other = store.manifest["jpeg"]
        if other != jpeg:
            raise UserError(f"{store.path}: JPEG {other} but {stores[0].path} has {jpeg}; make them equal")
    robot, holder, described = "", stores[0], None
    for store in stores:
        if store.robot_name and robot and store.robot_name != robot:
            place = f"{store.path}: is of robot {store.robot_name!r}, {holder.path} of {robot!r}"
            raise UserError(f"{place}; merge the stores of one robot")
        if store.robot_name and robot and (description := store.manifest.get("robot_description")) != described:
            other = unlike(description, described)
            raise UserError(
                f"{store.path}: describes robot {robot!r} otherwise than {holder.path} ({other}); convert both with "
                "one description (--robot FILE.json)"
            )
        if store.robot_name:
            robot, holder, described = store.robot_name, store, store.manifest.get("robot_description")
    own = ("format", "version", "robot", "robot_description")
    manifest: dict[str, Any] = {
        "merged": [{k: v for k, v in store.manifest.items() if k not in own} for store in stores]
    }
    if described is not None:
        manifest["robot_description"] = described
    with replacing_folder(output, overwrite, check_is_store) as partial:
        with EpisodeWriter(partial, manifest, jpeg_quality=jpeg["quality"], resumable=False) as writer:
            for store in stores:
                for start in range(0, len(store), _EPISODES_AT_ONCE):
                    writer.append_encoded(*(store.encoded(id) for id in store.ids[start : start + _EPISODES_AT_ONCE]))
        close_database(output)  # of the store before
    return EpisodeStore(output)
