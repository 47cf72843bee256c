"""Typed configuration, read from YAML and checked before any work begins.

Every mistake ends in one ``ConfigError`` that names the file, the field, what was found and what
would be right. The table of all fields in the README is printed by ``python -m metaopt.config``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from metaopt.errors import UserError

Distribution = Literal["uniform", "gaussian"]
DtypeName = Literal["float32", "float64"]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
# A name may look like a number on the command line (--set name=7).
Text = Annotated[
    str, BeforeValidator(lambda v: str(v) if type(v) in (int, float) else v), Field(min_length=1)
]


class ConfigError(UserError):
    """A mistake in a configuration; its message is one line for the user."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


def _field(default: Any, description: str) -> Any:
    return Field(default, description=description)


def _required(description: str) -> Any:
    return Field(description=description)


class TaskConfig(_Model):
    """The task family."""

    family: Literal["leaky_relu_regression"] = _field("leaky_relu_regression", "kind of tasks")
    layers: Annotated[int, Field(ge=2)] = _field(2, "number of weight matrices")
    width: Positive = _field(20, "k, units of each hidden layer")
    inputs: Positive = _field(20, "n, rows of X")
    outputs: Positive = _field(20, "m, rows of Y")
    samples: Positive = _field(20, "N, columns of X and Y")
    slope: Annotated[float, Field(gt=0, le=1)] = _field(
        0.1, "negative slope of LeakyReLU; 1 makes the network linear"
    )
    weights: Distribution = _field(
        "uniform", "initial weights: uniform on [0, 1), or normal with variance 1 / fan_in"
    )
    data: Distribution = _field("uniform", "X and Y: uniform on [0, 1), or standard normal")


class _Learned(_Model):
    hidden: Positive = _field(20, "size of the two LSTM cells")
    scale: PositiveFloat = _field(1.0, "factor on the network's outputs")
    outer_lr: PositiveFloat = _required("outer learning rate (Adam) of this network")


class _Flattened(_Learned):
    kind: Literal["lstm"] = _required("flattened rule: one LSTM on the whole gradient")
    gradient: Literal["raw", "signed_log"] = _field("raw", "how each entry of the gradient is fed")


class _Coordinate(_Learned):
    kind: Literal["coordinate_lstm"] = _required("coordinate-wise rule: one LSTM for all entries")


class _StepSize(_Model):
    step_min: PositiveFloat = _field(1e-7, "smallest step size")
    step_max: PositiveFloat = _field(5e-3, "largest step size")
    step_bound: Literal["sigmoid", "clamp"] = _field(
        "sigmoid", "smooth on a logarithmic scale, or the paper's clamp"
    )

    @model_validator(mode="after")
    def _ordered(self) -> _StepSize:
        if self.step_min >= self.step_max:
            raise ValueError(f"step_min must be below step_max, found {self.step_min}")
        return self


class FlattenedConfig(_Flattened):
    """m1 or m2 on the flattened gradient."""


class CoordinateConfig(_Coordinate):
    """m1 or m2 coordinate by coordinate."""


class FlattenedStepConfig(_Flattened, _StepSize):
    """The network of LSTM(lr,tele) on the flattened gradient."""


class CoordinateStepConfig(_Coordinate, _StepSize):
    """The network of LSTM(lr,tele), entry by entry."""


class GradientDescentConfig(_Model):
    """Gradient descent."""

    kind: Literal["gd"] = _required("gradient descent")
    lr: PositiveFloat = _required("step size")


class MomentumConfig(_Model):
    """Gradient descent with momentum."""

    kind: Literal["momentum"] = _required("gradient descent with momentum")
    lr: PositiveFloat = _required("step size")
    momentum: Decay = _field(0.9, "decay of the velocity")


class AdamConfig(_Model):
    """Adam."""

    kind: Literal["adam"] = _required("Adam")
    lr: PositiveFloat = _required("step size")
    beta1: Decay = _field(0.9, "decay of the mean of gradients")
    beta2: Decay = _field(0.999, "decay of the mean of squares")


