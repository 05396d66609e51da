import json

import numpy as np
import pytest

from arvrm.interface import UserError
from arvrm.results import (
    ChainLog,
    ChainRecord,
    bootstrap_interval,
    environment_versions,
    load_results,
    save_results,
    summarize,
    table,
    wilson_interval,
)

CHAIN = ("open_drawer", "turn_on_led", "close_drawer", "turn_off_led", "lift_red_block_table")


def record(index: int, completed: int, **other) -> ChainRecord:
    steps = tuple(range(10, 10 + min(5, completed + 1)))
    return ChainRecord(index=index, tasks=CHAIN, completed=completed, steps=steps, **other)


def results_of(records) -> dict:
    config = {"policy": "expert", "scene": "D", "assets": "builtin"}
    return summarize(records) | {"config": config, "versions": {}, "seconds": 1.0}


def test_statistics_equal_a_hand_count():
    summary = summarize([record(2, 5), record(0, 0), record(1, 2)])
    assert summary["average_length"] == pytest.approx(7 / 3)
    assert summary["success_rates"] == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 3, 1 / 3])
    assert summary["per_task"]["open_drawer"] == {"success": 2, "total": 3}
    assert summary["per_task"]["close_drawer"] == {"success": 1, "total": 2}
    assert summary["per_task"]["turn_off_led"] == {"success": 1, "total": 1}
    assert [chain["index"] for chain in summary["chains"]] == [0, 1, 2]


def test_crash_counts_as_failure_and_is_reported_apart():
    summary = summarize([record(0, 5), record(1, 1, crashed="simulator: gone")])
    assert summary["crashed"] == 1
    assert summary["average_length"] == 3.0
    assert summary["per_task"]["turn_on_led"] == {"success": 1, "total": 2}
    assert "crashed" not in summary["chains"][0] and summary["chains"][1]["crashed"] == "simulator: gone"


def test_bootstrap_interval_is_reproducible_and_covers_the_mean():
    values = np.random.default_rng(3).integers(0, 6, 200)
    low, high = bootstrap_interval(values, seed=1)
    assert (low, high) == bootstrap_interval(values, seed=1)
    assert low < values.mean() < high
    # The normal approximation is good at 200 values.
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(200), rel=0.05)


def test_wilson_interval_equals_a_published_value():
    # 10 of 10: lower bound n / (n + z^2).
    low, high = wilson_interval(10, 10)
    assert low == pytest.approx(10 / (10 + 1.96**2)) and high == 1.0


def test_log_survives_a_torn_last_line(tmp_path):
    path = tmp_path / "log.jsonl"
    with ChainLog(path, {"seed": 0}) as log:
        log.append(record(0, 3), 1.5, {"physics": 1.0})
        log.append(record(1, 5), 2.5, {"physics": 2.0})
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with ChainLog(path, {"seed": 0}, resume=True) as log:
        assert log.records == {0: record(0, 3)}
        assert log.seconds == 1.5 and log.cost == {"physics": 1.0}
        log.append(record(1, 5), 2.5, {"physics": 2.0})
    assert path.read_bytes() == whole


def test_log_refuses_to_resume_another_run(tmp_path):
    path = tmp_path / "log.jsonl"
    ChainLog(path, {"seed": 0, "scene": "D"}).close()
    with pytest.raises(UserError, match="seed = 0, now 1"):
        ChainLog(path, {"seed": 1, "scene": "D"}, resume=True)
    with pytest.raises(UserError, match="--resume"):
        ChainLog(path, {"seed": 0, "scene": "D"})


def test_log_takes_no_chain_twice(tmp_path):
    with ChainLog(tmp_path / "log.jsonl", {}) as log:
        log.append(record(0, 1), 1.0)
        with pytest.raises(ValueError, match="logged already"):
            log.append(record(0, 1), 1.0)


def test_results_round_trip_and_nothing_else_is_left(tmp_path):
    results = results_of([record(0, 5), record(1, 2)])
    path = save_results(tmp_path / "deep" / "results.json", results)
    loaded = load_results(path)
    assert {key: loaded[key] for key in results} == json.loads(json.dumps(results))
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "not JSON"),
        ("[]", "list"),
        ('{"format": "x"}', "'x'"),
        ('{"format": "arvrm-results-1"}', "average"),
    ],
)
def test_malformed_results_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_results(path)
    assert "\n" not in str(caught.value)


def test_table_names_the_average_and_the_weakest_task_first():
    text = table(results_of([record(0, 5), record(1, 2)]))
    assert "3.50 of 5" in text
    tasks = [line.split()[0] for line in text.splitlines() if "%" in line and "interval" not in line]
    assert tasks[0] == "close_drawer" and len(tasks) == 5


def test_versions_name_the_machine_and_the_commit():
    versions = environment_versions()
    assert versions["pybullet"] and versions["torch"] and "cores" in versions["hardware"]
    assert versions["commit"] is None or len(versions["commit"].split("+")[0]) == 40
