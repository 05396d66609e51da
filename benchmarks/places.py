"""How well places learnt from clips of hands hold on a robot's images: trains them alone, and judges them by the truth.

    python benchmarks/places.py train OUTPUT --hands STORE [STORE ...] --minutes 10
    python benchmarks/places.py judge CHECKPOINT --robot STORE [STORE ...] [--hands STORE ...] [--picture FILE]

Sentences of the judged images are those that no clip carries: each image is asked with the validation sentence and with
one unseen one. Where words leave open which place is meant (stack, push into the drawer, place), `any` and the `90 %`
beside it are distances from the nearest place that does what is said, not from the one that was chosen. With --hands it
also says how often the clip with the nearest motion descriptor goes the same way; with --picture it draws how often
places were right against how sure they were.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from arvrm.episodes import EpisodeStore
from arvrm.instructions import unseen_instructions, validation_instruction
from arvrm.interface import BLOCKS, TASKS
from arvrm.model.checkpoint import load_checkpoint, save_checkpoint
from arvrm.model.config import ModelConfig, PlacesConfig
from arvrm.model.keypoint_vlm import KeypointVLM
from arvrm.model.metadata import CheckpointMetadata
from arvrm.model.places import MOMENTS, MOTION_STEPS, NEAR_PX, PlaceNet, predict_hands
from arvrm.model.text import TextEncoder
from arvrm.moments.judged import truth_of
from arvrm.sim.scene import Box, Fixtures, scene_description
from arvrm.sources.truth import PLACING
from arvrm.training.agreement import MomentFinder, PlacesSeen
from arvrm.training.data import text_table
from arvrm.training.places import judge_places, moments_of
from arvrm.windows import EpisodeTable, HumanWindows, PlaceSamples, WindowConfig, decode_frames, split_episodes

_CLEAR_M, _SAME_ROOM_M, _HALF_M = 0.05, 0.08, 0.02
"""From what lies in the drawer or cabinet to where a block is let go; so near in height it lies there; half a block."""


def samples_of(
    stores: list[str], cache: str, net: PlaceNet | None = None
) -> tuple[EpisodeTable, PlaceSamples, TextEncoder]:
    table = EpisodeTable([EpisodeStore(path) for path in stores], "human", 3)
    frames = decode_frames(table, "rgb_static", 96, None)
    encoder = TextEncoder()
    hands = HumanWindows(table, WindowConfig(history=1), 21, text_table(table, encoder), None)
    moments, sure = moments_of(table, MomentFinder(cache, seen=None if net is None else PlacesSeen(net, encoder)))
    return table, PlaceSamples(hands, frames, moments, sure, MOTION_STEPS), encoder


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    before = None if args.start is None else load_checkpoint(args.start).model
    table, samples, _ = samples_of(args.hands, args.cache, before and before.places)
    known = tuple(sorted(table.sentences[row] for row in np.unique(table.sentence).tolist()))
    config = ModelConfig() if before is None else before.config
    changed = {"enabled": True, "border": PlacesConfig().border, "known": known} | json.loads(args.set)
    vlm = KeypointVLM(dataclasses.replace(config, places=dataclasses.replace(config.places, **changed)))
    if before is not None:
        vlm.load_state_dict(before.state_dict(), strict=True)
    net = vlm.places
    assert net is not None
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith(args.only))
    train_rows, held = split_episodes(table, 0.05, 0)
    train_rows = samples.usable(train_rows)
    live = [p for p in net.parameters() if p.requires_grad]
    decay, plain = [p for p in live if p.ndim > 1], [p for p in live if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": args.decay}, {"params": plain, "weight_decay": 0}])
    average = [p.detach().clone() for p in live]
    net.train()
    began, cpu, sums = time.time(), time.process_time(), {}
    for step in range(args.steps):
        done = max(step / args.steps, (time.time() - began) / (60 * args.minutes))
        if done >= 1:
            break
        rate = args.rate * min(1, (step + 1) / 30) * (0.5 + 0.5 * math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(args.seed * 100003 + step)
        terms = net.losses(samples.batch(*samples.draw(train_rows, args.seed, step, args.batch)))
        sum(terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(live, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        keep = min(args.ema, (step + 1) / (step + 10))
        torch._foreach_lerp_(average, [p.detach() for p in live], 1 - keep)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        if (step + 1) % 50 == 0:
            said = " ".join(f"{name} {value / 50:.3f}" for name, value in sums.items())
            print(step + 1, said, f"{time.time() - began:.0f}s cpu {time.process_time() - cpu:.0f}s", flush=True)
            sums = {}
    for parameter, value in zip(live, average, strict=True):
        parameter.data.copy_(value)
    print(judge_places(net, samples, held), "temperature", net.temperature.tolist())
    meta = CheckpointMetadata("pretrain", history=4, stride=3, images={"rgb_static": 96})
    save_checkpoint(args.output, vlm.eval(), meta, overwrite=True)
    if args.robot:
        judge(args)


def right_places(
    task: str, fixtures: Fixtures, touch: int, robot_obs: np.ndarray, scene_obs: np.ndarray, landmarks: np.ndarray
) -> np.ndarray:
    """Return the TCP's places (P, 3; m, world) at the touch that do what is said; the first is the demonstration's own.

    There are others where words say only what is done with a block: pushing another block of the table into the
    drawer, stacking on another one, letting go elsewhere inside the open drawer or the open half of the cabinet, clear
    of what lies there.

    Args:
        touch: row of the true touch. robot_obs: (N, 15); scene_obs: (N, 24); landmarks: (N, 7, 3).
    """
    tcp = np.asarray(robot_obs[touch, :3], np.float64)
    before, now, after = (np.asarray(landmarks[row, : len(BLOCKS)], np.float64) for row in (0, touch, -1))
    moved = int(np.linalg.norm(after - before, axis=1).argmax())
    rest = [n for n in range(len(BLOCKS)) if n != moved]
    low, high = (np.array(corner) for corner in fixtures.surfaces["table"])
    on_table = [n for n in rest if (low[:2] <= before[n, :2]).all() and (before[n, :2] <= high[:2]).all()]
    if task == "push_into_drawer":
        others = tcp + before[on_table] - now[moved]
    elif task == "stack_block":
        under = min(rest, key=lambda n: float(np.linalg.norm(after[n, :2] - after[moved, :2])))
        others = tcp + now[[n for n in on_table if n != under]] - now[under]
    elif task in PLACING:
        low, high = (corner[:2] for corner in _room(task, fixtures, scene_obs[touch]))
        spots = np.stack(np.meshgrid(*(np.arange(a, b + 1e-9, 0.005) for a, b in zip(low, high, strict=True))), -1)
        spots = np.concatenate([spots.reshape(-1, 2), np.full((spots.size // 2, 1), tcp[2])], 1)
        near = np.abs(now[rest, 2] - tcp[2]) < _SAME_ROOM_M
        gaps = np.linalg.norm(spots[:, None, :2] - now[rest][near][None, :, :2], axis=-1)
        others = spots[(gaps > _CLEAR_M).all(1)]
    else:
        others = np.zeros((0, 3))
    return np.concatenate([tcp[None], others])


def _room(task: str, fixtures: Fixtures, scene_obs: np.ndarray) -> Box:
    """Where a block's centre may be let go: inside the drawer as far as it is open, or the cabinet's open half."""
    if task == "place_in_drawer":
        low, high = (np.array(c) + np.array(fixtures.drawer_direction) * scene_obs[1] for c in fixtures.drawer_box)
        high[1] = min(high[1], fixtures.table_box[0][1])
        return tuple(low + _HALF_M), tuple(high - _HALF_M)
    door = fixtures.slider_handle[0] + fixtures.slider_direction[0] * scene_obs[0]
    halves = [fixtures.surfaces["slider_left"], fixtures.surfaces["slider_right"]]
    return max(halves, key=lambda box: abs((box[0][0] + box[1][0]) / 2 - door))


def judge(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    vlm = load_checkpoint(args.output).model
    encoder = TextEncoder()
    rng = np.random.default_rng(0)
    rows = []
    for path in args.robot:
        store = EpisodeStore(path)
        for identity in store.ids:
            header = store.header(identity)
            truth = truth_of(header)
            if header.scene not in args.scenes or truth is None or "touch" not in truth or "camera" not in truth:
                continue
            layout = scene_description(header.scene, args.assets, args.calvin_root, header.meta.get("variation"))
            arrays = store.arrays(identity, ["robot_obs", "scene_obs", "landmarks"])
            at = np.minimum([truth["touch"], truth["end"]], header.steps - 1)
            good = right_places(header.task, layout.fixtures, int(at[0]), **arrays)
            places = np.concatenate([arrays["robot_obs"][at, :3], good])
            uvw = np.concatenate([places, np.ones((len(places), 1))], 1) @ np.array(truth["camera"]).T
            pixels = uvw[:, :2] / uvw[:, 2:] * 96 / header.cameras["rgb_static"][0]
            true, right = pixels[:2], pixels[2:]
            before = int((np.asarray(header.image_steps) <= truth["touch"]).sum())
            images = store.frames(identity, "rgb_static", [0, int(rng.integers(max(1, before * 2 // 3)))])
            sentences = [validation_instruction(header.task), str(rng.choice(unseen_instructions(header.task)))]
            asked = [header.instruction] if args.own else sentences
            for number, image in enumerate(images):
                for kind, sentence in enumerate(asked):
                    rows.append((header.task, number, kind, image, sentence, true, identity, right))
    found = []
    for start in range(0, len(rows), 64):
        part = rows[start : start + 64]
        found.append(predict_hands(vlm, encoder, np.stack([r[3] for r in part]), [r[4] for r in part]))
    acting = np.concatenate([f.acting for f in found])
    sure = np.concatenate([f.confidence for f in found])
    second = np.concatenate([f.others[:, :, 0][:, :, (4, 8)].mean(2) for f in found])
    true = np.stack([r[5] for r in rows])
    off = np.linalg.norm(acting - true, axis=-1)
    off2 = np.minimum(off, np.linalg.norm(second - true, axis=-1))
    off_any = np.array([np.linalg.norm(a[0] - r[7], axis=-1).min() for a, r in zip(acting, rows, strict=True)])
    tasks = np.array([r[0] for r in rows])
    columns = [f"{name:>7}" for name in ("touch", "90 %", "or 2nd", "any", "90 %", "sure", "right", "end", "90 %")]
    print(f"{'task':<26}{'n':>5}{''.join(columns)}")
    for name in (*TASKS, "all"):
        own = np.ones(len(tasks), bool) if name == "all" else tasks == name
        if own.any():
            a, b = off[own, 0], off[own, 1]
            print(
                f"{name:<26}{own.sum():>5}{np.median(a):>7.2f}{np.quantile(a, 0.9):>7.2f}"
                f"{np.quantile(off2[own, 0], 0.9):>7.2f}{np.median(off_any[own]):>7.2f}"
                f"{np.quantile(off_any[own], 0.9):>7.2f}{sure[own, 0].mean():>7.2f}{(a <= 4).mean():>7.2f}"
                f"{np.median(b):>7.2f}{np.quantile(b, 0.9):>7.2f}"
            )
    print(f"within 4 px: {(off[:, 0] <= 4).mean():.3f}, of any right place {(off_any <= 4).mean():.3f}")
    for label, key in (("image", 1), ("sentence", 2)):
        for value in sorted({r[key] for r in rows}):
            own = np.array([r[key] == value for r in rows])
            a = off[own, 0]
            print(f"{label} {value}: touch {np.median(a):.2f} / {np.quantile(a, 0.9):.2f}, right {(a <= 4).mean():.3f}")
    kept = {"off": off, "sure": sure, "tasks": tasks, "acting": acting, "true": true, "ids": [r[6] for r in rows]}
    kept["motion"] = np.concatenate([f.motion for f in found])
    images = np.stack([r[3] for r in rows])
    np.savez(Path(args.output) / "judged.npz", **kept, sentences=[r[4] for r in rows], images=images)
    calibration(off, sure, args.picture)
    if args.hands:
        ways(kept["motion"], tasks, args)


def calibration(off: np.ndarray, sure: np.ndarray, picture: str | None) -> None:
    """Say, and draw, how often a place was within NEAR_PX against how sure it was."""
    edges = np.linspace(0, 1, 11)
    points = []
    for moment, name in enumerate(MOMENTS):
        right = off[:, moment] <= NEAR_PX
        bins = np.clip(np.digitize(sure[:, moment], edges) - 1, 0, 9)
        there = [b for b in range(10) if (bins == b).any()]
        points.append([(sure[bins == b, moment].mean(), right[bins == b].mean(), (bins == b).sum()) for b in there])
        gap = sum(abs(said - was) * n for said, was, n in points[-1]) / len(right)
        print(f"{name}: said against right {[tuple(round(float(v), 2) for v in p) for p in points[-1]]}, gap {gap:.3f}")
    if picture:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(4, 4))
        axes.plot([0, 1], [0, 1], color="0.7")
        for name, own in zip(MOMENTS, points, strict=True):
            axes.plot([p[0] for p in own], [p[1] for p in own], marker="o", label=name)
        axes.set(xlabel="said", ylabel=f"within {NEAR_PX:.0f} px of 96", xlim=(0, 1), ylim=(0, 1))
        axes.legend()
        figure.tight_layout()
        figure.savefig(picture, dpi=80)


def ways(motion: np.ndarray, tasks: np.ndarray, args: argparse.Namespace) -> None:
    """Say how often the clip whose own motion is nearest to the predicted one goes the same way."""
    table, samples, _ = samples_of(args.hands, args.cache)
    clips = samples.usable(np.arange(len(table)))
    known = samples.batch(clips, np.zeros(len(clips), np.int64))
    own, there = known["motion"].numpy(), known["motion_known"].numpy()
    names = np.array([table.tasks[t] for t in table.task[clips]])
    spread = np.array([own[there[:, d] > 0, d].std() for d in range(own.shape[1])])
    difference = (motion[:, None] - own[None]) / spread
    distance = (difference**2 * there[None]).sum(-1) / there.sum(-1)[None]
    nearest = names[distance.argmin(1)]
    print(f"nearest motion of all clips: the same task {(nearest == tasks).mean():.3f}")
    for one, other in (("_right", "_left"), ("_left", "_right"), ("open_", "close_"), ("close_", "open_"),
                       ("turn_on_light", "turn_off_light"), ("turn_off_light", "turn_on_light")):  # fmt: skip
        asked = np.array([one in t for t in tasks])
        for task in np.unique(tasks[asked]):
            opposite = task.replace(one, other)
            pair, rows = np.isin(names, [task, opposite]), tasks == task
            chosen = names[pair][distance[rows][:, pair].argmin(1)]
            print(f"{task:<26} against {opposite:<26}{(chosen == task).mean():.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("train", "judge"))
    parser.add_argument("output")
    parser.add_argument("--hands", nargs="+", default=[])
    parser.add_argument("--robot", nargs="+", default=[])
    parser.add_argument("--scenes", nargs="+", default=["D"])
    parser.add_argument("--assets", choices=("builtin", "official"), default="builtin", help="of the robots' scenes")
    parser.add_argument("--calvin-root", help="the official checkout; default: the environment's CALVIN_ROOT")
    parser.add_argument("--own", action="store_true", help="ask with the episodes' own sentences")
    parser.add_argument("--cache", default="/tmp")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=1e6, help="stop then; the learning rate follows")
    parser.add_argument("--start", help="go on from this checkpoint, with the moments that its places agree to")
    parser.add_argument("--only", default="", help="train only parameters whose names begin so")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=0.02)
    parser.add_argument("--ema", type=float, default=0.995)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--picture")
    parser.add_argument("--set", default="{}")
    arguments = parser.parse_args()
    {"train": train, "judge": judge}[arguments.what](arguments)