UpdateConfig = Annotated[
    FlattenedConfig | CoordinateConfig | GradientDescentConfig | MomentumConfig | AdamConfig,
    Field(discriminator="kind"),
]
GeneratorConfig = Annotated[FlattenedConfig | CoordinateConfig, Field(discriminator="kind")]
StepTeleportConfig = Annotated[
    FlattenedStepConfig | CoordinateStepConfig, Field(discriminator="kind")
]
LEARNED = (FlattenedConfig, CoordinateConfig, FlattenedStepConfig, CoordinateStepConfig)


class RulesConfig(_Model):
    """What proposes updates and generators."""

    update: UpdateConfig | None = _field(None, "m1, or a hand-made update rule")
    teleport: GeneratorConfig | None = _field(None, "m2")
    step_teleport: StepTeleportConfig | None = _field(
        None, "one network for step size and generators; stands alone"
    )

    @model_validator(mode="after")
    def _one_update(self) -> RulesConfig:
        if (self.update is None) == (self.step_teleport is None):
            raise ValueError("give exactly one of update and step_teleport")
        if self.step_teleport is not None and self.teleport is not None:
            raise ValueError("step_teleport proposes generators itself; leave teleport out")
        if not any(isinstance(rule, LEARNED) for rule in self.by_name().values()):
            raise ValueError("nothing to learn: at least one rule must be an LSTM")
        return self

    def by_name(self) -> dict[str, Any]:
        """The rules that are given, by field name."""
        fields = ("update", "teleport", "step_teleport")
        return {name: rule for name in fields if (rule := getattr(self, name)) is not None}


class TeleporterConfig(_Model):
    """How generators move the weights."""

    action: Literal["through_data", "linear", "scaling", "orthogonal"] = _field(
        "through_data", "group action on each pair of adjacent layers"
    )
    element: Literal["exponential", "cayley", "first_order"] = _field(
        "exponential", "generator to element; first_order is the paper's inexact pair"
    )
    limit: Literal["bounded", "fixed"] = _field(
        "bounded", "generators at most of norm max_norm, or scaled to it (the paper)"
    )
    max_norm: PositiveFloat = _field(1.0, "Frobenius norm of the limit")
    guard: Literal["refuse", "shrink", "none"] = _field(
        "refuse", "what happens to a teleport that drifts too far"
    )
    tolerance: PositiveFloat = _field(1e-4, "largest drift that the guard lets through")
    inexact: Literal["error", "guard"] = _field(
        "error", "an action that cannot be exact on the data: stop, or leave it to the guard"
    )

    @model_validator(mode="after")
    def _guarded(self) -> TeleporterConfig:
        if self.inexact == "guard" and self.guard == "none":
            raise ValueError("inexact: guard needs a guard, found guard: none")
        if self.element == "cayley" and self.max_norm >= 2:
            raise ValueError(f"cayley needs max_norm below 2, found {self.max_norm}")
        return self


class MetaConfig(_Model):
    """The outer loop."""

    batch: Positive = _field(64, "B, trajectories side by side")
    outer_steps: Positive = _field(1000, "updates of phi")
    steps: Positive = _field(100, "inner steps of a trajectory")
    unroll: Positive = _field(10, "K, inner steps of a truncation window")
    order: Literal[1, 2] = _field(1, "1: features are constants; 2: differentiated too")
    loss: Literal["log", "sum"] = _field("log", "mean of log(loss + epsilon), or the paper's sum")
    epsilon: PositiveFloat = _field(1e-9, "of the log loss")
    schedule: Literal["cosine", "constant"] = _field("cosine", "of the outer learning rates")
    final_lr: Annotated[float, Field(gt=0, le=1)] = _field(
        0.02, "where the cosine ends, as a share of its start"
    )
    clip: PositiveFloat | None = _field(
        1.0, "largest norm of each network's meta-gradient; null for none"
    )

    @model_validator(mode="after")
    def _window(self) -> MetaConfig:
        if self.unroll > self.steps:
            raise ValueError(f"unroll must be at most steps ({self.steps}), found {self.unroll}")
        return self


class ValidationConfig(_Model):
    """Validation on its own tasks."""

    every: Positive = _field(100, "outer steps between validations")
    tasks: Positive = _field(64, "validation tasks")


