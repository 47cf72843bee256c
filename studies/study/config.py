"""The fields of ``configs/study.yaml``; ``metaopt.config`` reads it into these models."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from metaopt.base.fields import Name, Positive, PositiveFloat, Seed, Text

Overrides = dict[Text, Any]
Share = Annotated[float, Field(gt=0, le=1)]
HAND_MADE = "hand-made"
"""What a bar calls the best hand-made optimizer at its step."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class Row(_Model):
    """A learned optimizer of the study: a training configuration with overrides.

    Attributes:
        name: of the row, in files and bars.
        config: of ``train_meta.py``, a path or a name in ``configs/``.
        set: overrides by dotted field, as ``--set``; ``label`` names it in tables.
        group: rows of one group have equal budgets; its overrides come before the row's.
        train: the family that it is meta-trained on.
        families: those that it is evaluated on.
    """

    name: Name
    config: Text
    set: Overrides = {}
    group: Name
    train: Name = "default"
    families: Annotated[list[Name], Field(min_length=1)] = ["default"]


class Search(_Model):
    """The search that every row gets: a grid.

    Attributes:
        factors: on all outer learning rates of a row.
        free: the ``free`` of the rule that moves its weights, ``update`` or ``step_teleport``.
        share: of its outer steps, for each point of the grid.
    """

    factors: Annotated[list[PositiveFloat], Field(min_length=1)] = [1.0]
    free: Annotated[list[PositiveFloat], Field(min_length=1)] = [1.0]
    share: Share = 0.25


class Ablation(_Model):
    """A row with something changed.

    Attributes:
        name: of the ablation.
        row: that it starts from.
        set: what is changed.
    """

    name: Name
    row: Name
    set: Overrides


class Ablations(_Model):
    """Levers, each at the first seed and a share of the budget.

    Attributes:
        share: of the outer steps.
        rows: what is changed.
    """

    share: Share = 0.25
    rows: list[Ablation] = []


class Bar(_Model):
    """A claim: at each of some steps a loss, or a ratio of losses, is below a number.

    Attributes:
        row: whose loss.
        against: the row (same seed), or ``hand-made``, that it is divided by; none for the loss.
        family: of the tasks.
        below: by step; for a ratio the upper end of its 95 % interval has to be.
    """

    row: Name
    against: Text | None = None
    family: Name = "default"
    below: dict[Positive, PositiveFloat]


class TeleportBar(_Model):
    """Bounds on what teleports do to the loss.

    Attributes:
        drift_max: largest drift allowed.
        log_total: least mean of the signed total allowed.
    """

    drift_max: PositiveFloat = 2e-4
    log_total: float = -0.01


class Smoke(_Model):
    """What ``--smoke`` changes.

    Attributes:
        rows: that stay.
        ablations: that stay.
        study: fields of the study by name.
        training: overrides of every training run.
        evaluation: overrides of the evaluation.
    """

    rows: list[Name]
    ablations: list[Name] = []
    study: dict[Text, Any] = {}
    training: Overrides = {}
    evaluation: Overrides = {}


class StudyConfig(_Model):
    """The study.

    Attributes:
        seeds: of meta-training; the first one is searched, ablated and shipped.
        jobs: processes side by side, of one thread each.
        tasks: test tasks.
        task_seed: of the test tasks.
        steps: inner steps of the evaluation.
        evaluation: configuration of ``eval_meta.py`` with the grids of hand-made optimizers.
        evaluation_set: overrides of it.
        families: overrides of the section ``task``, by family.
        groups: overrides of all rows of a group.
        learned: the rows that claims are about.
        controls: more rows.
        training_set: overrides of all rows, after their own.
        baselines: hand-made optimizers, NAME or NAME@STEP.
        references: what more than first-order information can do.
        search: of every row.
        ablations: run by ``--ablations``.
        bars: claims to be checked.
        teleport_bar: holds for every learned row that teleports.
        smoke: what ``--smoke`` changes.
    """

    seeds: Annotated[list[Seed], Field(min_length=1)]
    jobs: Positive = 2
    tasks: Positive = 1024
    task_seed: Seed = 0
    steps: Positive = 100
    evaluation: Text = "eval.yaml"
    evaluation_set: Overrides = {}
    families: dict[Name, Overrides]
    groups: dict[Name, Overrides]
    learned: Annotated[list[Row], Field(min_length=1)]
    controls: list[Row] = []
    training_set: Overrides = {}
    baselines: list[Text] = []
    references: list[Text] = []
    search: Search = Search()
    ablations: Ablations = Ablations()
    bars: list[Bar] = []
    teleport_bar: TeleportBar = TeleportBar()
    smoke: Smoke | None = None

    @property
    def rows(self) -> list[Row]:
        """Learned ones and controls."""
        return [*self.learned, *self.controls]

    def row(self, name: str) -> Row:
        """The row of a name."""
        return next(row for row in self.rows if row.name == name)

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        names = [row.name for row in self.rows]
        names += [f"{ablation.row}-{ablation.name}" for ablation in self.ablations.rows]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"learned and controls: {name!r} is given twice")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: each one once, found {self.seeds}")
        for row in self.rows:
            _require(row.group, self.groups, f"row {row.name}: group")
            for family in (row.train, *row.families):
                _require(family, self.families, f"row {row.name}: family")
        for ablation in self.ablations.rows:
            _require(ablation.row, names, f"ablation {ablation.name}: row")
        for bar in self.bars:
            _require(bar.row, names, "bars: row")
            _require(bar.family, self.families, "bars: family")
            if bar.against is not None:
                _require(bar.against, [*names, HAND_MADE], "bars: against")
        return self


def _require(name: str, known: Any, field: str) -> None:
    if name not in known:
        raise ValueError(f"{field}: found {name!r}, known here: {', '.join(known)}")


def smoked(config: StudyConfig) -> dict[str, Any]:
    """The study that ``--smoke`` runs, as plain data to be checked again."""
    smoke = config.smoke
    assert smoke is not None
    data = config.model_dump()
    for field in ("learned", "controls"):
        data[field] = [row for row in data[field] if row["name"] in smoke.rows]
    kept = [row for row in data["ablations"]["rows"] if row["name"] in smoke.ablations]
    data["ablations"]["rows"] = kept
    named = {*smoke.rows, HAND_MADE, None}
    data["bars"] = [b for b in data["bars"] if {b["row"], b["against"]} <= named]
    data["training_set"] |= smoke.training
    data["evaluation_set"] |= smoke.evaluation
    return data | smoke.study | {"smoke": None}
