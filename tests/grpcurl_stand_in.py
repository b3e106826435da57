"""Stands in for grpcurl where it is not installed: parses its command line, asks by reflection.

Nothing here knows the service's contract: method and messages come from the running server, as
grpcurl gets them. A word of the command line that grpcurl would not take is refused.
"""

import argparse
import sys
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToJson, Parse
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)


def main(arguments: list[str]) -> None:
    """Do what ``grpcurl ARGUMENTS`` does, for the options that are documented."""
    parser = argparse.ArgumentParser("grpcurl", allow_abbrev=False)
    parser.add_argument("-plaintext", action="store_true")
    parser.add_argument("-max-time", type=float)
    parser.add_argument("-H", action="append", default=[])
    parser.add_argument("-d", default="")
    parser.add_argument("words", nargs="+")
    given = parser.parse_args(arguments)
    if not given.plaintext:
        parser.error("this stand-in speaks without TLS only")
    target, *rest = given.words
    metadata = [tuple(header.split(": ", 1)) for header in given.H]
    with grpc.insecure_channel(target) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        if rest == ["list"]:
            sys.stdout.write("\n".join(sorted(database.get_services())) + "\n")
        elif rest[0] == "describe":
            service = pool.FindServiceByName(rest[1])
            for method in service.methods:
                sys.stdout.write(f"rpc {method.name} ( .{method.input_type.full_name} )\n")
        else:
            answer = _call(channel, pool, rest[0], given.d, metadata, given.max_time)
            sys.stdout.write(MessageToJson(answer) + "\n")


def _call(
    channel: grpc.Channel,
    pool: DescriptorPool,
    path: str,
    body: str,
    metadata: Any,
    seconds: float | None,
) -> Any:
    service, _, name = path.partition("/")
    method = pool.FindServiceByName(service).FindMethodByName(name)
    request = GetMessageClass(method.input_type)()
    Parse(body or "{}", request, descriptor_pool=pool)
    call = channel.unary_unary(
        f"/{service}/{name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    return call(request, metadata=metadata, timeout=seconds)


if __name__ == "__main__":
    main(sys.argv[1:])
