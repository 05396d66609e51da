"""The table of verbs. What a verb needs is imported when it is called, so that `arvrm --help` answers at once."""

from __future__ import annotations

import importlib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from arvrm.cli.flags import read_arguments


@dataclass(frozen=True)
class Verb:
    """One command.

    Attributes:
        name: its one or two words.
        summary: one line for `arvrm --help`.
        config: its settings, a frozen dataclass, as module:class.
        function: what it does, as module:function; called with the settings, it returns the path or paths of its
            results, which are printed to stdout, or an exit code, or None.
        result: where in what the function returns the path stands, such as "store.path"; "": it is the path.
        positional, aliases: how settings may be given beside their flags (see `flags.read_arguments`).
    """

    name: str
    summary: str
    config: str
    function: str
    result: str = ""
    positional: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> type:
        """The class of its settings."""
        return _named(self.config)

    def settings(self, arguments: Sequence[str]) -> Any:
        """Turn arguments into settings; raises as `flags.read_arguments` does."""
        description = f"{self.summary[0].upper()}{self.summary[1:]}."
        return read_arguments(self.kind, self.name, arguments, description, self.positional, self.aliases)

    def run(self, settings: Any) -> Any:
        """Do it, and return its paths, an exit code, or None."""
        found = _named(self.function)(settings)
        return operator.attrgetter(self.result)(found) if self.result else found


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


