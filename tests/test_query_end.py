"""How a service ends: nobody is cut off, and nobody keeps it waiting."""

import json
import signal
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from query_support import Running, make_place, running

pytestmark = pytest.mark.e2e


def end(service: Running) -> None:
    """Ask a service to end, and wait until it has begun to."""
    service.process.send_signal(signal.SIGTERM)
    for _ in range(600):
        if any("Shutting down" in line for line in service.log):
            return
        time.sleep(0.05)
    pytest.fail("".join(service.log))


def test_an_answer_under_way_says_that_it_is_the_last_on_its_connection(tmp_path: Path) -> None:
    # Without a word the next request was sent on the same connection, and found it reset.
    with running(make_place(tmp_path)) as service:
        body = json.dumps({"k": 3}).encode()
        head = f"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        address = urlsplit(service.rest)
        with socket.create_connection((address.hostname, address.port), timeout=60) as caller:
            caller.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body[:1])
            time.sleep(0.5)
            end(service)
            caller.sendall(body[1:])
            answer = b"".join(iter(lambda: caller.recv(65536), b"")).decode()
        assert answer.startswith("HTTP/1.1 200 ")
        assert "\r\nconnection: close\r\n" in answer
        assert len(json.loads(answer.partition("\r\n\r\n")[2])["items"]) == 3


def test_who_watches_the_health_is_told_and_does_not_hold_up_the_end(tmp_path: Path) -> None:
    # A balancer's watch held it for ten seconds, when docker kills; then the log had a stack trace.
    with running(make_place(tmp_path)) as service, grpc.insecure_channel(service.grpc) as channel:
        watched = HealthStub(channel).Watch(HealthCheckRequest(), timeout=60)
        assert next(watched).status == HealthCheckResponse.SERVING
        end(service)
        began = time.monotonic()
        assert next(watched).status == HealthCheckResponse.NOT_SERVING
        assert list(watched) == []
        assert service.process.wait(timeout=60) == 0
        assert time.monotonic() - began < 8
        assert "Traceback" not in "".join(service.log)


def test_both_interfaces_end_at_the_same_time(tmp_path: Path) -> None:
    # gRPC took new calls, and its watchers were told nothing, until the last request over REST was
    # answered; then its own calls had ten seconds more, of which an engine's patience knew nothing.
    with running(make_place(tmp_path)) as service, grpc.insecure_channel(service.grpc) as channel:
        watched = HealthStub(channel).Watch(HealthCheckRequest(), timeout=60)
        assert next(watched).status == HealthCheckResponse.SERVING
        address = urlsplit(service.rest)
        with socket.create_connection((address.hostname, address.port), timeout=60) as caller:
            head = "POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n"
            caller.sendall(f"{head}Content-Type: application/json\r\n\r\n{{".encode())
            time.sleep(0.5)
            end(service)
            assert next(watched).status == HealthCheckResponse.NOT_SERVING
            assert list(watched) == []
            # The request over REST is under way all the while.
            caller.sendall(b'"k": 3}')
            assert caller.recv(13) == b"HTTP/1.1 200 "
        assert service.process.wait(timeout=60) == 0
        assert "Traceback" not in "".join(service.log)
