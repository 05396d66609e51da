"""From LeRobot's own recording to LeRobot's own evaluation, by a policy of arvrm; needs the real packages.

    python -m venv env && env/bin/pip install "lerobot[async,dataset,evaluation,pusht]==0.6.1" -e ".[lerobot]" \
        -e integrations/lerobot_policy_arvrm
    env/bin/python integrations/lerobot_policy_arvrm/try_it.py WORKING_FOLDER

Records a few episodes of PushT at random with `LeRobotDataset`, converts and trains on them for some updates (the
policy learns nothing in them), and then says line by line what agrees: what `LeRobotDataset` reads against our store,
what `select_action` gives against our own rollout of the same observations, `lerobot-eval`, and the robot client
through LeRobot's policy server. Everything is on this machine, on a CPU.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

CAMERA = "observation.images.front"
TASK = "push the T onto its mark"
SETTINGS = {
    "output": "policy",
    "data": {"stores": ["store"], "validation": 0},
    "window": {"history": 3, "stride": 2},
    "model": {
        "width": 32, "layers": 1, "heads": 2, "latents": 2, "joint_width": 16, "chunk": 8,
        "vision": {"static_size": 64, "gripper_size": 64, "width": 32, "channels": [8, 16], "depth": 1, "points": 8},
    },
    "train": {"steps": 20, "batch": 8, "device": "cpu", "validate_every": 0, "tensorboard": False},
}  # fmt: skip


def say(what: str, right: bool) -> None:
    print(f"{'yes' if right else 'NO '}  {what}", flush=True)
    if not right:
        raise SystemExit(1)


def record(folder: Path, episodes: int = 4, steps: int = 30) -> None:
    """Record PushT with an arm that wanders."""
    import gym_pusht  # noqa: F401
    import gymnasium
    from lerobot.datasets import LeRobotDataset

    features = {
        "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        CAMERA: {"dtype": "video", "shape": (96, 96, 3), "names": ["height", "width", "channels"]},
    }
    made = LeRobotDataset.create("local/pusht", 10, features, folder, "pusht", use_videos=True)
    env = gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos", disable_env_checker=True)
    for number in range(episodes):
        seen, _ = env.reset(seed=number)
        rng = np.random.default_rng(number)
        for _ in range(steps):
            action = np.clip(seen["agent_pos"] + rng.uniform(-60, 60, 2), 0, 512).astype(np.float32)
            frame = {"observation.state": seen["agent_pos"].astype(np.float32), "action": action}
            made.add_frame({**frame, CAMERA: seen["pixels"], "task": TASK})
            seen, *_ = env.step(action)
        made.save_episode()
    made.finalize()
    env.close()


def check_store(source: Path, place: Path) -> None:
    from lerobot.datasets import LeRobotDataset

    from arvrm.episodes import EpisodeStore

    theirs = LeRobotDataset("local/pusht", root=source, video_backend="pyav")
    ours = EpisodeStore(place)
    rows = [theirs[i] for i in range(len(theirs))]
    for key, name in (("observation.state", "state"), ("action", "actions")):
        wanted = np.stack([row[key].numpy() for row in rows])
        found = np.concatenate([ours.arrays(id, [name])[name] for id in ours.ids])
        say(f"{key} of {len(rows)} rows is that of LeRobotDataset to the bit", np.array_equal(found, wanted))
    pictures = np.concatenate([ours.frames(id, "front", range(ours.header(id).frames)) for id in ours.ids])
    wanted = np.stack([row[CAMERA].permute(1, 2, 0).numpy() for row in rows]) * 255
    off = np.abs(pictures - wanted).mean()
    say(f"its frames too, but for JPEG: {off:.2f} of 255 on average", off < 3)


def observations(count: int, rows: int) -> list[dict[str, object]]:
    """Batches as lerobot-eval hands them to a policy, all rows with other pictures."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        pixels = torch.from_numpy(rng.integers(0, 256, (rows, 3, 96, 96), dtype=np.uint8)).float() / 255
        state = torch.from_numpy(rng.uniform(0, 512, (rows, 2)).astype(np.float32))
        found.append({CAMERA: pixels, "observation.state": state, "task": [TASK] * rows})
    return found


