"""When do clips and demonstrations touch? Several ways against the truth, and the numbers of the one that ships.

    python benchmarks/moments.py --judge STORE... [--fit STORE... [--control] [--write] [--updates N]]

Stores are `arvrm generate`'s, of one embodiment. `--fit` fits the scorer to the true moments of these stores (other
scenes, layouts and seeds than those judged) and, with `--control`, to what a rule says of them without any truth;
`--write` puts the first one's numbers into the package. Then every way finds the touch in the judged stores, and the
tables are printed: per way over all tasks, and per task of the scorer.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save_file

from arvrm import instructions
from arvrm.episodes import EpisodeHeader, EpisodeStore
from arvrm.interface import TASKS
from arvrm.moments.find import episode_signals, found_in, scorer_input
from arvrm.moments.judged import judge, table, text, truth_of
from arvrm.moments.network import MomentScorer, resource, words_of
from arvrm.moments.signals import IMAGE_CHANNELS, PIXELS, Signals, hand_signals, robot_signals
from arvrm.moments.ways import WAYS

UPDATES, BATCH, VARIANTS, SEED = 900, 32, 6, 0
"""Of fitting."""


@dataclass
class Sample:
    header: EpisodeHeader
    arrays: dict[str, np.ndarray]
    signals: Signals
    robot: object = None

    def varied(self, rng: np.random.Generator) -> tuple[np.ndarray, Signals]:
        """The clip mirrored, faster or slower, with noise: a scorer's input, and the signals."""
        fps = self.header.fps * float(np.exp(rng.uniform(-0.4, 0.4)))
        if self.header.embodiment == "human":
            points, visible = self.arrays["keypoints"].astype(np.float64), self.arrays["visible"]
            size = next(iter(self.header.cameras.values()))
            if rng.random() < 0.5:
                points[..., 0] = size[1] - points[..., 0]
            noise = rng.uniform(0, 0.4) * size[0] / 96
            points[..., :2] += rng.normal(0, noise, points[..., :2].shape) + rng.normal(0, noise, (1, 21, 2))
            signals = hand_signals(points, visible, size, fps)
        else:
            signals = robot_signals(self.robot, self.arrays, fps)
        images = np.stack([
            np.interp(signals.rows, self.signals.rows, self.signals.images[:, c]) for c in range(IMAGE_CHANNELS)
        ], 1)  # fmt: skip
        signals = dataclasses.replace(signals, images=images.astype(np.float32))
        values = scorer_input(signals)
        values[:, -IMAGE_CHANNELS:] *= rng.uniform(0.7, 1.3) * (rng.random() > 0.1)
        return values, signals


def samples_of(paths: list[str]) -> list[Sample]:
    found = []
    for path in paths:
        store = EpisodeStore(path)
        for header in store.headers():
            if truth_of(header) is None or "touch" not in truth_of(header):
                print(f"{header.id}: no true touch", file=sys.stderr)
                continue
            names = [n for n in ("keypoints", "visible", "robot_obs", "target_pose", "actions") if n in header.arrays]
            arrays = store.arrays(header.id, names)
            robot = store.robot if header.embodiment == "robot" else None
            found.append(Sample(header, arrays, episode_signals(store, header), robot))
    return found


