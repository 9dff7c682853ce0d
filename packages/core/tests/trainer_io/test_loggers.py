"""The loggers cope with whatever metrics come; their lines hold what was logged."""

from __future__ import annotations

import io
import json
import time
import urllib.request
from pathlib import Path

import pytest

from lightrft.config import make_config
from lightrft.errors import UserError
from lightrft.run.loggers import LoggerSetup, prometheus
from lightrft.run.loggers.base import SAMPLE_COLUMNS
from lightrft.run.loggers.console import HEADER_EVERY, ConsoleLogger
from lightrft.run.loggers.jsonl import JsonlLogger

METRICS = {
    "rollout/reward": 0.5,
    "rollout/length_mean": 12.25,
    "train/grad_norm": float("nan"),
    "train/lr": 2e-4,
    "rollout/tokens_per_s": 12345.6,
}


def setup(log_dir: Path) -> LoggerSetup:
    return LoggerSetup(log_dir=log_dir, config=make_config({"eval_data": "eval.jsonl"}), total_steps=150)


def test_jsonl_has_one_object_per_step_on_disk_at_once(tmp_path: Path) -> None:
    logger = JsonlLogger(setup(tmp_path))
    logger.log(1, METRICS)
    logger.log(2, {})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]  # before close
    assert rows == [{"step": 1, **METRICS, "train/grad_norm": None}, {"step": 2}]
    logger.close()


def test_jsonl_appends(tmp_path: Path) -> None:
    for step in (1, 2):
        logger = JsonlLogger(setup(tmp_path))
        logger.log(step, {"rollout/reward": 1.0})
        logger.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_console_lines_are_aligned_and_missing_metrics_are_dashes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = ConsoleLogger(setup(tmp_path))
    logger.log(0, {"eval/reward": 0.33})
    logger.log(1, METRICS)
    logger.log(150, {})
    logger.close()
    header, *lines = capsys.readouterr().out.splitlines()
    assert {len(line) for line in lines} == {len(header)}
    at = {name: header.index(name) + len(name) for name in ("reward", "eval", "grad", "tok/s")}

    def value(line: str, name: str) -> str:
        return line[: at[name]].split()[-1]

    assert [value(line, "reward") for line in lines] == ["-", "0.500", "-"]
    assert [value(line, "eval") for line in lines] == ["0.330", "-", "-"]
    assert (value(lines[1], "grad"), value(lines[1], "tok/s")) == ("nan", "12,346")
    assert lines[2].split()[0] == "150/150"


def test_console_shows_only_what_the_settings_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [{"logprob_gap_prompts": 0}, {"kl_coef": 0.1, "eval_data": "e.jsonl"}]
    for config in map(make_config, settings):
        ConsoleLogger(LoggerSetup(log_dir=tmp_path, config=config, total_steps=1)).log(1, {})
    bare, _, full, _ = (line.split() for line in capsys.readouterr().out.splitlines())
    assert set(full) - set(bare) == {"eval", "KL", "gap"}


def test_console_has_a_column_for_each_of_several_rewards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for names in (("math",), ("math", "a_rather_long_name")):
        logger = ConsoleLogger(LoggerSetup(log_dir=tmp_path, config=make_config({}), total_steps=1, rewards=names))
        logger.log(1, {"rollout/reward": 0.5, "reward/math": 0.25, "reward/a_rather_long_name": 0.125})
    one, _, two, row = capsys.readouterr().out.splitlines()
    assert "math" not in one
    assert two.split()[:4] == ["rollout", "reward", "math", "a_rather_long_name"] and row.split()[1:4] == ["0.500", "0.250", "0.125"]
    assert len(two) == len(row)


def test_console_tells_the_time_that_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("lightrft.run.loggers.console.time.monotonic", lambda: now)
    logger = ConsoleLogger(setup(tmp_path))  # of 150 rollouts
    for step, seconds in ((100, 60.0), (101, 100.0), (101, 5.0), (102, 95.0), (150, 4800.0)):  # resumed after 100; 101 comes in two calls
        now += seconds
        logger.log(step, {})
    times = [line.split()[-2:] for line in capsys.readouterr().out.splitlines()]
    assert times == [["time", "left"], ["1:00", "-"], ["2:40", "1:21:40"], ["2:45", "1:21:40"], ["4:20", "1:20:00"], ["1:24:20", "0:00"]]