def check_actions(place: Path, checkpoint: Path) -> None:
    """Compare `select_action` with arvrm's own loop (evaluation.rollout.Chunks), over 40 steps of 2 episodes."""
    from lerobot.policies import make_pre_post_processors
    from lerobot_policy_arvrm import ArvrmPolicy

    from arvrm.interface import Observation, PlanRequest
    from arvrm.policy import load_policy

    theirs, ours = ArvrmPolicy.from_pretrained(place), load_policy(checkpoint)
    before, after = make_pre_post_processors(theirs.config, pretrained_path=str(place))
    batches, rows = observations(40, 2), 2
    offsets, execute = ours.spec.history_offsets, ours.spec.execute_steps
    seen: list[list[Observation]] = [[] for _ in range(rows)]
    chunks: list[np.ndarray] = [np.zeros(0)] * rows
    equal = True
    theirs.reset()
    for step, batch in enumerate(batches):
        given = after(theirs.select_action(before(dict(batch)))).numpy()
        for row in range(rows):
            pixels = (batch[CAMERA][row].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            state = {"state": batch["observation.state"][row].numpy().astype(np.float64)}
            seen[row].append(Observation(state, {"front": pixels}))
            if step % execute == 0:
                history = tuple(seen[row][max(0, step + offset)] for offset in offsets)
                chunks[row] = ours.plan([PlanRequest(TASK, history, row, step)])[0]
            equal &= np.array_equal(given[row], chunks[row][step % execute])
    say(f"select_action gives arvrm's own actions to the bit: 40 steps, 2 rows, windows of {len(offsets)}", equal)


def check_eval(place: Path, folder: Path) -> None:
    from lerobot.scripts.lerobot_eval import main

    out = folder / "eval"
    words = [f"--policy.path={place}", "--policy.device=cpu", f"--policy.instruction={TASK}", f"--output_dir={out}"]
    words += ["--env.type=pusht", "--env.episode_length=30", "--eval.n_episodes=4", "--eval.batch_size=2"]
    words += ["--eval.use_async_envs=false", f'--rename_map={{"observation.image": "{CAMERA}"}}']
    sys.argv = ["lerobot-eval", *words]
    main()
    overall = json.loads((out / "eval_info.json").read_text())["overall"]
    rewards = f"mean of the best reward {overall['avg_max_reward']:.3f}, success {overall['pc_success']:.0f} %"
    say(f"lerobot-eval: {overall['n_episodes']} episodes of PushT, {rewards}", overall["n_episodes"] == 4)


def check_client(place: Path, folder: Path, port: int = 18_431) -> None:
    """Drive a stand-in for a robot with LeRobot's own client, through LeRobot's own server."""
    from dataclasses import dataclass

    from lerobot.async_inference import robot_client
    from lerobot.async_inference.configs import PolicyServerConfig, RobotClientConfig
    from lerobot.robots import Robot, RobotConfig
    from lerobot_policy_arvrm.server import serve

    @RobotConfig.register_subclass("stand_in")
    @dataclass
    class StandInConfig(RobotConfig):
        pass

    class StandIn(Robot):
        """Two numbers, which go where they are told, and a grey camera."""

        config_class, name = StandInConfig, "stand_in"
        is_connected = is_calibrated = True
        observation_features = {"x": float, "y": float, "front": (96, 96, 3)}
        action_features = {"x": float, "y": float}

        def __init__(self, config: StandInConfig) -> None:
            self.place, self.sent = {"x": 100.0, "y": 200.0}, []

        def connect(self, calibrate: bool = True) -> None: ...
        def calibrate(self) -> None: ...
        def configure(self) -> None: ...
        def disconnect(self) -> None: ...

        def get_observation(self) -> dict[str, object]:
            return {**self.place, "front": np.full((96, 96, 3), 128, np.uint8)}

        def send_action(self, action: dict[str, float]) -> dict[str, float]:
            self.place = {key: float(value) for key, value in action.items()}
            self.sent.append(dict(self.place))
            return action

    robot = StandIn(StandInConfig())
    robot_client.make_robot_from_config = lambda config: robot
    served = threading.Thread(target=serve, args=(PolicyServerConfig("127.0.0.1", port, fps=10),), daemon=True)
    served.start()
    while not reachable(port):
        time.sleep(0.2)
        if not served.is_alive():
            raise SystemExit("the policy server has ended")
    config = RobotClientConfig(
        "arvrm", str(place), StandInConfig(), 8, task=TASK, server_address=f"127.0.0.1:{port}", fps=10
    )
    client = robot_client.RobotClient(config)
    say("the robot client connects to LeRobot's policy server, which loads the policy", client.start())
    threading.Thread(target=client.receive_actions, daemon=True).start()
    threading.Thread(target=until, args=(lambda: len(robot.sent) >= 24, 120, client.shutdown_event.set)).start()
    client.control_loop(task=TASK)
    client.stop()
    inside = all(-1 <= value <= 513 for action in robot.sent for value in action.values())
    say(
        f"the robot client executed {len(robot.sent)} actions, all within PushT's table",
        len(robot.sent) >= 24 and inside,
    )


def reachable(port: int) -> bool:
    import socket

    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def until(done: Callable[[], bool], seconds: float, then: Callable[[], object]) -> None:
    begun = time.monotonic()
    while not done() and time.monotonic() - begun < seconds:
        time.sleep(0.1)
    then()


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.chdir(folder)
    os.environ["HF_HUB_OFFLINE"] = "1"
    import lerobot
    from lerobot_policy_arvrm.package import package

    from arvrm.config import from_dict
    from arvrm.sources.lerobot import ConvertLeRobotConfig, Facts, convert_lerobot
    from arvrm.training import FinetuneConfig, finetune

    print(f"lerobot {lerobot.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}")
    record(folder / "set")
    facts = Facts(relative=False, binary=0, frame="target of the disc", units="px")
    report = convert_lerobot(ConvertLeRobotConfig("set", "store", facts=facts))
    say(f"what LeRobotDataset wrote is converted: {report.episodes} episodes", report.episodes == 4)
    check_store(folder / "set", folder / "store")
    finetune(from_dict(FinetuneConfig, SETTINGS), progress=False)
    package("policy", "packaged", device="cpu")
    check_actions(folder / "packaged", folder / "policy")
    check_eval(folder / "packaged", folder)
    check_client(folder / "packaged", folder)


if __name__ == "__main__":
    main()
