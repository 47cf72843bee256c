"""Rules of a user's own: a class in a module of theirs, named in a configuration.

    rules:
      update: {kind: "my_module:MyRule", options: {decay: 0.9}}

The class is a ``Rule`` (``rules.base``); its parameters are meta-trained as any other rule's. A
configuration that is trained imports its module. A checkpoint never does (it is a file, and may be
a stranger's): there the module has to have been imported before.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from metaopt.base.config import ConfigError
from metaopt.base.fields import described, required
from metaopt.base.global_generators import seeded
from metaopt.rules.base import Rule
from metaopt.rules.rule_config import LearnedConfig, Place, RuleConfig
from metaopt.tasks.config import CLASS_PATH
from metaopt.tasks.own import asked, module_of

OWN = "package.module:ClassName"
"""What stands for the kind of all of them."""

OwnKind = Annotated[str, Field(pattern=CLASS_PATH)]


class OwnRuleConfig(LearnedConfig):
    """A rule of a user's own."""

    knows_loss_alone = True
    kind: OwnKind = required("a rule of your own: a class that is a `metaopt.Rule`")
    options: dict[str, bool | int | float | str | None] = described(
        {}, "keyword arguments of your class"
    )

    def make(self, place: Place) -> Rule:
        """The rule; global generators are seeded while it is made.

        Raises:
            ConfigError: where the module has not been imported, or the class is no rule.
        """
        field = f"field rules.{place.name}.kind: {self.kind}"
        module_name, class_name = _parts(self.kind)
        if module_name not in sys.modules:
            raise ConfigError(
                f"{field}: this is a rule of somebody's own, and no file may import modules: if it "
                f"is yours, import {module_name} first "
                f"(eval_meta.py: --set modules=[{module_name}])"
            )
        found = getattr(sys.modules[module_name], class_name, None)
        if not (isinstance(found, type) and issubclass(found, Rule)):
            raise ConfigError(f"{field}: expected a class there that is a metaopt.Rule")
        if missing := sorted(found.__abstractmethods__):
            raise ConfigError(f"{field}: the class does not define {' and '.join(missing)}")
        try:
            inspect.signature(found).bind(**self.options)
        except TypeError as error:
            raise ConfigError(
                f"field rules.{place.name}.options: {error}; {class_name}"
                f"{inspect.signature(found)} is what {self.kind} takes"
            ) from None
        with seeded(place.seed):
            rule = asked(field, "__init__", lambda: found(**self.options))
        if self.learns and not any(True for _ in rule.parameters()):
            raise ConfigError(f"{field}: it has no parameters to learn: frozen: true says so")
        return rule


def is_own(rule: RuleConfig) -> bool:
    """Whether a rule is of a user's own: ``kind`` is ``module:Class``."""
    return ":" in getattr(rule, "kind", "")


def import_own(rules: Iterable[RuleConfig]) -> None:
    """Import the modules of rules of a user's own; raises ``UserError`` where that fails."""
    for rule in rules:
        if is_own(rule):
            kind = getattr(rule, "kind", "")
            module_of(_parts(kind)[0], f"field rules: {kind}")


def _parts(kind: str) -> tuple[str, str]:
    module_name, _, class_name = kind.partition(":")
    return module_name, class_name
