"""A recorded run of the real deployment, and what is allowed in what its shops sent."""

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from flwr.proto import fleet_pb2, message_pb2

from deployment_support import Deployed
from leaving_account import FLEET, Account, Reply, request
from leaving_support import Recorder, Request, Watch
from server.training.records import Runs

ITEMS = 30
#: Recognisable wherever they turn up.
PLANTED = (
    "CUSTOMER-q7zx",
    "PRODUCT-w3vk",
    "BASKET-j8hd",
    "SECRET-OF-THE-MERCHANT-m5tn",
    "merchant-north-p2rf",
    "731942.625",
)
#: How a header's value looks; ``Flower`` has the shop's key, the time, and a signature of it.
HEADERS = {
    "host": r"127\.0\.0\.1:\d+",
    "accept": "application/protobuf",
    "accept-encoding": r"[a-z, ]+",
    "connection": "keep-alive",
    "user-agent": r"python-httpx/[\d.]+",
    "content-type": "application/protobuf",
    "content-length": r"\d+",
    "flwr-package-name": "flwr",
    "flwr-package-version": r"1\.41\.0",
    "flwr-component-name": "SuperNode",
    "flwr-public-key": r"[A-Za-z0-9+/=]+",
    "flwr-timestamp": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00",
    "flwr-signature": r"[A-Za-z0-9+/]{130,150}={0,2}",
}


@dataclass
class Recording:
    """What is left of a run: what each shop sent, and what its processes were connected to."""

    federation: Deployed
    recorders: dict[str, Recorder]
    watch: Watch
    said: str
    calls: Path

    def account(self) -> Account:
        runs = Runs(self.federation.operator / "runs")
        (name,) = runs.names()
        known: dict[str, bytes] = {}
        for recorder in self.recorders.values():
            known |= _objects(recorder.requests())
        # What one shop has sent, the others need not send again: a weight is the same for all.
        shared = {k: v for k, v in known.items() if v.startswith(b"MetricRecord ")}
        return Account(runs.read(name).plan, ITEMS, shared)

    def check_requests(self, recorder: Recorder) -> set[str]:
        """Account for every byte that a shop has sent; return the kinds of its requests."""
        found = recorder.requests()
        assert sum(_length(one) for one in found) == len(recorder.sent)
        for one in found:
            assert one.line == f"POST {one.path} HTTP/1.1"
            assert sorted(name for name, _ in one.headers) == sorted(HEADERS)
            for name, value in one.headers:
                assert re.fullmatch(HEADERS[name], value), f"{name}: {value}"
            request(one.path, one.body)
        return {one.path.removeprefix(FLEET) for one in found}

    def replies(self, shop: str) -> list[Reply]:
        """Return all answers of a shop, each object accounted for."""
        requests, account = self.recorders[shop].requests(), self.account()
        pending = _objects(requests)
        found = []
        for one in requests:
            asked = request(one.path, one.body)
            if isinstance(asked, fleet_pb2.PushMessagesRequest):
                message_id = asked.messages_list[0].metadata.message_id
                ids = _ids(asked.message_object_trees[0])
                assert asked.message_object_trees[0].object_id == message_id
                found.append(
                    account.reply({k: v for k, v in pending.items() if k in ids}, message_id)
                )
                for object_id in ids:
                    pending.pop(object_id, None)
        assert not pending, "objects of no reply"
        return found


def _ids(tree: message_pb2.ObjectTree) -> set[str]:
    return {tree.object_id, *(i for child in tree.children for i in _ids(child))}


def _objects(requests: list[Request]) -> dict[str, bytes]:
    found = [
        message_pb2.PushObjectRequest.FromString(one.body)
        for one in requests
        if one.path == FLEET + "push-object"
    ]
    return {one.object_id: one.object_content for one in found}


def planted_sales(name: str, customers: int, first: int) -> pd.DataFrame:
    rows = [
        (f"{PLANTED[0]}-{name}-{c}", f"{PLANTED[1]}-{(c + 7 * n + first) % ITEMS:02}",
         1_700_000_000 + 86_400 * n + c, f"{PLANTED[2]}-{c}-{n}", float(PLANTED[5]))
        for c in range(customers) for n in range(5)
    ]  # fmt: skip
    columns = ["user_id", "item_id", "timestamp", "session_id", "price"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(merchant_id=name, behavior="purchase")


def planted_products() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "item_id": [f"{PLANTED[1]}-{k:02}" for k in range(ITEMS)],
            "category": [f"c{k % 5}" for k in range(ITEMS)],
        }
    )


def _length(one: Request) -> int:
    head = "\r\n".join([one.line, *(f"{n}: {v}" for n, v in one.headers)])
    return len(head.encode()) + 4 + len(one.body)
