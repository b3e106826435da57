"""Every error that fedtail raises on purpose.

::

    FedtailError                 something went wrong; exit status 1
    ├── InputError               the caller's input is at fault; exit status 2
    │   ├── ConfigError          a configuration file, key or command line
    │   ├── DataError            a table: names the column, values and rows
    │   └── ArtifactError        a model or checkpoint on disk is missing or damaged
    ├── PrivacyError             training would break a privacy rule
    │   ├── BudgetError          the remaining plan does not fit under the shop's cap
    │   └── LedgerError          the ledger cannot be trusted or written
    ├── ProtocolError            a message is not what the protocol says
    │   └── SecureSumError       a secure sum cannot go on, or must not
    ├── RunError                 a federation run failed or was interrupted
    └── UnavailableError         what an answer needs can't be reached now; later it may be
"""


class FedtailError(Exception):
    """Base of all errors raised on purpose."""

    exit_status = 1


class InputError(FedtailError):
    """The caller's input is at fault."""

    exit_status = 2


class ConfigError(InputError):
    """A configuration file, key or command line is wrong."""


class DataError(InputError):
    """A table breaks its contract."""


class ArtifactError(InputError):
    """A model or checkpoint on disk is missing or damaged."""


class PrivacyError(FedtailError):
    """Training would break a privacy rule."""


class BudgetError(PrivacyError):
    """The remaining plan does not fit under the shop's cap."""


class LedgerError(PrivacyError):
    """The ledger cannot be trusted or written."""


class ProtocolError(FedtailError):
    """A message is not what the protocol says."""


class SecureSumError(ProtocolError):
    """A secure sum cannot go on, or must not."""


class RunError(FedtailError):
    """A federation run failed or was interrupted."""


class UnavailableError(FedtailError):
    """What an answer needs can't be reached now; asking again later may help."""
