"""How well places learnt from clips of hands hold on a robot's images: trains them alone, and judges them by the truth.

    python benchmarks/places.py train OUTPUT --hands STORE [STORE ...] --minutes 10
    python benchmarks/places.py judge CHECKPOINT --robot STORE [STORE ...] [--hands STORE ...] [--picture FILE]

Sentences of the judged images are those that no clip carries: each image is asked with the validation sentence and with
one unseen one. With --hands it also says how often the clip with the nearest motion descriptor goes the same way; with
--picture it draws how often places were right against how sure they were.
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
from arvrm.interface import TASKS
from arvrm.model.checkpoint import load_checkpoint, save_checkpoint
from arvrm.model.config import ModelConfig, PlacesConfig
from arvrm.model.keypoint_vlm import KeypointVLM
from arvrm.model.metadata import CheckpointMetadata
from arvrm.model.places import MOMENTS, MOTION_STEPS, NEAR_PX, PlaceNet, predict_hands
from arvrm.model.text import TextEncoder
from arvrm.moments.judged import truth_of
from arvrm.training.agreement import MomentFinder, PlacesSeen
from arvrm.training.data import text_table
from arvrm.training.places import judge_places, moments_of
from arvrm.windows import EpisodeTable, HumanWindows, PlaceSamples, WindowConfig, decode_frames, split_episodes


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
            state = store.arrays(identity, ["robot_obs"])["robot_obs"]
            at = np.minimum([truth["touch"], truth["end"]], header.steps - 1)
            uvw = np.concatenate([state[at, :3], np.ones((2, 1))], 1) @ np.array(truth["camera"]).T
            true = uvw[:, :2] / uvw[:, 2:] * 96 / header.cameras["rgb_static"][0]
            before = int((np.asarray(header.image_steps) <= truth["touch"]).sum())
            images = store.frames(identity, "rgb_static", [0, int(rng.integers(max(1, before * 2 // 3)))])
            sentences = [validation_instruction(header.task), str(rng.choice(unseen_instructions(header.task)))]
            asked = [header.instruction] if args.own else sentences
            for number, image in enumerate(images):
                for kind, sentence in enumerate(asked):
                    rows.append((header.task, number, kind, image, sentence, true, identity))
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
    tasks = np.array([r[0] for r in rows])
    print(f"{'task':<26}{'n':>5}{'touch':>7}{'90 %':>7}{'or 2nd':>7}{'sure':>6}{'right':>6}{'end':>7}{'90 %':>7}")
    for name in (*TASKS, "all"):
        own = np.ones(len(tasks), bool) if name == "all" else tasks == name
        if own.any():
            a, b = off[own, 0], off[own, 1]
            print(
                f"{name:<26}{own.sum():>5}{np.median(a):>7.2f}{np.quantile(a, 0.9):>7.2f}"
                f"{np.quantile(off2[own, 0], 0.9):>7.2f}{sure[own, 0].mean():>6.2f}{(a <= 4).mean():>6.2f}"
                f"{np.median(b):>7.2f}{np.quantile(b, 0.9):>7.2f}"
            )
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
