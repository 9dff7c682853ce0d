"""Metrics for MLflow, under their names; `MLFLOW_TRACKING_URI` and the other variables are MLflow's own."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping

from lightrft.run.loggers.base import LoggerSetup, run_name, say_it_keeps

ID_FILE = "mlflow-id.txt"
"""In the log folder: a run that is resumed goes on as the same one."""

DATABASE = "mlflow.db"
LONGEST = 6000
"""Characters of a parameter that MLflow takes."""

AT_ONCE = 100
"""Parameters that it takes in one call."""


class MlflowLogger:
    """Without `MLFLOW_TRACKING_URI` into a database `mlflow.db` of the log folder (`mlflow ui --backend-store-uri sqlite:///...` shows it).
    The experiment is `MLFLOW_EXPERIMENT_NAME`, else `lightrft`; the run is named by its folder. The settings are its parameters, as they
    were when it was first started.
    """

    def __init__(self, setup: LoggerSetup) -> None:
        from mlflow import MlflowClient

        folder = setup.log_dir.absolute()
        server = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(tracking_uri=server or f"sqlite:///{folder / DATABASE}")
        path = setup.log_dir / ID_FILE
        if not path.exists():
            path.write_text(
                self._new_run(run_name(setup), artifacts=None if server else (folder / "mlflow-artifacts").as_uri()), encoding="utf-8"
            )
        self._run = path.read_text(encoding="utf-8").strip()
        self._client.update_run(self._run, status="RUNNING")
        self._log_settings(setup.config.model_dump())

    def _new_run(self, name: str, *, artifacts: str | None) -> str:
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "lightrft")
        known = self._client.get_experiment_by_name(title)
        experiment = known.experiment_id if known else self._client.create_experiment(title, artifact_location=artifacts)
        run_id: str = self._client.create_run(experiment, run_name=name).info.run_id
        return run_id

    def _log_settings(self, settings: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        known = self._client.get_run(self._run).data.params  # MLflow takes no other value for one
        new = [Param(key, json.dumps(value, default=str)[:LONGEST]) for key, value in settings.items() if key not in known]
        for first in range(0, len(new), AT_ONCE):
            self._client.log_batch(self._run, params=new[first : first + AT_ONCE])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(name, value, now, step) for name, value in metrics.items()])

    def rewind(self, step: int) -> None:
        say_it_keeps("MLflow", step)

    def close(self) -> None:
        self._client.set_terminated(self._run)
