"""What a process need not load it does not load: a shop starts one for every message."""

import json
import subprocess
import sys
from pathlib import Path

from common.bundle import FEDERATION
from common.protocol import POPULARITY, ModelPlan, TrainingPlan
from home_support import HomeShop, N, purchases


def printed(code: str, *arguments: str) -> str:
    """Run Python code in a process of its own and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=FEDERATION.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


RELEASE = """
import json, sys
import client.app
from client.rounds.participation import answer
from client.rounds.replying import Node
from common.protocol import RELEASE
header, arrays = answer(RELEASE, json.loads(sys.argv[2]), dict, Node({"shop": sys.argv[1]}, {}, {}))
loaded = sorted({"torch", "opacus"} & sys.modules.keys())
print(json.dumps([header.status, {n: a.shape for n, a in arrays.items()}, loaded]))
"""


def test_a_popularity_release_is_made_without_torch(tmp_path: Path) -> None:
    shop = HomeShop(tmp_path)
    shop.sell(purchases())
    plan = TrainingPlan(
        rounds=1,
        popularity_noise_multiplier=6.0,
        noise_multiplier=6.0,
        model=ModelPlan(dimension=2),
    )
    header = {
        "run_id": "run",
        "server_round": 0,
        "plan_json": plan.model_dump_json(),
        "catalogue_fingerprint": shop.catalogue.fingerprint,
    }
    answered = json.loads(printed(RELEASE, str(shop.path), json.dumps(header)))
    assert answered == ["ok", {POPULARITY: [N]}, []]


def test_running_a_shop_loads_no_tables_and_no_models() -> None:
    found = printed(
        "import sys, client.joining.running\n"
        "print(sorted({'pandas', 'pyarrow', 'scipy', 'torch', 'flwr'} & sys.modules.keys()))"
    )
    assert found == "[]\n"


def test_help_loads_no_tables_and_no_models() -> None:
    # That of simulations took two seconds: one of its commands writes tables.
    found = printed(
        "import sys, client.__main__, server.__main__, simulations.__main__\n"
        "print(sorted({'numpy', 'pandas', 'scipy', 'torch', 'flwr'} & sys.modules.keys()))"
    )
    assert found == "[]\n"


RECOMMEND = """
import sys
from client.__main__ import app
try:
    app(["recommend", sys.argv[1], "--user", "u03", "--json"])
except SystemExit as end:
    assert not end.code
unneeded = {"torch", "flwr", "opacus", "sqlalchemy", "grpc", "fastapi", "networkx", "numba"}
print(sorted((unneeded | {"scipy.linalg", "scipy.sparse.linalg"}) & sys.modules.keys()))
"""


def test_recommending_loads_no_trainer_no_server_and_no_database(tmp_path: Path) -> None:
    from client.home.adapting import adapt

    shop = HomeShop(tmp_path)
    shop.model()
    shop.sell(purchases())
    adapt(shop.path, shop.settings)
    assert printed(RECOMMEND, str(shop.path)).splitlines()[-1] == "[]"