def fit(samples: list[Sample], targets: list[tuple[int, int]], updates: int, seed: int = SEED) -> MomentScorer:
    """Fit a scorer to target rows (touch, end) of each sample."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    words = {w for task in TASKS for s in instructions.training_instructions(task) for w in words_of(s)}
    scorer = MomentScorer(samples[0].signals.motion.shape[1] + IMAGE_CHANNELS, tuple(sorted(words)))
    variants = [[sample.varied(rng) for _ in range(VARIANTS)] for sample in samples]
    optimizer = torch.optim.AdamW(scorer.parameters(), 3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, updates)
    scorer.train()
    for update in range(updates):
        picked = rng.choice(len(samples), BATCH)
        batch = [one_input(samples[i], variants[i], targets[i], rng) for i in picked]
        longest = max(len(values) for values, *_ in batch)
        signals = torch.zeros(BATCH, longest, scorer.channels)
        mask = torch.zeros(BATCH, longest, dtype=torch.bool)
        goal = torch.zeros(BATCH, 2, longest)
        there = torch.zeros(BATCH)
        for b, (values, goals, has) in enumerate(batch):
            signals[b, : len(values)] = torch.from_numpy(values)
            mask[b, : len(values)] = True
            goal[b, :, : len(values)] = torch.from_numpy(goals)
            there[b] = has
        bags = torch.stack([scorer.bag(samples[i].header.instruction) for i in picked])
        bags = torch.nn.functional.dropout(bags, 0.15)
        scores, none = scorer(signals, mask, bags)
        logs = torch.log_softmax(scores, -1).masked_fill(~mask[:, None], 0)
        loss = -(goal * logs).sum(-1).mean(1)
        loss = (loss * there).sum() / there.sum()
        loss = loss + torch.nn.functional.binary_cross_entropy_with_logits(none, 1 - there)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if update % 250 == 0 or update == updates - 1:
            print(f"update {update}: loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return scorer.eval()


def fit_without_truth(samples: list[Sample], updates: int, rounds: int = 2) -> MomentScorer:
    """What needs no truth at all: fit to what a rule says, then to what that scorer says, which keeps what is
    consistent over clips of the same words."""
    targets = [(int(round(s.signals.rows[WAYS["combined"](s.signals)])), s.header.steps - 1) for s in samples]
    for number in range(rounds):
        scorer = fit(samples, targets, updates, SEED + number)
        embodiment = samples[0].header.embodiment
        found = [found_in(s.signals, s.header.instruction, scorer, embodiment) for s in samples]
        targets = [(moments.touch, moments.end) for moments in found]
    return scorer


def one_input(
    sample: Sample, variants: list[tuple[np.ndarray, Signals]], target: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float]:
    """An augmented sample: input (T, C), goals (2, T), and whether the touch is still in it."""
    values, signals = variants[rng.integers(len(variants))]
    steps = [int(np.abs(signals.rows - row).argmin()) for row in target]
    first, last = 0, len(values)
    has = True
    if rng.random() < 0.15 and steps[0] > 14:
        last, has = int(rng.integers(10, steps[0] - 3)), False
    else:
        first = int(rng.integers(0, max(1, min(steps[0] - 2, 40)))) if rng.random() < 0.4 else 0
        last = int(rng.integers(max(steps) + 1, len(values) + 1)) if rng.random() < 0.5 else last
    place = signals.place[:, : (2 if sample.header.embodiment == "human" else 3)]
    goals = np.zeros((2, last - first), np.float32)
    for k, step in enumerate(steps):
        if has:
            # Steps at which the hand is in the same place are as good.
            unit = 0.7 if sample.header.embodiment == "human" else 0.02
            apart = np.linalg.norm(place[first:last] - place[step], axis=1) / unit
            away = np.abs(np.arange(first, last) - step) / 2.0
            weight = np.exp(-0.5 * (apart**2 + away**2))
            goals[k] = weight / weight.sum()
    return values[first:last], goals, float(has)


def spoilt(samples: list[Sample]) -> dict[str, tuple[list[Signals], list[str]]]:
    """What the scorer finds with less or worse to go by: name -> signals and sentences."""
    rng = np.random.default_rng(SEED)
    signals = [sample.signals for sample in samples]
    said = [sample.header.instruction for sample in samples]
    unseen = [str(rng.choice(instructions.unseen_instructions(sample.header.task))) for sample in samples]
    blind = [dataclasses.replace(s, images=np.zeros_like(s.images)) for s in signals]
    cut = [cut_after(sample, int(truth_of(sample.header)["end"]) + int(rng.integers(1, 10))) for sample in samples]
    found = {"unseen words": (signals, unseen), "no words": (signals, [""] * len(samples)), "no images": (blind, said),
             "cut early": (cut, said)}  # fmt: skip
    if samples[0].header.embodiment == "human":
        for pixels in (0.5, 1.0):
            found[f"noise {pixels}"] = ([noisy(sample, pixels, rng) for sample in samples], said)
    return found


def cut_after(sample: Sample, row: int) -> Signals:
    """The signals without what follows a row: clips of `arvrm generate` all go on for ten steps past success."""
    found = sample.signals
    steps = max(int(np.searchsorted(found.rows, row, "right")), 2)
    return dataclasses.replace(found, **{f.name: getattr(found, f.name)[:steps] for f in dataclasses.fields(found)})


def noisy(sample: Sample, pixels: float, rng: np.random.Generator) -> Signals:
    """The signals of keypoints with noise of so many pixels of 96, three times that where a point is not visible."""
    points, visible = sample.arrays["keypoints"].astype(np.float64), sample.arrays["visible"]
    size = next(iter(sample.header.cameras.values()))
    deviation = np.where(visible, 1, 3)[..., None] * pixels * size[0] / PIXELS
    points[..., :2] += rng.normal(size=points[..., :2].shape) * deviation
    found = hand_signals(points, visible, size, sample.header.fps)
    return dataclasses.replace(found, images=sample.signals.images)


def save(scorer: MomentScorer, embodiment: str, stores: list[str], updates: int) -> None:
    tensors = {name: value.half() for name, value in scorer.state_dict().items()}
    manifests = [EpisodeStore(path).manifest for path in stores]
    made = [{name: m["config"][name] for name in ("seed", "scenes", "variations", "episodes")} for m in manifests]
    meta = {"channels": str(scorer.channels), "vocabulary": json.dumps(scorer.vocabulary), "updates": str(updates),
            "fitted": json.dumps(made), "note": "fitted to the true moments of synthetic episodes"}  # fmt: skip
    save_file(tensors, str(resource(embodiment)), meta)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", nargs="+", required=True)
    parser.add_argument("--fit", nargs="+", default=[])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--control", action="store_true", help="fit without any truth too")
    parser.add_argument("--updates", type=int, default=UPDATES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    embodiment = next(EpisodeStore(arguments.judge[0]).headers()).embodiment
    scorers = {}
    if arguments.fit:
        samples = samples_of(arguments.fit)
        truths = [truth_of(sample.header) for sample in samples]
        scorers["scorer"] = fit(samples, [(t["touch"], t["end"]) for t in truths], arguments.updates)
        if arguments.write:
            save(scorers["scorer"], embodiment, arguments.fit, arguments.updates)
        if arguments.control:
            scorers["unlabelled"] = fit_without_truth(samples, arguments.updates // 2)
    else:
        from arvrm.moments.network import load_scorer

        scorers["scorer"] = load_scorer(embodiment)
    judged = samples_of(arguments.judge)
    ways = {name: [(way(s.signals), 1.0) for s in judged] for name, way in WAYS.items()}
    found = {name: [(float(s.signals.rows[step]), c) for s, (step, c) in zip(judged, steps, strict=True)]
             for name, steps in ways.items()}  # fmt: skip
    results = {}
    for name, scorer in scorers.items():
        results[name] = [found_in(s.signals, s.header.instruction, scorer, embodiment) for s in judged]
        found[name] = [(r.touch, r.touch_confidence) for r in results[name]]
    for name, (signals, sentences) in spoilt(judged).items():
        ours = [found_in(x, text, scorers["scorer"], embodiment) for x, text in zip(signals, sentences, strict=True)]
        found[name] = [(r.touch, r.touch_confidence) for r in ours]
    print(f"{len(judged)} {embodiment} episodes; touch")
    for name, values in found.items():
        rows = table([judge(s.header, s.signals, s.arrays, "touch", row, c)
                      for s, (row, c) in zip(judged, values, strict=True)])  # fmt: skip
        held = sum(row["holds"] for row in rows[:-1])
        print(f"{name:<12} median {rows[-1]['median_px']:.2f}  90 % {rows[-1]['p90_px']:.2f}  "
              f"cm {rows[-1]['median_cm']}  tasks that hold {held} of {len(rows) - 1}")  # fmt: skip
    for moment in ("touch", "end"):
        print(moment)
        print(text(table([
            judge(s.header, s.signals, s.arrays, moment, getattr(r, moment), getattr(r, f"{moment}_confidence"))
            for s, r in zip(judged, results["scorer"], strict=True)
        ])))  # fmt: skip
    print(f"{time.perf_counter() - begin:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
