"""What a learned optimizer is: ``metaopt show FILE_OR_DIR``.

Prints rules, sizes, training, figures and licence. Runs no code from the file, and checks all of
it: whatever is printed here, ``metaopt.load`` loads. ``metaopt show MODEL.py:build`` instead prints
the symmetries of a model, and runs the code of MODEL.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from metaopt.base import cli
from metaopt.base.checkpoint import Checkpoint
from metaopt.base.process import World
from metaopt.optim import hub, show_model
from metaopt.optim.description import aligned, experience, name_of, rows, shapes
from metaopt.optim.figures import figures, unseen_sections, validation_section
from metaopt.optim.learned import restore


def report(content: Checkpoint, source: str) -> str:
    """The description of a checkpoint, as it is printed.

    Args:
        content: the checkpoint.
        source: names it in the report and in errors.

    Raises:
        ConfigError: where its configuration or its figures are none; one line.
    """
    found = figures(content.validation, source)
    parts = [
        f"{name_of(content, source)}: {source}",
        aligned(rows(content, source)),
        f"meta-trained with\n{aligned(experience(content, source))}",
        f"tensors\n{aligned(shapes(content.tensors))}",
        validation_section(found),
        *unseen_sections(found),
    ]
    return "\n\n".join(parts)


def main(world: World, given: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Read the arguments, and the checkpoint or the model that they name; print the report.

    Args:
        world: the processes; the first one prints.
        given: the arguments; those of the process by default.
        prog: how the command is called, if not by its file.
    """
    parser = cli.plain_parser(
        "Print what a learned optimizer is, or which symmetries a model of yours has.", prog
    )
    parser.add_argument(
        "source",
        metavar="FILE_OR_DIR",
        help="a checkpoint, the folder of a run, a folder that save_pretrained wrote, the name of "
        "a shipped optimizer, or the id of one on the hub; or MODEL.py:build, a file of yours, "
        "which is run, and the function in it that returns a model, or a model and an example",
    )
    source = parser.parse_args(given).source
    if show_model.names_a_function(source):
        world.say(show_model.report(source))
        return
    path, content = hub.read(source)
    restore(path, content)
    shipped = hub.origin(source, path) == hub.SHIPPED
    world.say(report(content, f"shipped, {path}" if shipped else str(path)))


if __name__ == "__main__":
    cli.run(main)
