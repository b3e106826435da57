"""An operator's app that tries what secure sums are to withstand: a bundle of its own digest."""

import shutil
from pathlib import Path

from client.approval import Approvals
from common.bundle import FEDERATION, FlowerApp, build, digest
from sums_deployed_support import Summing

#: Beside ``server.toml``: what the app does, and what it gained by that.
MODE, GAINED = "malice", "gained"

_MALICE = """
import os
import pathlib

from cryptography.hazmat.primitives.asymmetric import ec

from common.protocol import SUM_KEYS, SUM_SHARES, SUM_UNMASK, SUM_VIEW, shop_key
from common.secure_sum.messages import (
    ADVERTISEMENT, Advertisement, KeysRequest, UnmaskRequest, ViewAnswer, parse,
)
from common.secure_sum.primitives import fresh, public_key, sign
from server.secure_sum import rounds

honest = rounds._Sum._exchange
home = pathlib.Path(os.environ["FEDTAIL_SERVER"])


def exchange(self, stage, requests, state=None, masked=None):
    mode = (home / "malice").read_text()
    shops = sorted(requests)
    if mode == "rosters" and stage == SUM_KEYS:
        session = requests[shops[0]].session.model_copy(update={"roster_digest": "ab" * 32})
        requests = {**requests, **dict.fromkeys(shops[:3], KeysRequest(session=session))}
    if mode == "invented" and stage == SUM_SHARES:
        first = requests[shops[0]]
        more = first.model_copy(
            update={"advertisements": (*first.advertisements, invented(first.session))}
        )
        requests = dict.fromkeys(shops, more)
    if mode != "views" or stage != SUM_VIEW:
        return honest(self, stage, requests, state, masked)
    # In the release two shops, later all but two, are told that one of the others has dropped out.
    all_of_them = requests[shops[0]]
    lured = shops[3:] if self._round == 0 else shops[2:]
    for number, shop in enumerate(lured):
        left_out = shops[0] if self._round == 0 else shops[number % 2]
        seen = tuple(s for s in all_of_them.contributors if s != left_out)
        requests = {**requests, shop: all_of_them.model_copy(update={"contributors": seen})}
    found = honest(self, stage, requests, state, masked)
    signatures = {s: parse(ViewAnswer, text).signature for s, text in found.said.items()}
    asked = UnmaskRequest(session=all_of_them.session, signatures=signatures)
    given = honest(self, SUM_UNMASK, dict.fromkeys(lured, asked))
    with (home / "gained").open("a") as file:
        file.write("".join(f"{self._round} {shop}\\n" for shop in given.said))
    return found


def invented(session):
    key = ec.generate_private_key(ec.SECP384R1())
    unsigned = Advertisement(
        shop=shop_key("mallory"),
        sealing_key=public_key(fresh()),
        mask_key=public_key(fresh()),
        commitment=fresh(),
        signature=b"",
    )
    signature = sign(key, ADVERTISEMENT, unsigned.covered(session))
    return unsigned.model_copy(update={"signature": signature})


rounds._Sum._exchange = exchange
"""


def malicious_code(federation: Summing) -> Path:
    """Return a checkout of the malicious operator's, which every shop was talked into approving."""
    folder = federation.folder / "malicious"
    if not folder.exists():
        folder.mkdir()
        shutil.copy(FEDERATION.folder / "pyproject.toml", folder)
        for package in FEDERATION.packages:
            shutil.copytree(FEDERATION.folder / package, folder / package)
        (folder / "server" / "malice.py").write_text(_MALICE)
        with (folder / "server" / "app.py").open("a") as file:
            file.write("\n\nimport server.malice  # noqa: E402\n")
        bundle = digest(build(FlowerApp(folder, FEDERATION.packages)))
        for shop in federation.shops.values():
            Approvals(shop.folder / "approved.jsonl").decide("approve", bundle, "talked into")
    return folder
