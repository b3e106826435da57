"""Looking at something again and again while a program does its work."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)


@dataclass
class Watch:
    """Calls a function every few seconds, in a thread of its own, until it is closed.

    A look that fails is no end of it.
    """

    look: Callable[[], object]
    name: str
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self, every_seconds: float) -> None:
        """Begin; the first look comes after ``every_seconds``."""

        def looking() -> None:
            while not self._stop.wait(every_seconds):
                try:
                    self.look()
                except Exception as error:  # noqa: BLE001 - the next look may find it mended
                    logger.error("look=failed at=%s error=%s", self.name, type(error).__name__)

        self._thread = threading.Thread(target=looking, name=self.name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and wait for a look that is under way."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
