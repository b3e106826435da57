"""A node that stores what cannot be read, behind a real gateway and SuperLink: the others train.

The hostile node is enrolled and signs as it must. It is no client of ours: it says what it likes to
SuperLink, which stores it, since it looks at no more than heads, lengths and hashes.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from common.protocol import shop_key
from deployment_support import SECONDS, Deployed, deployed
from simulations.loopback.deployment import LocalShop
from test_pulling import made, tree_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

#: Flower's number for SuperLink among the nodes.
SUPERLINK = 1
#: Seconds of an exchange: enough for the honest, and all that the hostile node may take.
LONGEST = 60.0


class HostileNode:
    """Answers every message with what cannot be read; the second one with what never comes.

    With each answer it sends another message to SuperLink, in SuperLink's own name.
    """

    def __init__(self, federation: Deployed, shop: LocalShop) -> None:
        private = serialization.load_ssh_private_key(
            (shop.folder / "keys" / "node.key").read_bytes(), None
        )
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        self._client = FleetHttpClient.from_server_address(
            federation.federation.settings.address,
            insecure=False,
            root_certificates=federation.federation.authority.certificate.read_bytes(),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(private, private.public_key()),
            ],
        )
        key = public_key_to_bytes(private.public_key())
        found = self._client.ActivateNode(
            ActivateNodeRequest(public_key=key, heartbeat_interval=300.0)
        )
        self._node = Node(node_id=found.node_id)
        self.answered: list[str] = []
        self.forged = 0

    def close(self) -> None:
        self._client.close()

    def work(self, ended: threading.Event) -> None:
        while not ended.wait(0.2):
            with suppress(httpx.HTTPError):
                self._client.SendNodeHeartbeat(
                    SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=300.0)
                )
                found = self._client.PullMessages(PullMessagesRequest(node=self._node))
                for message in found.messages_list:
                    self.forged += self._store(message, forged=True)
                    self._store(message, withheld=len(self.answered) == 1)
                    self.answered.append(message.metadata.message_type)

    def _store(
        self, message: MessageProto, *, forged: bool = False, withheld: bool = False
    ) -> bool:
        asked = message.metadata
        told = make_message(
            Metadata(
                run_id=asked.run_id,
                message_id="",
                src_node_id=SUPERLINK if forged else self._node.node_id,
                dst_node_id=SUPERLINK,
                reply_to_message_id="" if forged else asked.message_id,
                group_id=asked.group_id,
                created_at=time.time(),
                ttl=60.0,
                message_type=asked.message_type,
            ),
            content=RecordDict(),
        )
        body = message_to_proto(told).SerializeToString()
        records = made("RecordDict", [], b"not json")
        stored = [records, made("Message", [records[0]], body)]
        told.metadata.__dict__["_message_id"] = stored[-1][0]
        taken = self._client.PushMessages(
            PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(told)],
                message_object_trees=[tree_of([*stored])],
                clientapp_runtime_list=[0.1],
            )
        )
        for name, _, content in [] if withheld else stored:
            if name in taken.objects_to_push:
                self._client.PushObject(
                    PushObjectRequest(
                        node=self._node,
                        run_id=asked.run_id,
                        object_id=name,
                        object_content=content,
                        session_id=taken.session_id,
                    )
                )
        return bool(taken.objects_to_push)


@contextmanager
def at_work(node: HostileNode) -> Iterator[None]:
    ended = threading.Event()
    thread = threading.Thread(target=node.work, args=(ended,))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        node.close()


def test_a_node_that_stores_what_cannot_be_read_stops_nobody(tmp_path: Path) -> None:
    plan = {"min_shops": 2, "timeout_seconds": LONGEST, "quorum": 0.5}
    with deployed(tmp_path / "town", plan=plan, start=False) as town:
        bad = town.plant("mallory", 2)
        town.up()
        for name in ("north", "south"):
            town.open(town.shops[name])
            town.wait_until_connected(town.shops[name], SECONDS)
        node = HostileNode(town, bad)
        town.wait_until_online("mallory", SECONDS)
        with at_work(node):
            said = town.trained()
        # Once at the start, and again before the second round: it never said whether it takes part.
        first, second = town.events("join")
        assert first["declined"] == {"rubbish": 1}, said
        assert first["shops"][shop_key("mallory")] == "rubbish"
        assert second["declined"] == {"late": 1}, said
        assert second["seconds"] < LONGEST + 30.0
        assert [e["accepted"] for e in town.events("round")] == [2, 2], said
        assert not any(e["kept_old_model"] for e in town.events("round")), said
        assert node.answered[:2] == ["query.join", "query.join"]
        assert "Traceback" not in said
        assert town.versions() == [1]
        # Whether SuperLink takes what a node sends in its name is Flower's to change.
        print(f"forged={node.forged}")  # noqa: T201
        town.check_accounts()
