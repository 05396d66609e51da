"""A robot's description out of a LeRobot data set's features and numbers; what they do not tell is asked for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from arvrm.config import bounded, check_bounds, to_dict
from arvrm.files import claimed, json_kind, read_json, write_json
from arvrm.interface import UserError
from arvrm.robots.described import FORMAT, CameraView, Description, Numbers, fits_as_role, lines
from arvrm.sources.lerobot.dataset import DataSet
from arvrm.sources.pipeline import LeftOut

_PREFIXES = ("observation.images.", "observation.image.", "observation.", "images.")
_SAME = 0.01
"""Share of a range by which meta/stats.json and the data may differ without a word."""
_CORE = 0.1
"""A range is doubtful of whose numbers all but one in a thousand lie within so small a part."""


@dataclass(frozen=True)
class Facts:
    """What a data set does not tell of its robot; null: not said.

    Attributes:
        name: of the robot; null: the data set's robot_type, or its folder's name.
        state, action: feature, or features that are joined in this order; null: observation.state and action.
        cameras: features that are used; null: all, depth maps left out.
        static: the camera that overlooks the scene, by feature or by its last part; of one camera alone: that one.
        relative: actions move what `frame` says; false: they are absolute.
        binary: how many of the action's numbers, the last ones, have two values only; 0: none.
        frame: in which frame, and of what, actions are ("joint targets", "hand pose in the base's frame, Euler xyz").
        units: of the state, one for all or one each; "unknown" is an answer.
        action_units: of the action; null: those of the state where both have the same names.
    """

    name: str | None = None
    state: tuple[str, ...] | str | None = None
    action: tuple[str, ...] | str | None = None
    cameras: tuple[str, ...] | str | None = None
    static: str | None = None
    relative: bool | None = None
    binary: int | None = bounded(None, least=0, most=10_000)
    frame: str | None = None
    units: tuple[str, ...] | str | None = None
    action_units: tuple[str, ...] | str | None = None

    __post_init__ = check_bounds


@dataclass(frozen=True)
class DescribeLeRobotConfig:
    """What `arvrm describe lerobot` does.

    Attributes:
        input: the data set's folder.
        output: JSON file to write, to be edited and passed on as --robot; null: print alone.
        facts: what the data set does not tell.
        overwrite: replace an existing output.
    """

    input: str
    output: str | None = None
    facts: Facts = field(default_factory=Facts)
    overwrite: bool = False


def describe_lerobot(config: DescribeLeRobotConfig) -> tuple[Description, list[str]]:
    """Derive a robot's description, and write it to `config.output`.

    Returns:
        The description, questions that are still open among it, and what a person should know of it.

    Raises:
        UserError: the data set cannot be read, lacks a feature, or the output exists.
    """
    if config.output is None:
        return derive(DataSet(config.input), config.facts)
    with claimed(config.output, config.overwrite, json_kind("a robot description", FORMAT)):
        found = derive(DataSet(config.input), config.facts)
        write_json(config.output, to_dict(found[0]))
    return found


def derive(data: DataSet, facts: Facts) -> tuple[Description, list[str]]:
    """Return the description of a data set's robot and what a person should know of it; see `describe_lerobot`."""
    notes: list[str] = []
    state = _several(facts.state) or _default(data, "observation.state", "state", "observation.")
    action = _several(facts.action) or _default(data, "action", "action", "action")
    for what, features in (("state", state), ("action", action)):
        for feature in features:
            _check_numbers(data, what, feature)
    cameras = _cameras(data, facts, notes)
    ranges = _ranges(data, state, action)
    found = []
    for what, features, values in (("state", state, ranges[0]), ("action", action, ranges[1])):
        names = _unique([name for feature in features for name in _names(data, feature, notes)])
        notes += _doubts(what, names, values)
        notes += _stated(data, features, names, values)
        low, high = _widened(what, names, values, notes)
        found.append((names, low, high, features))
    units = _units(facts.units, len(found[0][0]), "units")
    action_units = _units(facts.action_units, len(found[1][0]), "action_units")
    if facts.action_units is None and found[0][0] == found[1][0]:
        action_units = units
    used = {*state, *action, *(camera.feature for camera in cameras)}
    own = {"timestamp", "frame_index", "episode_index", "index", "task_index"}
    if unused := [name for name in data.features if name not in used | own]:
        notes.append(f"not used: {', '.join(unused)}")
    name = facts.name or str(data.info.get("robot_type") or "") or data.root.resolve().name
    try:
        description = Description(
            name=name.replace(":", "-")[:200],
            control_hz=data.fps,
            cameras=tuple(cameras),
            state=Numbers(found[0][0], units, found[0][1], found[0][2], tuple(state)),
            action=Numbers(found[1][0], action_units, found[1][1], found[1][2], tuple(action)),
            relative=facts.relative,
            binary=facts.binary,
            frame=facts.frame,
        )
    except ValueError as error:
        raise UserError(f"{data.root}: {error}; say otherwise with facts.KEY=VALUE") from error
    return _with_two_values(description, ranges[1], notes), notes