class TrainConfig(_Model):
    """A meta-training run."""

    name: Text = _required("of the run; its folder is runs/<name>")
    label: Text = _required("of the optimizer in tables and figures")
    seed: Seed = _field(0, "of training tasks, validation tasks and initialisation")
    dtype: DtypeName = _field("float32", "of optimizees and rules")
    task: TaskConfig = _field(TaskConfig(), "what is trained on")
    rules: RulesConfig = _required("what is learned")
    teleporter: TeleporterConfig | None = _field(None, "needed where a rule proposes generators")
    meta: MetaConfig = _field(MetaConfig(), "the outer loop")
    validation: ValidationConfig = _field(ValidationConfig(), "validation")

    @model_validator(mode="after")
    def _teleporter(self) -> TrainConfig:
        proposes = self.rules.teleport is not None or self.rules.step_teleport is not None
        if proposes != (self.teleporter is not None):
            raise ValueError(
                "rules.teleport or rules.step_teleport and teleporter: give both or neither"
            )
        return self


Grid = dict[str, Annotated[list[PositiveFloat | Positive | Literal[0]], Field(min_length=1)]]

# What each hand-made optimizer is tuned over; also the list of those that exist.
HYPERPARAMETERS: dict[str, tuple[str, ...]] = {
    "GD": ("lr",),
    "Momentum": ("lr", "momentum"),
    "Adam": ("lr", "beta1", "beta2"),
    "L-BFGS": ("history",),
}


def parse_baseline(name: str) -> tuple[str, int | None]:
    """``Adam@20`` -> (``Adam``, 20): tuned for step 20; without @, for the last step."""
    base, at, step = name.partition("@")
    if base not in HYPERPARAMETERS or (at and not (step.isdigit() and int(step) > 0)):
        known = ", ".join(HYPERPARAMETERS)
        raise ValueError(f"baselines are {known}, or one of them @STEP (Adam@20), found {name!r}")
    return base, int(step) if at else None


class TuningConfig(_Model):
    """How hand-made optimizers are tuned, on validation tasks."""

    tasks: Positive = _field(64, "validation tasks")
    seed: Seed = _field(0, "of the validation tasks")
    grids: dict[str, Grid] = _required("values to try for each hyper-parameter of each optimizer")

    @model_validator(mode="after")
    def _complete(self) -> TuningConfig:
        for name, grid in self.grids.items():
            if name not in HYPERPARAMETERS:
                raise ValueError(f"grids are for {', '.join(HYPERPARAMETERS)}, found {name!r}")
            if set(grid) != set(HYPERPARAMETERS[name]):
                wanted = ", ".join(HYPERPARAMETERS[name])
                raise ValueError(f"the grid of {name} needs {wanted}, found {', '.join(grid)}")
        return self


class EvalConfig(_Model):
    """An evaluation on unseen tasks."""

    tasks: Positive = _field(256, "test tasks")
    task_seed: Seed = _field(0, "of the test tasks")
    steps: Positive = _field(100, "inner steps")
    dtype: DtypeName = _field("float32", "of optimizees and rules")
    task: TaskConfig = _field(TaskConfig(), "what is evaluated on")
    baselines: list[Text] = _field([], "hand-made optimizers; NAME@STEP is tuned for that step")
    tuning: TuningConfig = _required("of the hand-made optimizers")
    bootstrap: Positive = _field(2000, "resamplings behind the intervals")

    @model_validator(mode="after")
    def _baselines(self) -> EvalConfig:
        for name in self.baselines:
            base, step = parse_baseline(name)
            if base not in self.tuning.grids:
                raise ValueError(f"tuning.grids has no entry for {base}, which baselines asks for")
            if step is not None and step > self.steps:
                raise ValueError(f"{name} is tuned for a step beyond steps ({self.steps})")
        return self


C = TypeVar("C", bound=BaseModel)

CONFIG_FOLDER = Path(__file__).resolve().parent.parent / "configs"


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but 1e-3 is a number and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"field {key!r} is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def find(name: str | Path) -> Path:
    """A configuration file, as a path first and then in ``configs/``."""
    for path in (Path(name), CONFIG_FOLDER / name):
        if path.is_file():
            return path
    raise ConfigError(f"{name}: no such file here or in configs/ (there: {_shipped()})")


def _shipped() -> str:
    return ", ".join(sorted(path.name for path in CONFIG_FOLDER.glob("*.yaml"))) or "none"


