"""How far a command is: who is shown it, and bars on stderr, or lines where nobody looks."""

import sys
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Watcher(Protocol):
    """Shown how far a run is."""

    def stage(self, text: str, total: int | None = None) -> None:
        """Begin a stage of ``total`` steps, or of unknown length."""

    def step(self, text: str = "") -> None:
        """Finish one step of the stage."""


class Bars:
    """Progress on stderr: a bar a stage."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task: Any = None
        self._plain = not console.is_terminal

    def __enter__(self) -> Self:
        if not self._plain:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def stage(self, text: str, total: int | None = None) -> None:
        """Begin a stage."""
        if self._plain:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
            return
        if self._task is not None:
            self._progress.update(self._task, total=1, completed=1, detail="")
        self._task = self._progress.add_task(text, total=total, detail="")

    def step(self, text: str = "") -> None:
        """Finish one step."""
        if self._plain:
            if text:
                sys.stderr.write(f"  {text}\n")
                sys.stderr.flush()
            return
        self._progress.update(self._task, advance=1, detail=text)
