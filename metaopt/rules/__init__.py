"""Learned rules: features, LSTMs for updates, group elements and step sizes."""

from metaopt.rules.base import Kept, Proposal, Rule
from metaopt.rules.coordinate import (
    CoordinateGroupElementLSTM,
    CoordinateStepSizeGroupElementLSTM,
    CoordinateUpdateLSTM,
    InformedUpdateLSTM,
)
from metaopt.rules.flattened import (
    FlattenedRule,
    GroupElementLSTM,
    LocalUpdateLSTM,
    StepSizeGroupElementLSTM,
)
from metaopt.rules.layer import LayerUpdateLSTM
from metaopt.rules.lstm import LSTM, Head, State
from metaopt.rules.random_generators import RandomGenerators
from metaopt.rules.unit import UnitScalingLSTM

__all__ = [
    "LSTM",
    "CoordinateGroupElementLSTM",
    "CoordinateStepSizeGroupElementLSTM",
    "CoordinateUpdateLSTM",
    "FlattenedRule",
    "GroupElementLSTM",
    "Head",
    "InformedUpdateLSTM",
    "Kept",
    "LayerUpdateLSTM",
    "LocalUpdateLSTM",
    "Proposal",
    "RandomGenerators",
    "Rule",
    "State",
    "StepSizeGroupElementLSTM",
    "UnitScalingLSTM",
]
