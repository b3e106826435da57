"""Looking at something again and again while a program does its work."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Watch:
    """Calls a function every few seconds, in a thread of its own, until it is closed."""

    look: Callable[[], object]
    name: str
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self, every_seconds: float) -> None:
        """Begin; the first look comes after ``every_seconds``."""

        def looking() -> None:
            while not self._stop.wait(every_seconds):
                self.look()

        self._thread = threading.Thread(target=looking, name=self.name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and wait for a look that is under way."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