def load(kind: type[C], name: str | Path, overrides: Sequence[str] = ()) -> C:
    """Read, override and check a configuration.

    Args:
        kind: ``TrainConfig`` or ``EvalConfig``.
        name: a path, or the name of a file in ``configs/``.
        overrides: ``key.sub=value``, values in YAML.

    Raises:
        ConfigError: with one line for the user.
    """
    path = find(name)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {_one_line(str(error))}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of fields, found {data!r:.60}")
    for override in overrides:
        _override(data, override)
    source = f"{path} with --set" if overrides else str(path)
    return check(kind, data, source)


def check(kind: type[C], data: Any, source: str) -> C:
    """Validate a mapping as a configuration; ``source`` names it in errors."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(kind, error.errors()[0], data)}") from None


def to_yaml(config: BaseModel) -> str:
    """The resolved configuration, every field written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {override}: expected key.sub=value, e.g. --set meta.batch=32")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from None
    *parents, last = key.split(".")
    node: Any = data
    for parent in parents:
        # A section that is missing or null begins empty; a section's own fields are checked later.
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: {parent} is a value, not a section")
    node[last] = value


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _explain(kind: type[BaseModel], error: ErrorDetails, data: Any) -> str:
    location = _location(error["loc"], data)
    field = ".".join(location)
    found = error["input"]
    match error["type"]:
        case "extra_forbidden":
            known = sorted(_known_fields(kind, location[:-1], data))
            close = difflib.get_close_matches(location[-1], known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
            return f"unknown field {field}; {hint}"
        case "missing":
            return f"field {field} is missing"
        case "value_error":
            where = f"field {field}: " if field else ""
            return where + _one_line(str(error["ctx"]["error"]))
        case _:
            message = error["msg"].removeprefix("Input ").removesuffix(".")
            return f"field {field}: found {found!r:.60}, {message[0].lower()}{message[1:]}"


def _location(loc: tuple[int | str, ...], data: Any) -> list[str]:
    """The path of a field without the tags that pydantic adds for unions."""
    path: list[str] = []
    node = data
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        if isinstance(node, dict) and (part in node or last):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            continue
        path.append(str(part))
    return path


def _known_fields(kind: type[BaseModel], parents: Sequence[str], data: Any) -> list[str]:
    models: list[type[BaseModel]] = [kind]
    for parent in parents:
        data = data[parent]
        models = [
            model
            for owner in models
            if parent in owner.model_fields
            for model in _models_in(owner.model_fields[parent].annotation)
        ]
        tagged = [model for model in models if _kind_of(model) == data.get("kind")]
        models = tagged or models
    return sorted({field for model in models for field in model.model_fields})


def _kind_of(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("kind")
    return get_args(field.annotation)[0] if field else None


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def field_table(kind: type[BaseModel]) -> str:
    """All fields of a configuration as a Markdown table."""
    rows = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    rows += [f"| {' | '.join(row)} |" for row in _field_rows(kind, "")]
    return "\n".join(rows)


def _field_rows(kind: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, info in kind.model_fields.items():
        models = list(_models_in(info.annotation))
        if not models:
            default = "required" if info.is_required() else f"`{info.default!r}`"
            yield (
                f"`{prefix}{name}`",
                _type_name(info.annotation),
                default,
                info.description or "",
            )
        seen: set[str] = set()
        for model in models:
            for row in _field_rows(model, f"{prefix}{name}."):
                # The variants of a union share fields; "kind" tells the variants apart.
                if row[0] not in seen or row[0].endswith(".kind`"):
                    seen.add(row[0])
                    yield row


def _type_name(annotation: Any) -> str:
    text = str(annotation) if get_args(annotation) else getattr(annotation, "__name__", "")
    if "Literal" in text and not text.startswith("dict"):
        choices = get_args(annotation)
        return ", ".join(f"`{choice}`" for choice in choices)
    for word in ("dict", "list", "float", "int", "str"):
        if word in text:
            return f"{word} or null" if "None" in text else word
    return text


if __name__ == "__main__":
    for title, kind in (("train_meta.py", TrainConfig), ("eval_meta.py", EvalConfig)):
        print(f"**{title}**\n\n{field_table(kind)}\n")
