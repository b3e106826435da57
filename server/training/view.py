"""A training run on the operator's terminal: a bar, and a line for all that stays true."""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from server.training.codes import declined_lines

_FULL = 1.0


class TrainingView:
    """Shows stages, notes and events on stderr; whole lines where nobody looks at a terminal.

    Parameters
    ----------
    names
        Returns the key of each enrolled shop -> its name, at the time of asking.
    """

    def __init__(self, names: Callable[[], Mapping[str, str]], console: Console) -> None:
        self._names, self._console = names, console
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, detail="")
        self._last = ""
        self._rounds: int | None = None
        self._declined: set[str] | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:  # Elsewhere it would leave an empty line.
            self._bar.stop()

    def stage(self, text: str) -> None:
        """Begin something that takes a while."""
        if not self._console.is_terminal and text != self._last:
            self._line(f"{text} ...")
        self._last = text
        self._bar.update(self._task, description=text, detail="")

    def note(self, text: str) -> None:
        """Say something that stays."""
        self._line(text)

    def rounds(self, count: int) -> None:
        """Begin to follow a run of so many rounds; the release and the way home are a step each."""
        self._rounds = count
        self._bar.update(self._task, total=count + 2, completed=0)

    def event(self, event: Mapping[str, Any]) -> None:
        """Show a public event of the server's app."""
        kind, number = event.get("event"), int(event.get("server_round", 0))
        if kind == "start":
            self.stage(f"going on after round {number}" if number else "asking who takes part")
            self._bar.update(self._task, completed=number + 1 if number else 0)
            self._declined = None
            return
        if kind == "end":
            self.stage("the run has ended")
            return
        told = event_words(event, self._rounds)
        if not told:
            return
        lines = declined_lines(event, self._names())
        if kind == "join" and self._declined is not None:
            # Who could not be reached is asked again before each round: once is told.
            lines = [line for line in lines if line not in self._declined]
            told = f"{event.get('accepted')} more take part" if event.get("accepted") else ""
        for line in (told, *(f"  {line}" for line in lines)):
            if line:
                self._line(line)
        if kind == "join":
            self._declined = (self._declined or set()) | set(lines)
        else:
            self._bar.update(self._task, advance=_FULL)
        self._last = ""
        self._bar.update(self._task, description="training", detail=told)

    def _line(self, text: str) -> None:
        self._bar.console.print(escape(text), highlight=False, soft_wrap=True)


def event_words(event: Mapping[str, Any], rounds: int | None = None) -> str:
    """Return what an exchange came to, in words; empty for what says nothing to people."""
    kind, number = event.get("event"), event.get("server_round")
    accepted, asked = event.get("accepted"), event.get("asked")
    of = f"{accepted} of {asked} shops"
    took = f"{float(event.get('seconds', 0.0)):.0f} s"
    if kind == "join":
        return f"{of} take part"
    if kind == "release":
        return f"popularity: {of} ({took})"
    if kind == "round":
        why = event.get("reason") or "too few good replies"
        kept = f"; {why}: the old model is kept" if event.get("kept_old_model") else ""
        which = f"round {number}" if rounds is None else f"round {number} of {rounds}"
        return f"{which}: {of} ({took}){kept}"
    if kind == "home":
        return f"the model is home at {of} ({took})"
    if kind == "evaluate":
        return f"figures: {of} released theirs ({took})"
    return ""
