"""The LeRobot plugin's own part, without LeRobot: what is shown to a policy, and what becomes of its plans.

`integrations/lerobot_policy_arvrm/try_it.py` tries it in the real package.
"""

import dataclasses
import enum
import runpy
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arvrm.config import from_dict
from arvrm.interface import Observation, PlanRequest, UserError
from arvrm.model.checkpoint import save_checkpoint
from arvrm.model.config import ModelConfig
from arvrm.model.metadata import CheckpointMetadata
from arvrm.model.policy_net import PolicyNet
from arvrm.policy import load_policy
from arvrm.robots.described import CameraView, DescribedRobot, Description, Numbers
from arvrm.training import FinetuneConfig

FOLDER = Path(__file__).parent.parent / "integrations" / "lerobot_policy_arvrm"
SOURCE = FOLDER / "src"
FRONT, HAND = "observation.images.front", "observation.images.hand.left"
MODEL = {
    "width": 32, "layers": 1, "heads": 2, "latents": 2, "joint_width": 16, "chunk": 4,
    "vision": {"static_size": 32, "gripper_size": 32, "width": 32, "channels": [8, 16], "depth": 1, "points": 8},
}  # fmt: skip
ROBOT = DescribedRobot(
    Description(
        name="arm",
        control_hz=10.0,
        cameras=(CameraView("front", "static", FRONT), CameraView("hand.left", "hand", HAND)),
        state=Numbers(("a", "b"), ("deg", "deg"), (-90.0, 0.0), (90.0, 45.0), ("observation.state",)),
        action=Numbers(("a", "b", "jaw"), ("deg", "deg", ""), (-90.0, 0.0, 0.0), (90.0, 45.0, 5.0), ("action",)),
        relative=False,
        binary=1,
        frame="joint targets",
    )
)


def stand_in() -> dict[str, types.ModuleType]:
    """The few names of LeRobot that the plugin imports."""

    class FeatureType(enum.Enum):
        VISUAL, STATE, ACTION = "VISUAL", "STATE", "ACTION"

    class NormalizationMode(enum.Enum):
        IDENTITY = "IDENTITY"

    @dataclass
    class PolicyFeature:
        type: FeatureType
        shape: tuple[int, ...]

    @dataclass
    class PreTrainedConfig:
        input_features: dict[str, PolicyFeature] = field(default_factory=dict)
        output_features: dict[str, PolicyFeature] = field(default_factory=dict)
        device: str = "cpu"

        @staticmethod
        def register_subclass(name: str) -> Any:
            return lambda kind: kind

        def __post_init__(self) -> None: ...

        def _save_pretrained(self, folder: Path) -> None:
            (folder / "config.json").write_text("{}")

    class PreTrainedPolicy(torch.nn.Module):
        def __init__(self, config: PreTrainedConfig) -> None:
            super().__init__()
            self.config = config

    names: dict[str, list[Any]] = {
        "lerobot": [],
        "lerobot.configs": [FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig],
        "lerobot.policies": [PreTrainedPolicy],
        "lerobot.processor": [
            *("AddBatchDimensionProcessorStep", "DeviceProcessorStep", "PolicyAction", "PolicyProcessorPipeline"),
            "RenameObservationsProcessorStep",
        ],
        "lerobot.processor.converters": ["policy_action_to_transition", "transition_to_policy_action"],
        "lerobot.utils": [],
        "lerobot.utils.constants": ["POLICY_POSTPROCESSOR_DEFAULT_NAME", "POLICY_PREPROCESSOR_DEFAULT_NAME"],
    }
    modules = {}
    for name, contents in names.items():
        modules[name] = types.ModuleType(name)
        for item in contents:
            setattr(modules[name], item if isinstance(item, str) else item.__name__, item)
    return modules


@pytest.fixture
def plugin(monkeypatch):
    for name, module in stand_in().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(SOURCE))
    import lerobot_policy_arvrm

    yield lerobot_policy_arvrm
    for name in [name for name in sys.modules if name.startswith("lerobot_policy_arvrm")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("plugin") / "policy"
    about = CheckpointMetadata("finetune", 3, 2, {"front": 48, "hand.left": 32}, execute_steps=3)
    net = PolicyNet(from_dict(ModelConfig, MODEL), ROBOT)
    # An untrained head says nearly nothing; spread its answers out, so that a difference would show.
    with torch.no_grad():
        for parameter in net.head.parameters():
            parameter.mul_(4.0)
    return save_checkpoint(folder, net, about)


def batches(count: int, rows: int, task: str = "pick it up") -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)

    def pixels(height: int, width: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(0, 256, (rows, 3, height, width), dtype=np.uint8)).float() / 255

    return [
        {
            FRONT: pixels(48, 48),
            HAND: pixels(32, 32),
            "observation.state": torch.from_numpy(rng.uniform((-90, 0), (90, 45), (rows, 2)).astype(np.float32)),
            "task": [task] * rows,
        }
        for _ in range(count)
    ]


