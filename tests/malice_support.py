"""An operator's app that tries what secure sums are to withstand: a bundle of its own digest."""

import shutil
from pathlib import Path

from client.joining.approval import Approvals
from common.bundle import FEDERATION, FlowerApp, build, digest
from sums_deployed_support import Summing

#: Beside ``server.toml``: what the app does, and what it gained by that.
MODE, GAINED = "malice", "gained"
#: Beside it: a line of JSON for each old request that was sent again.
AGAIN = "again"

_MALICE = """
import dataclasses
import json
import os
import pathlib
import pickle

from cryptography.hazmat.primitives.asymmetric import ec

from common.protocol import SUM_KEYS, SUM_MASKED, SUM_SHARES, SUM_UNMASK, SUM_VIEW, shop_key
from common.secure_sum.messages import (
    ADVERTISEMENT, Advertisement, KeysRequest, UnmaskRequest, ViewAnswer, most_chars, parse,
)
from common.secure_sum.primitives import fresh, public_key, sign
from server.rounds.messenger import Masked
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
    if mode == "again":
        return again(self, stage, requests, state, masked)
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


def again(self, stage, requests, state, masked):
    # Each request a second time, and with it those of the run's first sum and of an earlier run.
    found = honest(self, stage, requests, state, masked)
    send_again(self, "same", stage, self._round, requests, state, found.said)
    kept = home / "requests"
    old = pickle.loads(kept.read_bytes()) if kept.exists() else {}
    name = self._messenger._job.run_name
    for run, first in old.items():
        what = "earlier round" if run == name else "earlier run"
        if stage in first and (run != name or self._round):
            send_again(self, what, stage, 0, first[stage], {}, {}, run)
    if not self._round:
        old.setdefault(name, {})[stage] = requests
        kept.write_bytes(pickle.dumps(old))
    return found


def send_again(self, what, stage, server_round, requests, state, said, run=None):
    messenger, vectors = self._messenger, []
    nodes = [node for node, shop in self._nodes.items() if shop in requests]
    texts = {node: requests[self._nodes[node]].model_dump_json() for node in nodes}
    masked = None
    if stage == SUM_MASKED:
        lengths = {shop: self._collector.layout.length_of(shop) for shop in requests}
        if not server_round:
            lengths = dict.fromkeys(lengths, messenger._job.shapes["popularity"][0])
        masked = Masked(lengths, lambda shop, _: vectors.append(shop))
    job = messenger._job
    messenger._job = dataclasses.replace(job, run_name=run or job.run_name)
    try:
        found = messenger.exchange(
            stage, server_round, nodes, state or {}, {}, said=texts, masked=masked,
            most_chars=most_chars(len(self._collector.layout.members)),
        )
    finally:
        messenger._job = job
    line = {
        "what": what,
        "stage": stage,
        "round": self._round,
        "asked": len(nodes),
        "same": sum(said.get(shop) == text for shop, text in found.said.items()),
        "gained": len(vectors) + sum(said.get(shop) != text for shop, text in found.said.items()),
        "declined": dict(found.declined),
    }
    with (home / "again").open("a") as file:
        file.write(json.dumps(line) + "\\n")


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
