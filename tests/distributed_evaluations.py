"""Evaluations by several processes for tests/test_distributed.py: `python distributed_evaluations.py FOLDER`.

Apart from distributed_runs.py because simulators are spawned, and load this file again: it must be light.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import test_evaluation as small

from arvrm import evaluation, processes
from arvrm.evaluation.parent import Parent


def roll_out(folder: Path, count: int, die_after: int | None, **values) -> None:
    """One process of an evaluation. When each has logged `die_after` chains, the last one is killed."""
    finish, logged = Parent._finish, []

    def counted(self, record, cost):
        finish(self, record, cost)
        logged.append(record.index)
        if len(logged) == die_after:
            board = processes.board()
            board.put(f"ready {processes.rank()}", True)
            if processes.rank() == processes.world() - 1:
                for number in range(processes.world()):
                    board.take(f"ready {number}")
                os.kill(os.getpid(), signal.SIGKILL)
            board.take("never")

    Parent._finish = counted

    def run() -> None:
        settings = small.config(folder, **values)
        evaluation.evaluate(small.Steady, settings, small.SmallWorld, small.jobs(count))

    sys.exit(processes.run_main(run, "error: ", "interrupted"))


class Broken(small.Broken):
    """Plans what no simulator takes, in the second process; the first waits until that one has got a chain."""

    asked = False

    def chunk(self, request):
        if processes.rank() == 1:
            processes.board().put("asked", True)
            return super().chunk(request)
        if not self.asked:
            self.asked = processes.board().take("asked")
        return small.Steady().chunk(request)


def break_down(folder: Path) -> None:
    def run() -> None:
        evaluation.evaluate(Broken, small.config(folder), small.SmallWorld, small.jobs(9))

    sys.exit(processes.run_main(run, "error: ", "interrupted"))


def main(root: Path) -> None:
    from distributed_runs import launch

    done = {
        "three": launch(3, roll_out, root / "three", 9, None),
        "killed": launch(2, roll_out, root / "killed", 9, 2),
    }
    names = sorted(path.name for path in (root / "killed").iterdir() if not path.name.startswith("."))
    (root / "killed.json").write_text(json.dumps(names))
    for path in (root / "killed").iterdir():
        (root / f"after the kill {path.name}").write_bytes(path.read_bytes())
    done["resumed"] = launch(3, lambda: roll_out(root / "killed", 9, None, resume=True))
    done["one chain"] = launch(2, roll_out, root / "one chain", 1, None)
    done["broken"] = launch(2, break_down, root / "broken")
    (root / "done.json").write_text(json.dumps(done))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
