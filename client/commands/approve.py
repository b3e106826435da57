"""`client approve`: look first, then decide."""

import sys
from pathlib import Path

from client.commands.approval_table import listing_table, sight_table
from client.joining.approval import Approvals
from client.joining.approving import Sight, digest_of, listing, look, who
from client.shop_folder import ShopFolder
from common.cli import print_document, print_json, terminal
from common.errors import ConfigError


def approve_code(
    settings: Path,
    code: str,
    *,
    own_code: bool,
    revoke: bool,
    note: str,
    only_diff: bool,
    yes: bool,
    as_json: bool,
) -> bool:
    """Do what the command line asks; return whether it was done, not declined.

    Raises
    ------
    ConfigError
        If there is no shop, or the code cannot be approved without being asked.
    """
    if not settings.is_file():
        raise ConfigError(f"there is no {settings}: name the shop's shop.toml")
    folder = ShopFolder.of(settings)
    approvals = Approvals(folder.approvals)
    if not (code or own_code or revoke or only_diff):
        print_document(listing(folder), listing_table, as_json=as_json)
        return True
    if revoke and only_diff:
        raise ConfigError("--diff only shows: leave it out, or --revoke")
    if revoke:
        digest = digest_of(code, own_code=own_code)
        if digest not in approvals.approved():
            raise ConfigError(f"{digest} is not approved, so there is nothing to take back")
        decision = approvals.decide("revoke", digest, who(), note)
        _say(f"{digest} may not run here any more", decision.model_dump(), as_json=as_json)
        return True
    sight = look(code, own_code=own_code)
    if only_diff:
        _show_difference(code, sight, as_json=as_json)
        return True
    if not as_json:
        terminal().print(sight_table(sight.document()))
    if not (yes or _wanted(sight)):
        sys.stderr.write("nothing was approved\n")
        return False
    decision = approvals.decide("approve", sight.digest, who(), note)
    document = {**sight.document(), **decision.model_dump()}
    _say(f"approved: a run with this code is taken in by {settings}", document, as_json=as_json)
    return True


def _show_difference(code: str, sight: Sight, *, as_json: bool) -> None:
    if not sight.files:
        # No lines would say that there is no difference.
        raise ConfigError(
            f"of {code} its digest alone is known here: ask the operator for the bundle, and give "
            "its .fab file"
        )
    if as_json:
        print_json({**sight.document(), "diff": sight.diff()})
    else:
        sys.stdout.write(sight.diff() + "\n")


def _wanted(sight: Sight) -> bool:
    """Whether a bundle whose contents are not the own code's is wanted all the same."""
    # Whoever types a digest of 64 digits has decided already.
    if sight.same or not sight.files:
        return True
    if not sys.stdin.isatty():
        raise ConfigError(
            "the bundle differs from the code here: look at it with --diff, then say --yes"
        )
    sys.stderr.write("Its code would run with this shop's data. Approve it? [y/N] ")
    return input().strip().lower() in {"y", "yes"}


def _say(words: str, document: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json(document)
    else:
        sys.stdout.write(f"{words}\n")
