"""Where things lie in a shop's folder, the one that holds its ``shop.toml``."""

from dataclasses import dataclass
from pathlib import Path

#: In the folder of models: a link to the one that came home last.
CURRENT = "current"


def settings_file(path: Path) -> Path:
    """Return the ``shop.toml`` of a shop's folder; any other path is what it is."""
    return path / "shop.toml" if path.is_dir() else path


@dataclass(frozen=True)
class ShopFolder:
    """The places below ``root`` that the shop's own settings do not name."""

    root: Path

    @classmethod
    def of(cls, settings: Path) -> "ShopFolder":
        """Return the folder of a ``shop.toml``."""
        return cls(settings.resolve().parent)

    @property
    def approvals(self) -> Path:
        """The bundles that may run here: :mod:`client.joining.approval`."""
        return self.root / "approved.jsonl"

    @property
    def secret(self) -> Path:
        """What the shop's executor shows its node."""
        return self.root / "secrets" / "superexec"

    @property
    def logs(self) -> Path:
        """What the shop's processes write for its engineer."""
        return self.root / "logs"

    @property
    def refusals(self) -> Path:
        """The bundles that came and were not taken in."""
        return self.logs / "refused.jsonl"

    @property
    def adapted(self) -> Path:
        """What the shop fitted around a model for itself: :mod:`client.home.adapted_state`."""
        return self.root / "adapted"

    @property
    def flower(self) -> Path:
        """Flower's own folder: bundles that were taken in are unpacked there."""
        return self.root / "flwr"

    @property
    def state(self) -> Path:
        """What `run` notes while it runs."""
        return self.root / "state"