def test_console_repeats_its_header(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = ConsoleLogger(setup(tmp_path))
    for step in range(HEADER_EVERY + 1):
        logger.log(step, {})
    assert [i for i, line in enumerate(capsys.readouterr().out.splitlines()) if "reward" in line] == [0, HEADER_EVERY + 1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_console_on_a_terminal_is_one_table_in_which_a_step_has_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    logger = ConsoleLogger(setup(tmp_path))
    logger.log(7, {"rollout/reward": 0.25})
    logger.log(7, {"eval/reward": 0.75})
    logger.close()
    last = terminal.getvalue().rpartition("rollout 7/150")[2].splitlines()
    assert [line for line in last if "0.250" in line and "0.750" in line]
    assert "\x1b[?25h" in terminal.getvalue()  # the cursor is back


def test_tensorboard_has_every_metric_of_every_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra lightrft[tensorboard] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from lightrft.run.loggers.tensorboard import TensorBoardLogger

    logger = TensorBoardLogger(setup(tmp_path))
    logger.log(1, {"rollout/reward": 0.5, "train/grad_norm": float("nan")})
    logger.log(2, {"rollout/reward": 0.75})
    logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("rollout/reward")] == [(1, 0.5), (2, 0.75)]
    assert len(events.Scalars("train/grad_norm")) == 1


def test_wandb_offline_keeps_what_was_logged_and_a_resumed_run_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra lightrft[wandb] is not installed")
    from lightrft.run.loggers.wandb import WandbLogger

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (1, 2):
        logger = WandbLogger(setup(tmp_path))
        logger.log(step, {"rollout/reward": 0.125 * step})
        logger.close()
        time.sleep(1.1)  # wandb names its folders by the second
    files = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    ids = {path.stem for path in files}
    assert len(files) == 2 and len(ids) == 1 and ids == {f"run-{(tmp_path / 'wandb-id.txt').read_text()}"}
    kept = b"".join(path.read_bytes() for path in files)
    assert b"0.125" in kept and b"0.25" in kept and b"eval.jsonl" in kept, kept[-900:]


SAMPLES = [
    {"step": 1, "prompt": "1 + 1 =", "completion": "2", "answer": 2, "reward": 1.0, "num_tokens": 1, "finish_reason": "stop", "tokens": {}},
    {"step": 1, "prompt": "1 + 1 =", "completion": "eleven", "answer": None, "reward": 0.0, "num_tokens": 3, "finish_reason": "length"},
]


def test_wandb_has_a_table_of_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra lightrft[wandb] is not installed")
    from lightrft.run.loggers.wandb import WandbLogger

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(setup(tmp_path))
    logger.log(1, {"rollout/reward": 0.5})
    logger.log_samples(1, SAMPLES)
    logger.log(2, {"rollout/reward": 0.75})
    logger.close()
    (table,) = (
        json.loads(path.read_text()) for path in (tmp_path / "wandb").glob("offline-run-*/files/media/table/samples_1_*.table.json")
    )
    assert table["columns"] == [*SAMPLE_COLUMNS]
    assert table["data"] == [["1 + 1 =", "2", "2", 1.0, 1, "stop"], ["1 + 1 =", "eleven", "", 0.0, 3, "length"]]


def test_trackio_has_a_table_of_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio", reason="the extra lightrft[trackio] is not installed")
    from trackio.sqlite_storage import SQLiteStorage

    from lightrft.run.loggers.trackio import TrackioLogger

    logger = TrackioLogger(setup(tmp_path))
    logger.log(1, {"rollout/reward": 0.5})
    logger.log_samples(1, SAMPLES)
    logger.close()
    kept = SQLiteStorage.get_logs("lightrft", f"lightrft-{(tmp_path / 'trackio-id.txt').read_text()}")
    (table,) = (row["samples"] for row in kept if "samples" in row)
    assert [row["completion"] for row in table["_value"]] == ["2", "eleven"]


def test_prometheus_has_the_latest_of_each_metric_in_a_file_and_where_it_is_asked_for_on_loopback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(prometheus.PORT, "0")
    logger = prometheus.PrometheusLogger(setup(tmp_path))
    logger.log(0, {"eval/reward": 0.25})
    logger.log(1, {"rollout/reward": 0.5, "train/grad_norm": float("nan"), "reward/a-b": 1.0, "reward/a_b": float("inf")})
    text = (tmp_path / prometheus.FILE_NAME).read_text()
    with urllib.request.urlopen(f"http://127.0.0.1:{logger.port}/metrics", timeout=10) as answer:
        assert answer.read().decode() == text and answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    logger.close()
    values = dict(line.split(" ") for line in text.splitlines() if not line.startswith("#"))
    assert values == {
        'lightrft_eval_reward{run="lightrft",metric="eval/reward"}': "0.25",
        'lightrft_reward_a_b{run="lightrft",metric="reward/a-b"}': "1.0",
        'lightrft_reward_a_b{run="lightrft",metric="reward/a_b"}': "+Inf",
        'lightrft_rollout_reward{run="lightrft",metric="rollout/reward"}': "0.5",
        'lightrft_step{run="lightrft",metric="step"}': "1.0",
        'lightrft_train_grad_norm{run="lightrft",metric="train/grad_norm"}': "NaN",
    }
    assert text.count("# TYPE lightrft_reward_a_b gauge") == 1


def test_prometheus_without_a_port_listens_on_none_and_a_port_that_cannot_be_had_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(prometheus.PORT, raising=False)
    assert prometheus.PrometheusLogger(setup(tmp_path)).port is None
    for port in ("many", "70000"):
        monkeypatch.setenv(prometheus.PORT, port)
        with pytest.raises(UserError, match=f"^LIGHTRFT_PROMETHEUS_PORT='{port}': this port of 127.0.0.1 cannot be had: .*; give another"):
            prometheus.PrometheusLogger(setup(tmp_path))


def test_trackio_keeps_every_step_of_a_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio", reason="the extra lightrft[trackio] is not installed")
    from trackio.sqlite_storage import SQLiteStorage

    from lightrft.run.loggers.trackio import TrackioLogger

    for step in (1, 2):
        logger = TrackioLogger(setup(tmp_path))
        logger.log(step, {"rollout/reward": 0.125 * step, "train/grad_norm": float("nan")})
        logger.close()
    kept = SQLiteStorage.get_logs("lightrft", f"lightrft-{(tmp_path / 'trackio-id.txt').read_text()}")
    assert [(row["step"], row["rollout/reward"]) for row in kept] == [(1, 0.125), (2, 0.25)]


def test_mlflow_without_a_server_keeps_every_step_of_a_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra lightrft[mlflow] is not installed")
    from mlflow import MlflowClient

    from lightrft.run.loggers.mlflow import MlflowLogger

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for step in (1, 2):
        logger = MlflowLogger(setup(tmp_path))
        logger.log(step, {"rollout/reward": 0.125 * step, "train/grad_norm": float("nan")})
        logger.close()
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = client.get_run((tmp_path / "mlflow-id.txt").read_text())
    assert run.info.run_name == "lightrft" and run.info.status == "FINISHED" and run.data.params["eval_data"] == '["eval.jsonl"]'
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "rollout/reward")] == [(1, 0.125), (2, 0.25)]
    assert len(client.get_metric_history(run.info.run_id, "train/grad_norm")) == 2


