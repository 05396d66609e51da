"""When do clips and demonstrations touch? Several ways against the truth, and the numbers of the one that ships.

    python benchmarks/moments.py --judge STORE... [--fit STORE... [--every N] [--ceiling] [--write]] [--plain]
        [--agree STAGE1]

Stores are `arvrm generate`'s, of one embodiment. `--fit` fits the scorer to these stores without any truth
(`arvrm.moments.fit`); `--write` puts it into the package. `--ceiling` fits a second one to their true moments, to
compare with: it is never written. Then every way finds the touch in the judged stores, of other layouts and seeds, and
the tables are printed: per way over all tasks, per task of the scorer, and how often it is right when it says so.
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
from arvrm.model.checkpoint import load_checkpoint
from arvrm.model.text import TextEncoder
from arvrm.moments import fit
from arvrm.moments.find import NEAR_PX, found_in
from arvrm.moments.judged import Judged, judge, table, text, truth_of
from arvrm.moments.network import MomentScorer, load_scorer, resource
from arvrm.moments.raw import Raw, colours_of, raw_episode, signals_of
from arvrm.moments.signals import PIXELS, Signals
from arvrm.moments.ways import WAYS
from arvrm.motions.camera import CALVIN, read_camera
from arvrm.training.agreement import PlacesSeen

SEED = 0
_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)


@dataclass
class Sample:
    store: EpisodeStore
    header: EpisodeHeader
    raw: Raw
    signals: Signals
    arrays: dict[str, np.ndarray]

    @property
    def truth(self) -> dict:
        found = truth_of(self.header)
        assert found is not None
        return found


def samples_of(paths: list[str]) -> list[Sample]:
    found = []
    for path in paths:
        store = EpisodeStore(path)
        colours = colours_of(store) if store.robot_name else None
        for header in store.headers():
            truth = truth_of(header)
            if truth is None or "touch" not in truth:
                print(f"{header.id}: no true touch", file=sys.stderr)
                continue
            raw = raw_episode(store, header, colours)
            arrays = store.arrays(header.id, ("robot_obs",)) if header.embodiment == "robot" else {}
            found.append(Sample(store, header, raw, signals_of(raw), arrays))
    return found


def spoilt(samples: list[Sample], plain: bool) -> dict[str, tuple[list[Signals], list[str]]]:
    """What the scorer finds with less or worse to go by: name -> signals and sentences."""
    rng = np.random.default_rng(SEED)
    signals = [sample.signals for sample in samples]
    said = [sample.header.instruction for sample in samples]
    unseen = [str(rng.choice(instructions.unseen_instructions(sample.header.task))) for sample in samples]
    blind = [dataclasses.replace(s, images=np.zeros_like(s.images)) for s in signals]
    found = {"unseen words": (signals, unseen), "no words": (signals, [""] * len(samples)), "no images": (blind, said)}
    if plain:
        return found
    cut = [signals_of(s.raw.taken(np.arange(min(s.truth["end"] + int(rng.integers(1, 10)), len(s.raw) - 1) + 1)))
           for s in samples]  # fmt: skip
    found["cut early"] = (cut, said)
    if samples[0].header.embodiment == "human":
        for pixels in (0.5, 1.0):
            found[f"noise {pixels}"] = ([noisy(sample, pixels, rng) for sample in samples], said)
    return found


def noisy(sample: Sample, pixels: float, rng: np.random.Generator) -> Signals:
    """The signals of keypoints with noise of so many pixels of 96, three times that where a point is not visible."""
    raw = sample.raw
    points, visible = raw.arrays["keypoints"].astype(np.float64), raw.arrays["visible"]
    deviation = np.where(visible, 1, 3)[..., None] * pixels * raw.size[0] / PIXELS
    points[..., :2] += rng.normal(size=points[..., :2].shape) * deviation
    noisy = signals_of(dataclasses.replace(raw, arrays=raw.arrays | {"keypoints": points}))
    return dataclasses.replace(noisy, place=sample.signals.place)


def nothing(samples: list[Sample], scorer: MomentScorer) -> dict[str, list[float]]:
    """What is said of a touch where there is none: cut off before it, there and back, and in shuffled time."""
    rng = np.random.default_rng(SEED)
    found: dict[str, list[float]] = {"cut off before": [], "there and back": [], "shuffled": []}
    for sample in samples:
        touch, raw = sample.truth["touch"], sample.raw
        if touch < 14:
            continue
        made = {"cut off before": raw.taken(np.arange(int(rng.integers(8, touch - 3)))),
                "there and back": raw.there_and_back(touch - 4),
                "shuffled": raw.taken(rng.permutation(len(raw)))}  # fmt: skip
        for name, one in made.items():
            values = found_in(signals_of(one), raw.instruction, scorer, sample.header.embodiment)
            found[name].append(values.touch_confidence)
    return found


def calibration(judged: list[Judged | None], near: float) -> list[str]:
    """Lines: of those that say so much, how many there are, what they say on average, how many are right."""
    said = np.array([one.confidence for one in judged if one is not None])
    right = np.array([one.pixels <= near for one in judged if one is not None])
    lines = [f"{'said':<12}{'n':>5}{'mean':>7}{'right':>7}"]
    for low, high in zip(_EDGES[:-1], _EDGES[1:], strict=True):
        own = (said >= low) & ((said < high) | (high == 1))
        if own.any():
            lines.append(f"{low:.1f} to {high:.1f}  {own.sum():>5}{said[own].mean():>7.2f}{right[own].mean():>7.2f}")
    return lines


def save(scorer: MomentScorer, embodiment: str, stores: list[str], every: int) -> None:
    tensors = {
        name: value.half() if value.is_floating_point() else value for name, value in scorer.state_dict().items()
    }
    manifests = [EpisodeStore(path).manifest for path in stores]
    made = [{name: m["config"][name] for name in ("seed", "scenes", "variations", "episodes")} for m in manifests]
    meta = {"channels": str(scorer.channels), "vocabulary": json.dumps(scorer.vocabulary), "every": str(every),
            "fitted": json.dumps(made),
            "note": "fitted to synthetic episodes, none of whose moments was told"}  # fmt: skip
    save_file(tensors, str(resource(embodiment)), meta)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", nargs="+", required=True)
    parser.add_argument("--fit", nargs="+", default=[])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--agree", help="a stage 1 with places, which have a say too; robots through CALVIN's camera")
    parser.add_argument("--ceiling", action="store_true", help="fit to the true moments too")
    parser.add_argument("--every", type=int, default=1, help="fit to each n-th episode")
    parser.add_argument("--plain", action="store_true", help="leave out what changes images and keypoints")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    embodiment = next(EpisodeStore(arguments.judge[0]).headers()).embodiment
    scorers = {"scorer": load_scorer(embodiment)}
    if arguments.fit:
        stores = [EpisodeStore(path) for path in arguments.fit]
        examples = fit.examples_of(stores, SEED, arguments.every)
        scorers["scorer"] = fit.fit(examples, seed=SEED)
        if arguments.write:
            save(scorers["scorer"], embodiment, arguments.fit, arguments.every)
        if arguments.ceiling:
            truths = [
                truth_of(header) or {} for store in stores for header in list(store.headers())[:: arguments.every]
            ]
            told = [(e, (float(t["touch"]), float(t["end"])))
                    for e, t in zip(examples, truths, strict=True) if "touch" in t]  # fmt: skip
            scorers["ceiling"] = fit.fit_to([e for e, _ in told], [t for _, t in told], fit.UPDATES, SEED)
    judged = samples_of(arguments.judge)
    found = {name: [(float(s.signals.rows[way(s.signals)]), 1.0) for s in judged] for name, way in WAYS.items()}
    results = {}
    for name, scorer in scorers.items():
        results[name] = [found_in(s.signals, s.header.instruction, scorer, embodiment) for s in judged]
        found[name] = [(r.touch, r.touch_confidence) for r in results[name]]
    shown = "scorer"
    if arguments.agree:
        places = load_checkpoint(arguments.agree).model.places
        seen = PlacesSeen(places, TextEncoder(), read_camera(CALVIN))
        shown = "with places"
        results[shown] = [
            found_in(s.signals, s.header.instruction, scorers["scorer"], embodiment, seen(s.store, s.header, s.signals))
            for s in judged
        ]
        found[shown] = [(r.touch, r.touch_confidence) for r in results[shown]]
    for name, (signals, sentences) in spoilt(judged, arguments.plain).items():
        ours = [found_in(x, said, scorers["scorer"], embodiment) for x, said in zip(signals, sentences, strict=True)]
        found[name] = [(r.touch, r.touch_confidence) for r in ours]
    print(f"{len(judged)} {embodiment} episodes; touch")
    for name, values in found.items():
        rows = table(one for s, (row, c) in zip(judged, values, strict=True)
                     if (one := judge(s.header, s.signals, s.arrays, "touch", row, c)))  # fmt: skip
        held = sum(row["holds"] for row in rows[:-1])
        print(f"{name:<12} median {rows[-1]['median_px']:.2f}  90 % {rows[-1]['p90_px']:.2f}  "
              f"cm {rows[-1]['median_cm']}  tasks that hold {held} of {len(rows) - 1}")  # fmt: skip
    for moment in ("touch", "end"):
        against = [
            judge(s.header, s.signals, s.arrays, moment, getattr(r, moment), getattr(r, f"{moment}_confidence"))
            for s, r in zip(judged, results[shown], strict=True)
        ]
        print(moment, text(table(one for one in against if one)), *calibration(against, NEAR_PX), sep="\n")
    if not arguments.plain:
        print("said of a touch where there is none: mean, 90 %")
        for name, said in nothing(judged, scorers["scorer"]).items():
            print(f"{name:<16} {np.mean(said):.2f} {np.quantile(said, 0.9):.2f}  ({len(said)})")
    print(f"{time.perf_counter() - begin:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
