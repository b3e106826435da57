"""Flower's own SuperNode, in which a bundle that the shop has not approved is never taken in.

``python -m client.node --approved FILE --refused FILE`` and then the options of
``flower-supernode``. A SuperNode takes in a run's code with the first message of that run. The
guard stands before that place: it asks for the digest of the run's bundle, looks it up among the
shop's approvals, and answers in Flower's own way that the bundle is not valid, before any of it is
fetched, stored or read. A later message of the same run is looked at again, so an approval counts
from the next message on, and so does its revocation.

Flower has no hook for this. The guard therefore wraps a function inside Flower, and refuses to
start with any version of Flower but the one whose inside it knows. The function that sends replies
is wrapped as well: errors leave without their text (:mod:`client.joining.error_replies`).
"""

import argparse
import functools
import inspect
import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.version import package_version
from flwr.supernode import start_client_internal as inside

from client.joining.approval import Approvals
from client.joining.approving import one_line
from client.joining.error_replies import without_words
from common.bundle import digest
from common.errors import ConfigError, FedtailError, RunError

logger = logging.getLogger(__name__)

#: The version whose inside this module knows.
KNOWN_FLOWER = "1.41.0"
_INTAKE = "_pull_and_store_message"
_ARGUMENTS = (
    "state",
    "object_store",
    "node_config",
    "receive",
    "get_run",
    "get_fab",
    "pull_object",
    "confirm_message_received",
    "trusted_entities",
)
_PUSH = "_push_messages"
_LONGEST_DIGEST = 80
_PUSH_ARGUMENTS = ("state", "object_store", "send", "push_object")

Intake = Callable[..., int | None]


class _OtherContentError(Exception):
    """The bytes that came are not those that the digest names."""


class Guard:
    """Stands before the intake of a SuperNode.

    Parameters
    ----------
    approvals
        The shop's decisions, read anew for each message.
    refusals
        Where each refused bundle is noted once for each run.
    """

    def __init__(self, approvals: Approvals, refusals: Path) -> None:
        self._approvals = approvals
        self._refusals = refusals
        # (digest, run, reason)
        self._noted: set[tuple[str, int, str]] = set()

    def around(self, intake: Intake) -> Intake:
        """Return ``intake`` with the guard before it."""

        @functools.wraps(intake)  # It still looks like Flower's own when it is checked again.
        def guarded(**arguments: Any) -> int | None:  # noqa: ANN401 - Flower's own arguments
            state, store = arguments["state"], arguments["object_store"]
            if (received := arguments["receive"]()) is None:
                return None
            message: Message = received[0]
            run_id = message.metadata.run_id
            try:
                run: Run = state.get_run(run_id) or arguments["get_run"](run_id)
            except RunNotRunningException:
                logger.info("run=%d message=ignored reason=run-ended", run_id)
                return None

            def approved_bundle(_: str, __: int) -> Fab:
                fab: Fab = arguments["get_fab"](run.fab_hash, run_id)
                if digest(fab.content) != run.fab_hash:
                    raise _OtherContentError
                return fab

            reason = self.objection(run.fab_hash)
            if not reason:
                self._noted = {note for note in self._noted if note[0] != run.fab_hash}
                known = {
                    "receive": lambda: received,
                    "get_run": lambda _: run,
                    "get_fab": approved_bundle,
                }
                try:
                    return intake(**(arguments | known))
                except _OtherContentError:
                    reason = "the bytes sent are not those of this digest"
            self._note(run, reason)
            words = f"this shop has not approved the bundle {run.fab_hash}"
            reply = Message(Error(ErrorCode.INVALID_FAB, words), reply_to=message)
            inside._insert_message(reply, state, store)
            return run_id

        return guarded

    def objection(self, bundle: str) -> str:
        """Return why a bundle may not be taken in; empty if it may."""
        try:
            return "" if bundle in self._approvals.approved() else "not approved"
        except ConfigError as error:
            return str(error)

    def _note(self, run: Run, reason: str) -> None:
        key = (run.fab_hash, run.run_id, reason)
        if key in self._noted:
            return
        self._noted.add(key)
        # Whatever the server calls a digest: people look at it in logs and terminals.
        named = one_line(run.fab_hash)[:_LONGEST_DIGEST]
        logger.warning("bundle=refused digest=%s run=%d reason=%s", named, *key[1:])
        at = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"at": at, "digest": named, "run": str(run.run_id), "reason": reason}
        try:
            with self._refusals.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            # The refusal itself must not depend on a disk with room.
            logger.warning("refusals=not-written reason=%s", error.strerror)


def check_flower() -> None:
    """Refuse a Flower whose inside is not the known one.

    Raises
    ------
    RunError
        If the version or a function that is wrapped is another.
    """
    known = {_INTAKE: _ARGUMENTS, _PUSH: _PUSH_ARGUMENTS}
    found = {
        name: tuple(inspect.signature(getattr(inside, name, lambda: None)).parameters)
        for name in known
    }
    if package_version != KNOWN_FLOWER or found != known:
        raise RunError(
            f"flwr {package_version} is installed, and how it takes in bundles is known for "
            f"{KNOWN_FLOWER} only: install requirements.lock. Nothing was started, for unapproved "
            "code could run"
        )


def guard_intake(approvals: Approvals, refusals: Path) -> None:
    """Put the guard into this process's SuperNode; see :func:`check_flower` for what is raised."""
    check_flower()
    setattr(inside, _INTAKE, Guard(approvals, refusals).around(getattr(inside, _INTAKE)))


def guard_sending() -> None:
    """Take the text out of every error that this process's SuperNode sends."""
    check_flower()
    setattr(inside, _PUSH, without_words(getattr(inside, _PUSH)))


def main(arguments: list[str]) -> None:
    """Run the SuperNode; returns or exits as Flower's own command does."""
    from flwr.supernode.cli import flower_supernode

    parser = argparse.ArgumentParser(prog="python -m client.node", allow_abbrev=False)
    parser.add_argument("--approved", type=Path, required=True, help="The shop's approved.jsonl.")
    parser.add_argument("--refused", type=Path, required=True, help="Where refusals are noted.")
    ours, flowers = parser.parse_known_args(arguments)
    guard_intake(Approvals(ours.approved.absolute()), ours.refused.absolute())
    guard_sending()
    sys.argv = ["flower-supernode", *flowers]
    flower_supernode()


def _log_to_stderr() -> None:
    """Show our own lines; Flower's logger has a handler of its own, and would speak twice."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


if __name__ == "__main__":
    _log_to_stderr()
    try:
        main(sys.argv[1:])
    except FedtailError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_status)
