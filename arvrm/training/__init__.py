"""The three steps of training: `pretrain` on human clips, `build_index_stage`, `finetune` on robot episodes."""

from arvrm.training.config import TrainConfig, TrainResult
from arvrm.training.data import DataConfig, open_table, text_table
from arvrm.training.finetuning import FinetuneConfig, finetune, policy_errors
from arvrm.training.hands_evaluation import EvaluateHandsConfig, evaluate_hands
from arvrm.training.index_stage import IndexConfig, build_index_stage, frozen_encoders
from arvrm.training.pretraining import PretrainConfig, pretrain
from arvrm.training.robot_data import RobotData

__all__ = [
    "DataConfig",
    "EvaluateHandsConfig",
    "FinetuneConfig",
    "IndexConfig",
    "PretrainConfig",
    "RobotData",
    "TrainConfig",
    "TrainResult",
    "build_index_stage",
    "evaluate_hands",
    "finetune",
    "frozen_encoders",
    "open_table",
    "policy_errors",
    "pretrain",
    "text_table",
]
