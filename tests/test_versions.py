"""Which distribution of PyBullet is installed, asked for and named."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from arvrm import versions
from arvrm.results import environment_versions
from arvrm.sim.bullet import warn_of_two

PYPROJECT = (Path(__file__).parent.parent / "pyproject.toml").read_text()


@pytest.fixture
def distributions(monkeypatch):
    """Let only the given distributions be installed: name -> version."""

    def use(present):
        def find(name):
            if name not in present:
                raise importlib.metadata.PackageNotFoundError(name)
            return present[name]

        monkeypatch.setattr(importlib.metadata, "version", find)

    return use


@pytest.mark.parametrize(
    "present, said",
    [
        ({"pybullet": "3.2.7"}, "3.2.7"),
        ({"pybullet-arm64": "3.2.8"}, "3.2.8 (pybullet-arm64)"),
        ({"pybullet": "3.2.7", "pybullet-arm64": "3.2.8"}, "3.2.8 (pybullet-arm64), 3.2.7"),
        ({}, None),
    ],
)
def test_the_version_is_that_of_whichever_distribution_is_installed(distributions, present, said):
    distributions(present)
    assert versions.version("pybullet") == said == environment_versions()["pybullet"]


def test_two_pybullets_are_said_in_one_line_with_the_remedy(distributions, capsys):
    distributions({"pybullet": "3.2.7", "pybullet-arm64": "3.2.8"})
    warn_of_two()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pip uninstall -y pybullet-arm64 pybullet" in said


@pytest.mark.parametrize("name", ["pybullet", "pybullet-arm64"])
def test_one_pybullet_needs_no_words(distributions, capsys, name):
    distributions({name: "3.2.8"})
    warn_of_two()
    assert capsys.readouterr().err == ""


def requirements(text):
    return re.findall(r'^    "(.*)",$', text, re.M)


def test_the_simulator_alone_needs_what_the_whole_needs_and_no_other_version():
    whole = requirements(PYPROJECT.split("dependencies = [")[1].split("]")[0])
    alone = requirements(PYPROJECT.split("simulator = [")[1].split("]")[0])
    assert set(alone) - set(whole) == {"pytest>=8"}
    assert "pytest>=8" in PYPROJECT.split("dev = [")[1].split("]")[0]


@pytest.mark.parametrize("machine", ["x86_64", "arm64", "aarch64"])
@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_every_machine_gets_one_pybullet(system, machine):
    markers = pytest.importorskip("packaging.markers")
    wanted = [line.partition(" ; ") for line in requirements(PYPROJECT) if line.startswith("pybullet")]
    machine_is = {"sys_platform": system, "platform_machine": machine}
    names = {name for name, _, marker in wanted if markers.Marker(marker).evaluate(machine_is)}
    fork = machine == "x86_64" or system == "darwin"
    assert names == {"pybullet-arm64==3.2.8" if fork else "pybullet==3.2.7"}


def test_the_simulator_and_its_command_need_no_torch():
    code = "import sys; import arvrm.sim.env, arvrm.sim.verify, arvrm.sim.experts, arvrm.sim.chains; "
    check = "assert not {'torch', 'lmdb', 'av', 'accelerate'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code + check], check=True)
