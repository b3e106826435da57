"""What we ask of a running SuperLink: start a run, follow it, admit and remove shops.

Runs go through Flower's command line, which builds the bundle. Nodes go through the client that
this command line uses itself, since its own listing leaves out names and keys.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config import ConfigValue, flat_toml
from common.errors import RunError
from common.programs.processes import finished, tool

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient

_NAME = "own"
_SECONDS = 120.0
_GONE = "unregistered"
_FINISHED = "finished"
_MOST_RUNS = 1000


@dataclass(frozen=True)
class Node:
    """A shop's node as SuperLink knows it.

    Attributes
    ----------
    status
        Flower's word, such as ``online``.
    changed_at
        When it came or went last, ISO 8601; empty if it never came.
    """

    node_id: int
    name: str
    public_key: bytes
    status: str
    changed_at: str = ""


@dataclass(frozen=True)
class Submitted:
    """A run as SuperLink knows it.

    Attributes
    ----------
    status
        Flower's word, such as ``finished:completed``.
    details
        What Flower says of it; may be empty.
    bundle
        Digest of the bundle that every shop is asked to run.
    """

    status: str
    details: str
    bundle: str


class Control:
    """A SuperLink's Control API.

    Parameters
    ----------
    address
        ``host:port``.
    environment
        Of Flower's command line; its ``FLWR_HOME`` is a folder of ours, made where missing.
    root_certificates
        Of the authority that signed SuperLink's certificate; None for a link without TLS.
    explain
        Returns what helps to understand a failure, such as the end of SuperLink's log.
    """

    def __init__(
        self,
        address: str,
        environment: Mapping[str, str],
        *,
        root_certificates: Path | None = None,
        explain: Callable[[], str] = lambda: "",
    ) -> None:
        self.address, self._env, self._explain = address, environment, explain
        self._roots = None if root_certificates is None else root_certificates.resolve()
        self._home = Path(environment["FLWR_HOME"])
        # In a folder that holds the bundle, Flower takes the connection's name for a path.
        self._empty = self._home / "empty"
        self._empty.mkdir(parents=True, exist_ok=True)
        values: dict[str, ConfigValue] = {"address": address}
        if self._roots is None:
            values["insecure"] = True
        else:
            values["root-certificates"] = str(self._roots)
        head = f'[superlink]\ndefault = "{_NAME}"\n\n[superlink.{_NAME}]\n'
        self._configure(head + flat_toml(values))

    def _configure(self, text: str) -> None:
        # Several commands may do so at once: none may read half of it.
        path = self._home / "config.toml"
        # On a full disk a shop can be removed all the same, and a run stopped.
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return
        new = path.with_name(f"config.{os.getpid()}.toml")
        new.write_text(text, encoding="utf-8")
        new.replace(path)

    def submit(
        self, app: Path, run_config: Mapping[str, ConfigValue], federation_config: str = ""
    ) -> str:
        """Submit an app for a run; return the run's id.

        Parameters
        ----------
        app
            The folder that holds its pyproject.toml.
        run_config
            Overrides of the app's ``[tool.flwr.app.config]``.
        federation_config
            Settings of the simulation engine, as Flower writes them.
        """
        arguments = ["run", str(app), _NAME]
        if federation_config:
            arguments += ["--federation-config", federation_config]
        with tempfile.TemporaryDirectory(dir=self._home, prefix="run-") as folder:
            if run_config:
                config = Path(folder) / "run-config.toml"
                config.write_text(flat_toml(run_config), encoding="utf-8")
                arguments += ["--run-config", str(config)]
            answer = self._flwr(*arguments)
        return str(answer["run-id"])

    def status(self, run_id: str) -> str:
        """Return Flower's word for a run, such as ``finished:completed``."""
        return self.run(run_id).status

    def run(self, run_id: str) -> Submitted:
        """Return what SuperLink knows of a run; asked without starting Flower's command line.

        Raises
        ------
        RunError
            If SuperLink knows no such run, or cannot be reached.
        """
        from flwr.proto.control_pb2 import ListRunsRequest

        with self._client() as client:
            found = client.ListRuns(ListRunsRequest(run_id=int(run_id))).run_dict
        if int(run_id) not in found:
            raise RunError(f"SuperLink at {self.address} knows no run {run_id}")
        run = found[int(run_id)]
        words = [word for word in (run.status.status, run.status.sub_status) if word]
        return Submitted(":".join(words), run.status.details, run.fab_hash)

    def unfinished(self) -> list[str]:
        """Return the ids of all runs that have not ended."""
        from flwr.proto.control_pb2 import ListRunsRequest

        with self._client() as client:
            found = client.ListRuns(ListRunsRequest(limit=_MOST_RUNS)).run_dict
        return [str(run_id) for run_id, run in found.items() if run.status.status != _FINISHED]

    def log(self, run_id: str) -> str:
        """Return what the server's app of a run logged; in a simulation, the clients' as well."""
        return self._call("log", run_id, _NAME, "--show").stdout

    def stop(self, run_id: str) -> None:
        """Stop a run.

        Raises
        ------
        RunError
            If SuperLink did not stop it, or cannot be reached.
        """
        from flwr.proto.control_pb2 import StopRunRequest

        with self._client() as client:
            if not client.StopRun(StopRunRequest(run_id=int(run_id))).success:
                raise RunError(f"SuperLink at {self.address} did not stop run {run_id}")

    def nodes(self) -> list[Node]:
        """Return all nodes that are registered."""
        from flwr.proto.control_pb2 import ListNodesRequest

        with self._client() as client:
            found = client.ListNodes(ListNodesRequest()).nodes_info
        return [
            Node(
                n.node_id,
                n.name,
                n.public_key,
                n.status,
                max(n.last_activated_at, n.last_deactivated_at),
            )
            for n in found
            if n.status != _GONE
        ]

    def register(self, public_key: bytes, name: str) -> int:
        """Admit the node that holds this key's other half; return its id.

        Parameters
        ----------
        public_key
            In PEM.
        name
            What the node is called in every run.
        """
        from flwr.proto.control_pb2 import RegisterNodeRequest

        with self._client() as client:
            answer = client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name))
        return int(answer.node_id)

    def unregister(self, node_id: int) -> None:
        """Refuse this node from now on."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        with self._client() as client:
            client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    @contextmanager
    def _client(self) -> Iterator["ControlHttpClient"]:
        import httpx
        from flwr.cli.cli_client_interceptor import CliClientHttpInterceptor
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        client = ControlHttpClient.from_server_address(
            self.address,
            insecure=self._roots is None,
            root_certificates=None if self._roots is None else self._roots.read_bytes(),
            interceptors=[
                CliClientHttpInterceptor(),
                RuntimeVersionHttpInterceptor(component_name="flwr CLI"),
            ],
        )
        try:
            yield client
        except httpx.HTTPStatusError as error:
            raise RunError(
                f"SuperLink at {self.address} refused: {error.response.text[:500]}"
            ) from error
        except httpx.HTTPError as error:
            raise RunError(
                f"SuperLink at {self.address} does not answer: {error}\n{self._explain()}"
            ) from error
        finally:
            client.close()

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        done = self._call(*arguments, "--format", "json")
        start = done.stdout.find("{")
        try:
            answer = json.loads(done.stdout[start:]) if start >= 0 else None
        except json.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict) or not answer.get("success"):
            raise RunError(
                f"`flwr {arguments[0]}` failed (status {done.returncode})\n"
                f"{done.stdout[-2000:]}{done.stderr[-2000:]}\n{self._explain()}"
            )
        return answer

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        what = f"`flwr {arguments[0]}`"
        command = [tool("flwr"), *arguments]
        try:
            return finished(command, env=self._env, cwd=self._empty, seconds=_SECONDS, what=what)
        except RunError as error:
            raise RunError(f"{error}\n{self._explain()}") from error
