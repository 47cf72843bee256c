"""Learned rules: features, LSTMs for updates, group elements and step sizes."""

from metaopt.rules.base import Proposal, Rule
from metaopt.rules.coordinate import (
    CoordinateGroupElementLSTM,
    CoordinateStepSizeGroupElementLSTM,
    CoordinateUpdateLSTM,
)
from metaopt.rules.flattened import (
    FlattenedRule,
    GroupElementLSTM,
    LocalUpdateLSTM,
    StepSizeGroupElementLSTM,
)
from metaopt.rules.lstm import LSTM, Head, State

__all__ = [
    "LSTM",
    "CoordinateGroupElementLSTM",
    "CoordinateStepSizeGroupElementLSTM",
    "CoordinateUpdateLSTM",
    "FlattenedRule",
    "GroupElementLSTM",
    "Head",
    "LocalUpdateLSTM",
    "Proposal",
    "Rule",
    "State",
    "StepSizeGroupElementLSTM",
]
