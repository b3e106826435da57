"""The Flower ServerApp: wiring only."""

import json
import logging
import os

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.features import read_catalogue
from common.model import initial_state, state_spec, trained_names
from server.checkpoints import last_checkpoint, write_checkpoint
from server.heads import LedgerHeads
from server.settings import read_home, read_run_config
from server.strategy import Event, Federation, Job

logger = logging.getLogger(__name__)

#: One line of public facts for each exchange: what progress bars and reports read.
EVENTS_FILE = "rounds.jsonl"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the plan in the run config, from its start or from the last checkpoint."""
    plan, settings = read_run_config(context.run_config)
    home = read_home(os.environ)
    home.checkpoints.mkdir(parents=True, exist_ok=True)
    catalogue = read_catalogue(home.catalogue)
    resume = last_checkpoint(
        home.checkpoints,
        plan=plan,
        settings_json=settings.identity(),
        catalogue_fingerprint=catalogue.fingerprint,
    )
    job = Job(
        run_name=str(context.run_id) if resume is None else resume.run_name,
        plan=plan,
        settings=settings,
        catalogue_fingerprint=catalogue.fingerprint,
        shapes=state_spec(plan.model, catalogue.size),
        trained=trained_names(plan),
        features=catalogue.features,
    )
    with (home.checkpoints / EVENTS_FILE).open("a", encoding="utf-8") as events:

        def report(event: Event) -> None:
            events.write(json.dumps(event) + "\n")
            events.flush()

        report({"event": "start", "server_round": 0 if resume is None else resume.server_round})
        federation = Federation(
            grid,
            job,
            save=lambda checkpoint: write_checkpoint(home.checkpoints, checkpoint),
            report=report,
            heads=LedgerHeads(home.heads_file),
        )
        initial = {} if resume else initial_state(plan.model, catalogue.size)
        federation.run(initial, resume)
