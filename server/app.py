"""The Flower ServerApp: wiring only."""

import logging
import os
from collections.abc import Sequence

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.catalogue.stock import read_stock
from common.features import read_catalogue
from common.model import check_features, state_spec, trained_names
from common.protocol import Arrays, Noise, TrainingPlan
from common.secure_sum.members import read_roster
from server.checkpoints import alone, last_checkpoint, trained_on, write_checkpoint
from server.figures import ShopFigures, write_figures
from server.finishing import finished_model
from server.job import Job
from server.rounds.heads import LedgerHeads
from server.settings import RunPlace, RunSettings, ServerHome, read_home, read_run_config
from server.starting import from_model, from_seed
from server.strategy import Federation
from server.training.records import Runs, reporting

logger = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the plan in the run config, from its start or from the last checkpoint."""
    plan, settings = read_run_config(context.run_config)
    home = read_home(os.environ)
    run_name = settings.run_name or str(context.run_id)
    place = home.place(run_name)
    # What an earlier attempt that was just stopped still writes comes before this one looks.
    with alone(place.checkpoints):
        _run(grid, plan, settings, home, place, run_name)


def _run(
    grid: Grid,
    plan: TrainingPlan,
    settings: RunSettings,
    home: ServerHome,
    place: RunPlace,
    run_name: str,
) -> None:
    # A run begins and goes on with its own catalogue, though a newer one was published.
    asked_for = None if home.runs is None else Runs(home.runs).asked_for(run_name)
    published = home.published(trained_on(place.checkpoints) or asked_for)
    catalogue = read_catalogue(published)
    check_features(plan.model, catalogue)
    resume = last_checkpoint(
        place.checkpoints,
        plan=plan,
        settings_json=settings.identity(),
        catalogue_fingerprint=catalogue.fingerprint,
    )
    start = from_seed(plan, catalogue)
    if settings.initial_model:
        start = from_model(
            home.model(settings.initial_model),
            plan,
            catalogue,
            lambda fingerprint: read_catalogue(home.published(fingerprint)),
        )
    job = Job(
        run_name=run_name if resume is None else resume.run_name,
        plan=plan,
        settings=settings,
        catalogue_fingerprint=catalogue.fingerprint,
        shapes=state_spec(plan.model, catalogue.size),
        trained=trained_names(plan),
        features=catalogue.features,
        members=read_roster(home.roster_file) if plan.trust == "federation" else None,
        stock=read_stock(published, catalogue),
        catalogue=catalogue,
    )

    def finish(state: Arrays, noise: Noise) -> str:
        assert place.model is not None
        return finished_model(place.model, job, catalogue, state, noise, start).model_dump_json()

    def measured(figures: Sequence[ShopFigures]) -> None:
        write_figures(place.evaluation, job.run_name, figures)

    with reporting(place.events) as report:
        report({"event": "start", "server_round": 0 if resume is None else resume.server_round})
        federation = Federation(
            grid,
            job,
            save=lambda checkpoint: write_checkpoint(place.checkpoints, checkpoint),
            report=report,
            heads=LedgerHeads(home.heads_file),
            settle=start.settle,
            finish=None if place.model is None else finish,
            measured=measured if settings.evaluate and not place.evaluation.exists() else None,
        )
        federation.run(start.state, resume)
