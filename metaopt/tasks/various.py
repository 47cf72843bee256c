"""Many small tasks under one name, to meta-train rules that shall work on networks of any kind.

task:
  family: metaopt.tasks.various:Various
  options: {of: pictures, hidden: "48-24", varied: true}
  more:
    - {of: tables, table: teacher, regression: true, outputs: 2}
    - {of: texts, network: causal, width: 24}
"""

from __future__ import annotations

import inspect

import numpy as np
from torch import Tensor

from metaopt.base.errors import UserError
from metaopt.tasks.own import Family, Task
from metaopt.tasks.various_layers import require
from metaopt.tasks.various_pictures import Pictures
from metaopt.tasks.various_tables import Tables
from metaopt.tasks.various_texts import Texts

FAMILIES: dict[str, type[Family]] = {"pictures": Pictures, "tables": Tables, "texts": Texts}


class Various(Family):
    """A family of pictures, of tables or of texts.

    Args:
        of: ``pictures``, ``tables`` or ``texts``.
        **options: those of ``Pictures``, ``Tables`` or ``Texts``.

    Raises:
        UserError: if there is no such family, or it does not take the options.
    """

    def __init__(self, of: str, **options: bool | int | float | str | None) -> None:
        require("of", of, FAMILIES)
        made = FAMILIES[of]
        try:
            inspect.signature(made).bind(**options)
        except TypeError as error:
            known = ", ".join(inspect.signature(made).parameters)
            raise UserError(f"{of}: {error}, expected some of {known}") from None
        self.own = made(**options)
        self.batch = self.own.batch

    def sample(self, generator: np.random.Generator) -> Task:
        """One task of the family."""
        return self.own.sample(generator)

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        """The loss of the family."""
        return self.own.loss(weights, data, *shared)
