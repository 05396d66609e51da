"""`--engine ray`: what runs on a cluster is what runs here, also when workers die.

Most of it with a stand-in for ray, which is no part of dev; the rest is skipped where ray is not installed.
benchmarks/ray_cluster.py kills a whole node of a real cluster of three.
"""

import importlib.util
import json
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import stand_in_ray
from fake_hands import hand_video
from test_evaluation import SmallWorld

from arvrm import clusters
from arvrm.cli import VERBS
from arvrm.evaluation import EvaluateConfig, evaluate
from arvrm.interface import Job, PolicySpec, UserError
from arvrm.results import load_results
from arvrm.sources.human import ConvertHumanConfig, convert_human
from arvrm.sources.playtable import GenerateConfig, generate

TESTS = Path(__file__).parent
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed; pip install 'arvrm[ray]'"
)


@pytest.fixture(scope="module")
def ray():
    """Ray on this machine, whose workers find the tests' own modules."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    os.environ.setdefault("RAY_worker_niceness", "0")
    yield clusters._ray()
    clusters._ray().shutdown()


class LateWorld(SmallWorld):
    """Takes its time, so that it is still at work when its node goes."""

    def step(self, action):
        time.sleep(0.02)
        return super().step(action)


class Once:
    """A policy that notes nothing and stands still."""

    spec = PolicySpec("calvin", execute_steps=5)

    def __init__(self, config):
        pass

    def plan(self, requests):
        import numpy as np

        return [np.tile(np.array([0, 0, 0.1, 0, 0, 0, 1], np.float32), (5, 1)) for _ in requests]


def dies_once(marker):
    """Return what an item does whose worker is killed from outside the first time; see `clusters.TaskPool`."""

    def do(item):
        if item == 2 and not Path(marker).exists():
            Path(marker).write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        return item * item

    return do


def fails(config):
    def do(item):
        if item == 1:
            raise UserError("item 1: is odd; give another")
        os.kill(os.getpid(), signal.SIGSEGV)

    return do


def talk(connection, number):
    """What a process on a node does: answer, and die as it is told."""
    while (said := connection.recv()) is not None:
        if said == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        connection.send((number, said))


@pytest.fixture
def stand_in(monkeypatch):
    """The nodes' side without ray: `stand_in_ray`."""
    module = stand_in_ray.Module()
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
    return module


def rolled_out(path, engine, world=SmallWorld):
    jobs = [Job(10 + n, ("open_drawer",) * 2, ("go",) * 2, 0.1 * n) for n in range(6)]
    config = EvaluateConfig(str(path), policy="expert", workers=2, max_steps=30, engine=engine)
    return load_results(evaluate(None, config, world, jobs))


def test_simulators_on_nodes_give_the_chains_that_local_ones_give(stand_in, tmp_path):
    local, ours = rolled_out(tmp_path / "a.json", "local"), rolled_out(tmp_path / "b.json", "ray")
    assert local["chains"] == ours["chains"] and len(ours["chains"]) == 6 and ours["average_length"] > 0
    assert len(stand_in.references) == 2 and not stand_in_ray.children()


def test_node_that_dies_costs_no_chain(stand_in, tmp_path):
    local = rolled_out(tmp_path / "a.json", "local")
    killed = []

    def kill():
        log = tmp_path / "b.chains.jsonl"
        while not log.exists() or log.read_bytes().count(b"\n") < 3:
            time.sleep(0.01)
        killed.append(stand_in.kill_node())

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    ours = rolled_out(tmp_path / "b.json", "ray", LateWorld)
    killer.join(60)
    assert killed == [2] and len(stand_in.references) > 2  # others took their place
    assert ours["chains"] == local["chains"] and ours["crashed"] == 0


def test_simulator_that_crashes_on_a_node_fails_its_chain_as_a_local_one_does(stand_in, tmp_path):
    jobs = [Job(n, ("open_drawer",) * 2, ("go",) * 2, 0.0) for n in (2, 3)]  # 3 ends its process
    results = []
    for engine in ("local", "ray"):
        config = EvaluateConfig(str(tmp_path / f"{engine}.json"), policy="expert", workers=1, engine=engine)
        results.append(load_results(evaluate(None, config, SmallWorld, jobs))["chains"])
    assert results[0] == results[1] and "process ended with code 7" in results[1][1]["crashed"]


def test_stranger_who_does_not_know_the_key_is_let_go(stand_in):
    cluster = clusters.Cluster()
    with multiprocessing.connection.Client(cluster._listener.address) as stranger:
        challenge = stranger.recv_bytes()
        assert challenge.startswith(b"#CHALLENGE#")
        stranger.send_bytes(b"x" * 32)
        assert stranger.recv_bytes() == b"#FAILURE#"
    cluster.close()