_TABLE = (
    Verb(
        "demo",
        "run the whole pipeline, small: about 20 minutes on two cores",
        "arvrm.demo:DemoConfig",
        "arvrm.demo:demo",
    ),
    Verb(
        "generate",
        "record scripted demonstrations (robot) or synthetic hand clips (human)",
        "arvrm.sources.playtable:GenerateConfig",
        "arvrm.sources.playtable:generate",
        result="store.path",
    ),
    Verb(
        "convert calvin",
        "turn an official CALVIN data set into episode stores",
        "arvrm.sources.calvin:ConvertCalvinConfig",
        "arvrm.cli.data:calvin",
        aliases={"play": "--all"},
    ),
    Verb(
        "convert parent-lmdb",
        "turn GR-1's or AR-VRM's CALVIN LMDB into a store",
        "arvrm.sources.parent_lmdb:ConvertParentConfig",
        "arvrm.cli.data:parent_lmdb",
    ),
    Verb(
        "convert human",
        "turn videos of hands, one's own or of published sets, into a store",
        "arvrm.sources.human:ConvertHumanConfig",
        "arvrm.cli.data:human",
    ),
    Verb(
        "convert lerobot",
        "turn a LeRobot data set, v3 or v2, of any robot into a store",
        "arvrm.sources.lerobot:ConvertLeRobotConfig",
        "arvrm.cli.data:lerobot",
    ),
    Verb(
        "describe lerobot",
        "describe a LeRobot data set's robot in a file, and say what nobody but you can know of it",
        "arvrm.sources.lerobot:DescribeLeRobotConfig",
        "arvrm.cli.data:describe_lerobot",
    ),
    Verb(
        "export lerobot",
        "write a robot store as a LeRobot data set v3",
        "arvrm.sources.lerobot:ExportLeRobotConfig",
        "arvrm.sources.lerobot:export_lerobot",
        aliases={"store": "--input"},
    ),
    Verb(
        "hands fetch-model",
        "get MediaPipe's hand model, checked",
        "arvrm.cli.hands:FetchConfig",
        "arvrm.cli.hands:fetch",
    ),
    Verb(
        "hands show",
        "film a video, or a clip of a store, with the hands drawn",
        "arvrm.cli.hands:ShowConfig",
        "arvrm.cli.hands:show",
        positional=("input",),
    ),
    Verb(
        "hands quality",
        "write one HTML page about a store's hands",
        "arvrm.cli.hands:QualityConfig",
        "arvrm.cli.hands:quality",
        positional=("store",),
    ),
    Verb(
        "few-shot",
        "choose episodes of a store: a manifest to share",
        "arvrm.cli.data:FewShotConfig",
        "arvrm.cli.data:few_shot",
    ),
    Verb(
        "inspect",
        "describe and verify an episode store, an index or a checkpoint",
        "arvrm.cli.data:InspectConfig",
        "arvrm.cli.data:inspect",
        positional=("store",),
    ),
    Verb(
        "merge",
        "join episode stores into one",
        "arvrm.cli.data:MergeConfig",
        "arvrm.cli.data:merge",
        positional=("inputs",),
    ),
    Verb(
        "moments",
        "find when the episodes of a store touch, and when they are done",
        "arvrm.cli.moments:MomentsConfig",
        "arvrm.cli.moments:moments",
    ),
    Verb(
        "pretrain",
        "stage 1: learn from human clips to predict the hand's keypoints",
        "arvrm.training:PretrainConfig",
        "arvrm.training:pretrain",
        result="folder",
    ),
    Verb(
        "predict-hands",
        "film a video with what a stage-1 model predicts",
        "arvrm.cli.hands:PredictConfig",
        "arvrm.cli.hands:predict",
        positional=("input",),
    ),
    Verb(
        "evaluate-hands",
        "measure a stage-1 model on held-out clips, against baselines and without each of its inputs",
        "arvrm.training:EvaluateHandsConfig",
        "arvrm.training:evaluate_hands",
    ),
    Verb(
        "index",
        "build the index from which human clips are retrieved",
        "arvrm.training:IndexConfig",
        "arvrm.training:build_index_stage",
    ),
    Verb(
        "finetune",
        "stage 2: train the robot's policy, with retrieved clips and the analogy map",
        "arvrm.training:FinetuneConfig",
        "arvrm.training:finetune",
        result="folder",
    ),
    Verb(
        "import-checkpoint",
        "turn a checkpoint of GR-1, GR-Chunk or AR-VRM into ours",
        "arvrm.model.published.importers:ImportConfig",
        "arvrm.model.published.importers:import_checkpoint",
        positional=("file",),
    ),
    Verb(
        "evaluate",
        "roll a policy out in chains of five instructions and measure how far it gets",
        "arvrm.evaluation:EvaluateConfig",
        "arvrm.cli.measure:evaluate_policy",
    ),
    Verb(
        "serve",
        "answer a policy's actions over a socket, to robots and simulators elsewhere (openpi, vla-eval)",
        "arvrm.serving:ServeConfig",
        "arvrm.serving:serve",
    ),
    Verb(
        "exhibit",
        "collect what a report shows of a policy: the map, and retrieved clips beside robot frames",
        "arvrm.show.exhibits:ExhibitConfig",
        "arvrm.show.exhibits:make_exhibits",
    ),
    Verb(
        "explain",
        "show what a policy by analogy has in mind: place, motion and map, for one picture and sentence",
        "arvrm.cli.explain:ExplainConfig",
        "arvrm.cli.explain:explain",
    ),
    Verb(
        "report",
        "write one self-contained HTML page about results files",
        "arvrm.cli.measure:ReportConfig",
        "arvrm.cli.measure:report",
        positional=("results",),
    ),
    Verb(
        "study",
        "measure what hands give: rows and controls, over demonstrations, scenes and seeds",
        "arvrm.study:StudyConfig",
        "arvrm.study:study",
    ),
    Verb(
        "sim verify",
        "compare the simulator with recordings of the official one, bit for bit",
        "arvrm.cli.measure:VerifyConfig",
        "arvrm.cli.measure:verify",
        positional=("files",),
    ),
    Verb(
        "sim doctor",
        "tell on one page whether this machine, a store and a policy keep to CALVIN",
        "arvrm.doctor:DoctorConfig",
        "arvrm.cli.measure:doctor",
        positional=("recordings",),
    ),
)

VERBS: dict[str, Verb] = {verb.name: verb for verb in _TABLE}
