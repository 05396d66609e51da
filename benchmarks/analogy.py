"""What the parts of a policy by analogy do on images whose truth is known: m, places, turns and retrieval.

    python benchmarks/analogy.py CHECKPOINT --robot STORE [--own STORE ...] [--picture map.png]

STORE holds episodes of `arvrm generate` that the checkpoint has not seen; each is asked for with a sentence that no
demonstration has. `--own` are the stores of its demonstrations: whose task each of its motions is.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch

from arvrm.episodes import EpisodeStore
from arvrm.geometry import half_turn
from arvrm.instructions import unseen_instructions, validation_instruction
from arvrm.interface import KEYPOINTS, TASKS
from arvrm.moments.judged import truth_of
from arvrm.motions import fit_map
from arvrm.motions.camera import project
from arvrm.motions.hand_map import HandMap
from arvrm.policy import load_policy
from arvrm.policy.analogy import AnalogyPolicy
from arvrm.policy.places import PlaceSeer

FINGERTIPS = [KEYPOINTS.index(f"{finger}_tip") for finger in ("thumb", "index")]


def fits(seer: PlaceSeer, camera: np.ndarray | None, seeds: int) -> list[HandMap]:
    """m fitted anew to the library, from several starts."""
    motions = seer.motions
    hands = np.concatenate([one.hand for one in motions])
    tcp = np.concatenate([[one.path.tcp_touch, one.path.tcp_end] for one in motions])
    confidence = np.concatenate([one.confidence for one in motions])
    turn = np.concatenate([[one.turn, np.zeros(2)] for one in motions])
    return [fit_map(hands, tcp, confidence, turn, camera, seed) for seed in range(seeds)]


def about_map(seer: PlaceSeer, camera: np.ndarray, seeds: int, picture: Path | None) -> None:
    for name, given in (("calibrated", camera), ("fitted", None)):
        found = fits(seer, given, seeds)
        masses = [one.tips_mass for one in found]
        rows = np.mean([one.position for one in found], 0)
        spread = np.ptp([one.position for one in found], 0).max()
        print(f"m, camera {name}: mass on thumb and index tips {min(masses):.3f} to {max(masses):.3f} of {seeds} seeds")
        print(
            f"  error {100 * found[0].error:.2f} cm, yaw off by {np.degrees(found[0].deviation):.0f} degrees (1 sigma)"
        )
        print(f"  rows differ by {spread:.3f} at most; most weight on", end=" ")
        print(", ".join(f"{KEYPOINTS[k]} {rows.mean(0)[k]:.2f}" for k in np.argsort(-rows.mean(0))[:5]))
        if picture is not None and name == "calibrated":
            draw(rows, picture)
    hands = np.array([one.hand[0] for one in seer.motions])
    tcp = np.array([one.path.tcp_touch for one in seer.motions])
    for name, k in (("wrist", [0]), ("thumb tip", FINGERTIPS[:1]), ("index tip", FINGERTIPS[1:]), ("both", FINGERTIPS)):
        off = np.linalg.norm(hands[:, k].mean(1) - project(camera, tcp[:, :3]), axis=1)
        print(f"  {name} alone: {np.median(off):.1f} px of 96 from the gripper")


def draw(rows: np.ndarray, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 2.2))
    image = axes.imshow(rows, cmap="viridis", vmin=0, aspect="auto")
    axes.set_xticks(range(len(KEYPOINTS)), KEYPOINTS, rotation=90, fontsize=7)
    axes.set_yticks(range(3), ["x", "y", "z"])
    figure.colorbar(image)
    figure.savefig(file, dpi=150, bbox_inches="tight")


def about_places(policy: AnalogyPolicy, robot: str, own: list[str]) -> None:
    seer, rows = policy.seer, []
    assert isinstance(seer, PlaceSeer)
    task_of = {name: store.header(name).task for store in map(EpisodeStore, own) for name in store.ids}
    tasks = np.array([task_of.get(one.id, "") for one in seer.motions])
    touched = np.array([one.path.tcp_touch[:3] for one in seer.motions])
    store, rng, seconds = EpisodeStore(robot), np.random.default_rng(0), []
    for number, name in enumerate(store.ids):
        header = store.header(name)
        truth = truth_of(header)
        if truth is None or "touch" not in truth:
            continue
        several = (validation_instruction(header.task), *unseen_instructions(header.task))
        sentence = several[0] if number % 2 == 0 else several[int(rng.integers(1, len(several)))]
        states = store.arrays(name, ["robot_obs"])["robot_obs"]
        begin = time.process_time()
        sight = seer.sight(store.frames(name, seer.camera, [0])[0], sentence, states[0, :7])
        seconds.append(time.process_time() - begin)
        best, tcp = sight.choices[0], states[truth["touch"]]
        assert sight.hands is not None
        seen = project(np.array(truth["camera"]), tcp[:3]) * 96 / header.cameras[seer.camera][0]
        vision = seer.vision(sight.hands)
        alike = np.flatnonzero(tasks == header.task)
        nearest = alike[np.argmin(np.linalg.norm(touched[alike] - tcp[:3], axis=1))] if len(alike) else -1
        rows.append({
            "task": header.task,
            "px": float(np.linalg.norm(sight.hands.acting[0, 0] - seen)),
            "cm": 100 * float(np.linalg.norm(best.goal.touch - tcp[:3])),
            "turned": float(np.degrees(abs(half_turn(best.motion.path.tcp_touch[5] + best.goal.turn - tcp[5])))),
            "unturned": float(np.degrees(abs(half_turn(best.motion.path.tcp_touch[5] - tcp[5])))),
            "right": task_of.get(best.motion.id) == header.task,
            "seen": tasks[vision.argmax()] == header.task,
            "nearest": len(alike) > 1 and alike[vision[alike].argmax()] == nearest,
            "sure": float(sight.hands.confidence[0, 0]),
            "other": (header.task, task_of.get(best.motion.id)),
        })  # fmt: skip
    print(f"{1000 * float(np.mean(seconds)):.1f} ms of CPU a look, {torch.get_num_threads()} thread")
    print(f"{'task':<26}  n  px 50 %  90 %  cm 50 %  90 %  turn off (unturned)  right  by vision  nearest  sure")
    by_task: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        by_task[row["task"]].append(row)
        by_task["all"].append(row)
    for task in (*TASKS, "all"):
        some = by_task[task]
        if some:
            of = {key: np.array([row[key] for row in some], float) for key in some[0] if key not in ("task", "other")}
            print(
                f"{task:<26}{len(some):>3}{np.median(of['px']):>9.1f}{np.quantile(of['px'], 0.9):>6.1f}"
                f"{np.median(of['cm']):>9.1f}{np.quantile(of['cm'], 0.9):>6.1f}{np.median(of['turned']):>10.0f}"
                f" ({np.median(of['unturned']):.0f}){of['right'].mean():>14.2f}{of['seen'].mean():>11.2f}"
                f"{of['nearest'].mean():>9.2f}{of['sure'].mean():>6.2f}"
            )
    wrong = Counter(row["other"] for row in rows if not row["right"])
    print("taken for another:", ", ".join(f"{a} for {b}: {n}" for (a, b), n in wrong.most_common(8)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--robot", required=True)
    parser.add_argument("--own", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_policy(args.checkpoint)
    assert isinstance(loaded, AnalogyPolicy) and isinstance(loaded.seer, PlaceSeer)
    store = EpisodeStore(args.robot)
    header = store.header(store.ids[0])
    calibrated = np.array((truth_of(header) or {})["camera"], np.float64)
    calibrated[:2] *= 96 / header.cameras[loaded.seer.camera][0]
    about_map(loaded.seer, calibrated, args.seeds, args.picture)
    about_places(loaded, args.robot, args.own)