def test_units_on_a_cluster_make_the_same_store(stand_in, tmp_path):
    made = GenerateConfig("", scenes=("D",), tasks=("open_drawer",), episodes=2, workers=1)
    for engine in ("local", "ray"):
        generate(replace(made, output=str(tmp_path / engine), engine=engine))
    assert (tmp_path / "local" / "data.mdb").read_bytes() == (tmp_path / "ray" / "data.mdb").read_bytes()


def test_what_a_task_refuses_is_said_in_its_own_words(stand_in):
    pool = clusters.TaskPool(fails, None)
    with pytest.raises(UserError, match="^item 1: is odd; give another$"):
        pool.submit(None, 1).result(timeout=20)
    assert pool._translated(stand_in_ray.NodeDiedError()).args == ("died 5 times (NodeDiedError)",)


@pytest.mark.parametrize("verb", ["generate", "convert human", "evaluate"])
def test_without_ray_the_engine_says_how_to_get_it(verb, tmp_path):
    code = "import sys; sys.modules['ray'] = None\nfrom arvrm.cli import main\nsys.exit(main(sys.argv[1:]))"
    (tmp_path / "v").mkdir()
    hand_video(tmp_path / "v" / "a.mp4", frames=12)
    words = {
        "generate": ["--episodes", "1", "--scenes", "D"],
        "convert human": [
            "--source",
            "folder",
            "--input",
            str(tmp_path / "v"),
            "--detector",
            "fake_hands:BlobDetector",
        ],
        "evaluate": ["--policy", "expert", "--chains", "1"],
    }[verb]
    line = [sys.executable, "-c", code, *verb.split(), *words, "--engine", "ray", "--output", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    ran = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2 and "pip install 'arvrm[ray]'" in ran.stderr and "Traceback" not in ran.stderr, (
        ran.stderr
    )
    assert VERBS[verb].settings([*words, "--output", "o"]).engine == "local"


@needs_ray
def test_item_whose_worker_is_killed_is_done_again(ray, tmp_path):
    pool = clusters.TaskPool(dies_once, str(tmp_path / "marker"))
    futures = [pool.submit(None, item) for item in range(4)]
    assert [future.result(timeout=120) for future in futures] == [0, 1, 4, 9] and (tmp_path / "marker").exists()
    pool.shutdown()


@needs_ray
def test_item_that_kills_every_worker_is_told_from_one_that_is_refused(ray):
    pool = clusters.TaskPool(fails, None)
    with pytest.raises(UserError, match="^item 1: is odd; give another$"):
        pool.submit(None, 1).result(timeout=120)
    with pytest.raises(clusters.BrokenProcessPool, match="died 5 times"):
        pool.submit(None, 2).result(timeout=240)
    pool.shutdown()


@needs_ray
def test_process_on_a_node_talks_as_one_of_ours_and_says_how_it_ended(ray):
    cluster = clusters.Cluster()
    (ours, process), (other, second) = cluster.start(talk, (7,)), cluster.start(talk, (8,))
    ours.send("hello")
    other.send("there")
    assert ours.recv() == (7, "hello") and other.recv() == (8, "there") and process.is_alive()
    ours.send(None)
    with pytest.raises(EOFError):
        ours.recv()
    process.join(30)
    assert process.exitcode == 0
    other.send("die")
    with pytest.raises(EOFError):
        other.recv()
    second.join(30)
    assert second.exitcode == -signal.SIGSEGV
    cluster.close()


@needs_ray
def test_generated_converted_and_evaluated_is_the_same_to_the_byte(ray, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS))
    made = GenerateConfig("", scenes=("D",), tasks=("open_drawer", "lift_red_block_table"), episodes=4, workers=1)
    (tmp_path / "v").mkdir()
    for number in range(3):
        hand_video(tmp_path / "v" / f"push_{number}.mp4", frames=24)
    videos = ConvertHumanConfig(
        "folder", str(tmp_path / "v"), "", detector="fake_hands:BlobDetector", image_size=96, workers=1
    )
    chains = EvaluateConfig(policy="test_clusters:Once", chains=3, max_steps=15, workers=2)
    for engine in ("local", "ray"):
        generate(replace(made, output=str(tmp_path / f"g_{engine}"), engine=engine))
        convert_human(replace(videos, output=str(tmp_path / f"h_{engine}"), engine=engine))
        evaluate(None, replace(chains, output=str(tmp_path / f"e_{engine}.json"), engine=engine))
    for name in ("g", "h"):
        local, ours = (tmp_path / f"{name}_{engine}" / "data.mdb" for engine in ("local", "ray"))
        assert local.read_bytes() == ours.read_bytes()
    results = [load_results(tmp_path / f"e_{engine}.json") for engine in ("local", "ray")]
    assert results[0]["chains"] == results[1]["chains"] and results[0]["per_task"] == results[1]["per_task"]
    assert [found["config"]["engine"] for found in results] == ["local", "ray"]
    evaluate(None, replace(chains, output=str(tmp_path / "e_local.json"), engine="ray", resume=True))
    assert json.loads((tmp_path / "e_local.json").read_text())["chains"] == results[0]["chains"]
