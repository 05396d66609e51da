"""Reads all of a store, and says what of it is damaged or lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from arvrm.episodes.schema import EpisodeHeader
from arvrm.episodes.store import EpisodeStore
from arvrm.interface import UserError

_LISTED = 8


def damage(store: EpisodeStore) -> Iterator[str]:
    """Read every record of a store; yield a line for each episode that is not whole, and for what fits no episode.

    Arrays are tested by their checksums, images decoded; arrays of floats may hold NaN only where the robot's may.
    """
    try:
        ids = store.ids
    except UserError as error:
        yield f"its list of episodes cannot be read, so that none is: {error}"
        return
    whole = True
    for id in ids:
        lost = list(_lost(store, id))
        whole = whole and not lost
        if lost:
            yield f"episode {id!r}: {'; '.join(lost)}"
    if not whole:
        return  # counts cannot fit
    try:
        store.verify()
    except UserError as error:
        yield str(error).removeprefix(f"{store.path}: ")


def _lost(store: EpisodeStore, id: str) -> Iterator[str]:
    try:
        header = store.header(id)
    except UserError as error:
        yield f"lost, as its header is ({_reason(error)})"
        return
    if header.id != id:
        yield f"its header is that of {header.id!r}"
    for name in header.arrays:
        try:
            store.arrays(id, [name])
        except UserError as error:
            yield f"array {name} is lost ({_reason(error)})"
    for camera in header.cameras:
        frames = _lost_frames(store, header, camera)
        if frames:
            listed = ", ".join(map(str, frames[:_LISTED])) + (", ..." if len(frames) > _LISTED else "")
            yield f"{camera}: {len(frames)} of {header.frames} frames are lost ({listed})"


def _lost_frames(store: EpisodeStore, header: EpisodeHeader, camera: str) -> list[int]:
    for start in range(0, header.frames, 64):
        try:
            store.frames(header.id, camera, np.arange(start, min(start + 64, header.frames)))
        except UserError:
            break
    else:
        return []
    lost = []
    for row in range(header.frames):
        with suppress(UserError):
            store.frames(header.id, camera, [row])
            continue
        lost.append(row)
    return lost


def _reason(error: UserError) -> str:
    """What is wrong, without the place and the remedy that `damage` says itself."""
    return str(error).split(": ")[-1].split(";")[0]