def test_swanlab_offline_keeps_every_step_under_one_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("swanlab", reason="the extra lightrft[swanlab] is not installed")
    from lightrft.run.loggers.swanlab import SwanlabLogger

    monkeypatch.setenv("SWANLAB_MODE", "offline")
    for step in (1, 2):
        logger = SwanlabLogger(setup(tmp_path))
        logger.log(step, {"rollout/reward": 0.125 * step})
        logger.close()
        time.sleep(1.1)  # it names its folders by the second
    files = sorted((tmp_path / "swanlab").glob("run-*/run-*.swanlab"))
    assert {path.stem for path in files} == {f"run-{(tmp_path / 'swanlab-id.txt').read_text()}"} and len(files) == 2
    assert all(b"rollout/reward" in path.read_bytes() for path in files)


def test_a_logger_without_its_library_says_which_extra_brings_it() -> None:
    from lightrft.plugins.runtime import problem_with
    from lightrft.plugins.specs import Runtime

    lacking = Runtime(distributions=("no-such-tensorboard",), versions=">=2", extra="tensorboard")
    assert problem_with(lacking, distribution="lightrft").endswith("is not installed: pip install 'lightrft[tensorboard]'")


def test_an_unknown_logger_names_the_nearest() -> None:
    from lightrft.errors import PluginError
    from lightrft.testing.fake_strategy import fake_registry

    with pytest.raises(PluginError, match="unknown logger 'tensorbord'; did you mean 'tensorboard'"):
        fake_registry().entry("logger", "tensorbord")