def tell(description: Description, notes: Sequence[str]) -> list[str]:
    """Return a derived description for a person, open questions last."""
    asked = [f"not known, and not guessed: facts.{key}: {what}" for key, what in description.unknown.items()]
    return [*lines(description), *notes, *asked]


def _several(given: tuple[str, ...] | str | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else given or ()


def _default(data: DataSet, usual: str, key: str, start: str) -> tuple[str, ...]:
    if usual in data.features:
        return (usual,)
    able = [name for name, f in data.features.items() if name.startswith(start) and name not in data.cameras]
    others = ", ".join(able or data.features)
    raise UserError(f"{data.root}: has no {usual!r}; say facts.{key}=FEATURE, one or more of: {others}")


def _check_numbers(data: DataSet, what: str, feature: str) -> None:
    if feature not in data.features:
        raise UserError(f"{data.root}: facts.{what}: no feature {feature!r}; it has {', '.join(data.features)}")
    kind, shape = str(data.features[feature].get("dtype")), data.shape(feature)
    sizes = [type(size) is int and 0 < size <= 10_000 for size in shape]
    if not kind.startswith(("float", "int", "uint", "bool")) or not shape or not all(sizes) or len(shape) > 3:
        raise UserError(f"{data.root}: facts.{what}: feature {feature!r} is {kind} {list(shape)}; name one of numbers")


def _cameras(data: DataSet, facts: Facts, notes: list[str]) -> list[CameraView]:
    known = data.cameras
    depth = [name for name in known if _is_depth(data.features[name])]
    features = list(_several(facts.cameras) or [name for name in known if name not in depth])
    for feature in features:
        if feature not in known:
            have = ", ".join(known) or "none"
            raise UserError(f"{data.root}: facts.cameras: no camera {feature!r}; it has {have}")
    if depth and facts.cameras is None:
        notes.append(f"depth cameras are not used: {', '.join(depth)}")
    if not features:
        raise UserError(f"{data.root}: has no camera; a policy sees by one at least")
    short = [_short(feature) for feature in features]
    names = short if len(set(short)) == len(short) else features
    static = None
    if facts.static is not None:
        fits = [i for i, pair in enumerate(zip(features, names, strict=True)) if facts.static in pair]
        if not fits:
            raise UserError(f"{data.root}: facts.static: no camera {facts.static!r}; it has {', '.join(names)}")
        static = fits[0]
    elif len(features) == 1:
        static = 0
        notes.append(f"{names[0]} is the only camera, so it is the static one")
    roles: list[str | None] = []
    for i, name in enumerate(names):
        roles.append("static" if i == static else None if static is None else _role(name, roles))
    found = [CameraView(name, role, feature) for name, role, feature in zip(names, roles, features, strict=True)]
    return sorted(found, key=lambda camera: camera.role != "static")


def _is_depth(feature: dict[str, Any]) -> bool:
    about = feature.get("info") or feature.get("video_info") or {}
    return isinstance(about, dict) and bool(about.get("video.is_depth_map") or about.get("is_depth_map"))


def _short(feature: str) -> str:
    for prefix in _PREFIXES:
        if feature.startswith(prefix) and len(feature) > len(prefix):
            return feature[len(prefix) :]
    return feature


def _role(name: str, taken: Sequence[str | None]) -> str:
    role = re.sub(r"[^A-Za-z0-9_]", "_", name)
    if not fits_as_role(role) or role == "static":
        role = f"view_{role}".removesuffix("_features").removesuffix("_tokens").removesuffix("_encoder")
    while role in taken:
        role += "_"
    return role


def _names(data: DataSet, feature: str, notes: list[str]) -> list[str]:
    """Return the names that info.json gives a feature's numbers, or numbered ones."""
    given, count = data.features[feature].get("names"), int(np.prod(data.shape(feature)))
    if isinstance(given, dict) and all(type(index) is int for index in given.values()):
        given = sorted(given, key=lambda name: given[name])
    elif isinstance(given, dict):
        given = [name for names in given.values() if isinstance(names, list) for name in names]
    while isinstance(given, list) and len(given) == 1 and isinstance(given[0], list):
        given = given[0]
    if isinstance(given, list) and len(given) == count and all(isinstance(name, str) for name in given):
        return given
    notes.append(f"{feature}: its {count} numbers have no names of their own")
    return [f"{_short(feature)}.{i}" if count > 1 else _short(feature) for i in range(count)]


def _unique(names: list[str]) -> tuple[str, ...]:
    found: list[str] = []
    for name in names:
        number, own = 2, name
        while own in found:
            own, number = f"{name}.{number}", number + 1
        found.append(own)
    return tuple(found)


def _units(given: tuple[str, ...] | str | None, count: int, key: str) -> tuple[str | None, ...]:
    if given is None:
        return (None,) * count
    if isinstance(given, str) or len(given) == 1:
        return (given if isinstance(given, str) else given[0],) * count
    if len(given) != count:
        raise UserError(f"facts.{key}: {len(given)} units for {count} numbers; give one for all, or one each")
    return tuple(given)


def _ranges(data: DataSet, state: Sequence[str], action: Sequence[str]) -> list[np.ndarray]:
    """Return all rows of state and action, (n, S) and (n, A); episodes that cannot be read are left out."""
    data.want({*state, *action}, [])
    parts, rows, reasons = data.parts(""), [], []
    for part in parts:
        try:
            table = data.table(part)
            both = [data.values(table, features) for features in (state, action)]
            if all(np.isfinite(values).all() for values in both):
                rows.append(both)
            else:
                reasons.append(f"{part.id}: holds NaN or infinity")
        except LeftOut as reason:
            reasons.append(f"{part.id}: {reason.reason}")
    if not rows:
        why = reasons[0] if reasons else "there are none"
        raise UserError(f"{data.root}: no episode can be read, so its ranges are not known ({why}); fetch it again")
    return [np.concatenate(values) for values in zip(*rows, strict=True)]


def _doubts(what: str, names: Sequence[str], values: np.ndarray) -> list[str]:
    low, high = values.min(0), values.max(0)
    inner = np.quantile(values, (0.0005, 0.9995), axis=0)
    found = []
    for i, name in enumerate(names):
        if len(values) >= 4000 and 0 < inner[1, i] - inner[0, i] < _CORE * (high[i] - low[i]):
            found.append(
                f"{what} {name}: lies in {low[i]:.6g} to {high[i]:.6g}, all but one in a thousand in {inner[0, i]:.6g} "
                f"to {inner[1, i]:.6g}: a fault of the recording?"
            )
    return found


def _stated(data: DataSet, features: Sequence[str], names: Sequence[str], values: np.ndarray) -> list[str]:
    """Say where meta/stats.json has other ranges than the data; the data's count."""
    file = data.root / "meta" / "stats.json"
    if not file.exists():
        return []
    try:
        given = read_json(file, "")
        sides = [np.concatenate([np.ravel(given[f][side]) for f in features]).astype(float) for side in ("min", "max")]
    except (UserError, KeyError, TypeError, ValueError):
        return [f"{file}: has no ranges of {', '.join(features)}; the data's are taken"]
    if any(side.shape != (len(names),) for side in sides):
        return [f"{file}: has {len(sides[0])} numbers of {', '.join(features)} instead of {len(names)}; not read"]
    low, high = values.min(0), values.max(0)
    off = np.maximum(np.abs(sides[0] - low), np.abs(sides[1] - high)) > _SAME * np.maximum(high - low, 1e-6)
    return [
        f"{file.name} says {sides[0][i]:.6g} to {sides[1][i]:.6g} of {names[i]}, the data {low[i]:.6g} to "
        f"{high[i]:.6g}, which are taken"
        for i in np.flatnonzero(off)
    ]


def _widened(
    what: str, names: Sequence[str], values: np.ndarray, notes: list[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    low, high = values.min(0), values.max(0)
    for i in np.flatnonzero(~(high - low > 1e-9 * np.maximum(np.abs(high), np.abs(low)))):
        notes.append(f"{what} {names[i]}: is always {low[i]:.6g}; its range is made one wide around that")
        low[i], high[i] = low[i] - 0.5, high[i] + 0.5
    return tuple(low.tolist()), tuple(high.tolist())


def _with_two_values(description: Description, actions: np.ndarray, notes: list[str]) -> Description:
    """Test what is said to be binary, and mention what looks so where nothing is said."""
    action, binary = description.action, description.binary
    values = [np.unique(actions[:, i]) for i in range(len(action.names))]
    if binary is None:
        two = [name for name, found in zip(action.names, values, strict=True) if len(found) == 2]
        if two:
            notes.append(f"action {', '.join(two)}: two values only")
        return description
    for name, found in list(zip(action.names, values, strict=True))[len(values) - binary :]:
        if len(found) > 2:
            raise UserError(f"facts.binary={binary}: action {name!r} has {len(found)} values, no two; say fewer")
        if len(found) == 1:
            notes.append(f"action {name}: is said to be binary and is always {found[0]:g}; set its low and high")
    return description


def edited(description: Description, facts: Facts) -> Description:
    """Return a description with the answers that `facts` holds; features are those of the description.

    Raises:
        UserError: `facts` says what a description has already settled.
    """
    settled = [key for key in ("state", "action", "cameras") if getattr(facts, key) is not None]
    if settled:
        raise UserError(f"facts.{settled[0]}: the description names the features already; change it there")
    changes: dict[str, Any] = {
        key: getattr(facts, key) for key in ("name", "relative", "binary", "frame") if getattr(facts, key) is not None
    }
    for key, given in (("state", facts.units), ("action", facts.action_units)):
        if given is not None:
            numbers = getattr(description, key)
            changes[key] = dataclasses.replace(numbers, units=_units(given, len(numbers.names), key))
    if facts.static is not None:
        names = [camera.name for camera in description.cameras]
        if not any(facts.static in (camera.name, camera.feature) for camera in description.cameras):
            raise UserError(f"facts.static: no camera {facts.static!r}; it has {', '.join(names)}")
        cameras: list[CameraView] = []
        for camera in description.cameras:
            is_static = facts.static in (camera.name, camera.feature)
            taken = [other.role for other in cameras]
            role = "static" if is_static else camera.role if camera.role not in (None, "static") else None
            cameras.append(dataclasses.replace(camera, role=role or _role(camera.name, taken)))
        changes["cameras"] = tuple(sorted(cameras, key=lambda camera: camera.role != "static"))
    try:
        return dataclasses.replace(description, **changes)
    except ValueError as error:
        raise UserError(f"facts: {error}") from error