def observation(batch: dict[str, Any], row: int) -> Observation:
    images = {
        name: (batch[feature][row].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        for name, feature in (("front", FRONT), ("hand.left", HAND))
    }
    return Observation({"state": batch["observation.state"][row].numpy().astype(np.float64)}, images)


def test_select_action_is_a_rollout_of_arvrm_to_the_bit(plugin, checkpoint):
    theirs = plugin.ArvrmPolicy(plugin.ArvrmConfig(checkpoint=str(checkpoint)))
    ours, seen, chunks = load_policy(checkpoint), ([], []), [None, None]
    assert (theirs.spec.history_offsets, theirs.spec.execute_steps) == ((-4, -2, 0), 3)
    for step, batch in enumerate(batches(10, 2)):
        given = theirs.select_action(batch).numpy()
        for row in range(2):
            seen[row].append(observation(batch, row))
            if step % 3 == 0:
                history = tuple(seen[row][max(0, step + offset)] for offset in (-4, -2, 0))
                chunks[row] = ROBOT.commanded(ours.plan([PlanRequest("pick it up", history, row, step)])[0])
            np.testing.assert_array_equal(given[row], chunks[row][step % 3])
    assert set(np.unique(given[:, 2])) <= {0.0, 5.0}


def test_a_new_sentence_or_a_reset_begins_anew_for_its_row(plugin, checkpoint):
    policy = plugin.ArvrmPolicy(plugin.ArvrmConfig(checkpoint=str(checkpoint)))
    first, second = batches(2, 2)
    at_start = policy.select_action(first)
    policy.select_action(second)
    changed = {**first, "task": ["pick it up", "put it down"]}
    again = policy.select_action(changed)
    assert not torch.equal(again[0], at_start[0])  # goes on with its chunk
    policy.reset()
    assert torch.equal(policy.select_action(changed)[1], again[1])
    policy.reset()
    assert torch.equal(policy.select_action(first), at_start)


def test_a_chunk_is_planned_from_one_observation(plugin, checkpoint):
    policy = plugin.ArvrmPolicy(plugin.ArvrmConfig(checkpoint=str(checkpoint)))
    (batch,) = batches(1, 2)
    chunk = policy.predict_action_chunk(batch)
    assert chunk.shape == (2, 4, 3) and torch.equal(chunk[:, 0], policy.select_action(batch))


def test_features_are_those_of_the_robots_data_set(plugin, checkpoint):
    config = plugin.ArvrmConfig(checkpoint=str(checkpoint))
    assert {name: feature.shape for name, feature in config.input_features.items()} == {
        FRONT: (3, 48, 48), HAND: (3, 32, 32), "observation.state": (2,),
    }  # fmt: skip
    assert config.output_features["action"].shape == (3,)


def test_a_saved_policy_brings_its_checkpoint(plugin, checkpoint, tmp_path):
    policy = plugin.ArvrmPolicy(plugin.ArvrmConfig(checkpoint=str(checkpoint)))
    policy._save_pretrained(tmp_path)
    again = plugin.ArvrmPolicy.from_pretrained(tmp_path, config=plugin.ArvrmConfig())
    (batch,) = batches(1, 1)
    assert torch.equal(again.select_action(batch), policy.select_action(batch))
    assert policy.config.checkpoint == str(checkpoint)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({FRONT: None}, f"{FRONT}: is not observed"),
        ({"observation.state": None}, "observation.state: is not observed"),
        ({"observation.state": torch.zeros(1, 5)}, "has 5 numbers, arm has 2"),
        ({FRONT: torch.zeros(1, 48, 48, 3)}, "expected \\(B, 3, H, W\\)"),
        ({"task": [""]}, "nothing says what is to be done"),
        ({"task": ["a", "b"]}, "2 sentences for 1 rows"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(plugin, checkpoint, change, words):
    policy = plugin.ArvrmPolicy(plugin.ArvrmConfig(checkpoint=str(checkpoint)))
    batch = {name: value for name, value in (batches(1, 1)[0] | change).items() if value is not None}
    with pytest.raises(UserError, match=words):
        policy.select_action(batch)
    config = dataclasses.replace(policy.config, execute_steps=None)
    with pytest.raises(ValueError, match="plan_rows is 0"):
        dataclasses.replace(config, plan_rows=0)


def test_what_the_trial_in_the_real_package_trains_with_is_still_valid():
    settings = runpy.run_path(str(FOLDER / "try_it.py"))["SETTINGS"]
    assert from_dict(FinetuneConfig, settings).model.chunk == 8
