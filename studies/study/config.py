"""The fields of ``configs/study.yaml``; ``metaopt.base.config`` reads it into these models."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from metaopt.base.fields import (
    Model,
    Name,
    Positive,
    PositiveFloat,
    Seed,
    Text,
    described,
    required,
)

Overrides = dict[Text, Any]
Share = Annotated[float, Field(gt=0, le=1)]
HAND_MADE = "hand-made"
"""What a bar calls the best hand-made optimizer at its step."""


class Row(Model):
    """A learned optimizer of the study: a training configuration with overrides."""

    name: Name = required("of the row, in files and bars")
    config: Text = required("of train_meta.py, a path or a name in configs/")
    set: Overrides = described({}, "by dotted field, as --set; label names the row in tables")
    group: Name = required("rows of one group have equal budgets; its overrides come first")
    train: Name = described("default", "the family that it is meta-trained on")
    families: Annotated[list[Name], Field(min_length=1)] = described(
        ["default"], "those that it is evaluated on"
    )


class Search(Model):
    """The search that every row gets: a grid."""

    factors: Annotated[list[PositiveFloat], Field(min_length=1)] = described(
        [1.0], "on all outer learning rates of a row"
    )
    free: Annotated[list[PositiveFloat], Field(min_length=1)] = described(
        [1.0], "of the rule that moves a row's weights, update or step_teleport"
    )
    share: Share = described(0.25, "of a row's outer steps, for each point of the grid")


class Ablation(Model):
    """A row with something changed."""

    name: Name = required("of the ablation")
    row: Name = required("that it starts from")
    set: Overrides = required("what is changed")


class Ablations(Model):
    """Levers, each at the first seed and a share of the budget."""

    share: Share = described(0.25, "of the outer steps")
    rows: list[Ablation] = described([], "what is changed")


class Bar(Model):
    """A claim: at each of some steps a loss, or a ratio of losses, is below a number."""

    row: Name = required("whose loss")
    against: Text | None = described(
        None, "the row (same seed), or hand-made, that it is divided by; none for the loss"
    )
    family: Name = described("default", "of the tasks")
    below: dict[Positive, PositiveFloat] = required(
        "by step; for a ratio the upper end of its 95 % interval has to be"
    )


class TeleportBar(Model):
    """Bounds on what teleports do to the loss."""

    drift_max: PositiveFloat = described(2e-4, "largest drift allowed")
    log_total: float = described(-0.01, "least mean of the signed total allowed")


class Smoke(Model):
    """What --smoke changes."""

    rows: list[Name] = required("that stay")
    ablations: list[Name] = described([], "that stay")
    study: dict[Text, Any] = described({}, "fields of the study by name")
    training: Overrides = described({}, "of every training run")
    evaluation: Overrides = described({}, "of the evaluation")


class StudyConfig(Model):
    """The study."""

    seeds: Annotated[list[Seed], Field(min_length=1)] = required(
        "of meta-training; the first one is searched, ablated and shipped"
    )
    jobs: Positive = described(2, "processes side by side, of one thread each")
    tasks: Positive = described(1024, "test tasks")
    task_seed: Seed = described(0, "of the test tasks")
    steps: Positive = described(100, "inner steps of the evaluation")
    evaluation: Text = described("eval.yaml", "with the grids of hand-made optimizers")
    evaluation_set: Overrides = described({}, "of the evaluation")
    families: dict[Name, Overrides] = required("overrides of the section task, by family")
    groups: dict[Name, Overrides] = required("of all rows of a group")
    learned: Annotated[list[Row], Field(min_length=1)] = required("that claims are about")
    controls: list[Row] = described([], "more rows")
    training_set: Overrides = described({}, "of all rows, after their own")
    baselines: list[Text] = described([], "hand-made optimizers, NAME or NAME@STEP")
    references: list[Text] = described([], "what more than first-order information can do")
    search: Search = described(Search(), "of every row")
    ablations: Ablations = described(Ablations(), "run by --ablations")
    bars: list[Bar] = described([], "claims to be checked")
    teleport_bar: TeleportBar = described(TeleportBar(), "of learned rows that teleport")
    smoke: Smoke | None = described(None, "what --smoke changes")

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
