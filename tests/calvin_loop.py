"""An evaluation script as CALVIN's users write them, around the scripted expert: calvin_loop.py DATA_SET LOG_DIR."""

import json
import os
import sys
from pathlib import Path

import gym
import numpy as np
import yaml
from calvin_agent.evaluation.multistep_sequences import get_sequences
from calvin_agent.evaluation.utils import (
    collect_plan,
    count_success,
    create_tsne,  # noqa: F401  imported, as in most scripts, and not used
    get_env_state_for_initial_condition,
    get_log_dir,
    print_and_save,
)
from calvin_agent.models.calvin_base_model import CalvinBaseModel
from calvin_env.envs.play_table_env import get_env
from calvin_env.envs.tasks import Tasks
from pytorch_lightning import seed_everything
from termcolor import colored

from arvrm.sim.experts import Expert

SEED = 0


class Wrapper(gym.Wrapper):
    def reset(self, robot_obs=None, scene_obs=None):
        return self.env.reset(robot_obs=robot_obs, scene_obs=scene_obs)


class Model(CalvinBaseModel):
    def __init__(self, table):
        self.table, self.expert = table, None

    def begin(self, chain, place, task):
        rng = np.random.default_rng([SEED, chain, place])
        self.expert = Expert(task, self.table, rng, after=self.expert if place else None)

    def reset(self):
        self.count = 0

    def step(self, obs, goal):
        assert obs["rgb_obs"]["rgb_static"].dtype == np.uint8
        self.count += 1
        return self.expert.act()


def main(data_set, log_dir):
    seed_everything(0, workers=True)
    env = Wrapper(get_env(Path(data_set) / "validation", show_gui=False))
    conf = Path(os.environ["CALVIN_ROOT"]) / "calvin_models" / "conf"
    oracle = Tasks(yaml.safe_load((conf / "callbacks/rollout/tasks/new_playtable_tasks.yaml").read_text())["tasks"])
    sentences = yaml.safe_load((conf / "annotations/new_playtable_validation.yaml").read_text())
    model, sequences, results, steps = Model(env.unwrapped._table), get_sequences(1000), [], []
    for chain, (initial_state, tasks) in enumerate(sequences):
        robot_obs, scene_obs = get_env_state_for_initial_condition(initial_state)
        env.reset(robot_obs=robot_obs, scene_obs=scene_obs)
        done, counts = 0, []
        for place, task in enumerate(tasks):
            model.begin(chain, place, task)
            success = rollout(env, model, oracle, task, sentences[task][0])
            counts.append(model.count)
            done += success
            if not success:
                break
        results.append(done)
        steps.append(counts)
    print(colored(count_success(results), "green"))
    print_and_save(results, sequences, get_log_dir(log_dir))
    print(json.dumps({"results": results, "steps": steps, "tasks": [tasks for _, tasks in sequences]}))


def rollout(env, model, oracle, task, sentence):
    obs = env.get_obs()
    model.reset()
    start_info = env.get_info()
    for step in range(360):
        obs, _, _, info = env.step(model.step(obs, sentence))
        if step == 0:
            collect_plan(model, {task: []}, task)
        if oracle.get_task_info_for_set(start_info, info, {task}):
            return True
    return False


if __name__ == "__main__":
    main(*sys.argv[1:])
