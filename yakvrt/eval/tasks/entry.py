"""What a task says of itself before it is opened: `python -m yakvrt eval --list-tasks` prints it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yakvrt.eval.sample import Intensity, Task
from yakvrt.eval.tasks.options import Option, read_options


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """A task by its name. `data` says in a few words what --data must hold, and is empty for tasks that make
    their own samples. `intensity` is what the task has by default; an opened task knows its own.
    """

    name: str
    about: str
    intensity: Intensity
    options: tuple[Option, ...]
    opener: Callable[[Mapping[str, Any], Path | None], Task]
    data: str = ""

    def read(self, given: Mapping[str, str]) -> dict[str, Any]:
        """Values of all options, from those given as text (--task NAME:K=V;K=V) and the defaults.

        Raises: ValueError for an unknown name, a value that does not read, one out of its limits.
        """
        return read_options(self.name, self.options, given)

    def open(self, options: Mapping[str, Any], data_dir: Path | None) -> Task:
        """The task, bound to its data and to options as `read` gives them.

        Raises: ValueError for missing data: what to get, where to put it, which flag.
        """
        return self.opener(options, data_dir)
