"""A run whose reward server goes away. It waits and asks again; then it ends with a sentence, and goes on from there."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.errors import RewardServerError
from lightrft.rewards.load import NamedReward
from lightrft.rewards.remote import RemoteReward, RemoteSettings
from lightrft.run.checkpoint_folder import find, saved_in
from lightrft.testing.small_trainer import make_trainer

STEPS = 4
RUN: dict[str, Any] = dict(max_steps=STEPS, num_episodes=9, n_samples_per_prompt=4, train_batch_size=8)


@contextmanager
def server(status_of: Callable[[int], int]) -> Iterator[tuple[str, list[int]]]:
    """Rewards odd lengths. `status_of(number of the request)` is what it answers with; its port is free again after the block."""
    asked: list[int] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            samples = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["samples"]
            with lock:
                asked.append(len(samples))
                status = status_of(len(asked))
            body = json.dumps({"rewards": [len(s["completion"]) % 2 for s in samples]}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}/score", asked
        finally:
            http.shutdown()
            thread.join()


def reward(url: str) -> NamedReward:
    return NamedReward(name="judge", function=RemoteReward("judge", url, RemoteSettings(timeout_s=5, retries=3, backoff_s=0.01)))


def weights(trainer: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.actor.parameters()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[torch.Tensor], int]:
    """The weights after a run whose server never failed, and how often it was asked."""
    with server(lambda number: 200) as (url, asked):
        trainer = make_trainer(tmp_path_factory.mktemp("whole"), reward=reward(url), **RUN)
        trainer.fit()
    return weights(trainer), len(asked)


def test_a_server_that_is_away_for_a_while_costs_time_only(tmp_path: Path, whole: tuple[list[torch.Tensor], int]) -> None:
    with server(lambda number: 503 if number in (3, 4, 5) else 200) as (url, asked):
        trainer = make_trainer(tmp_path, reward=reward(url), **RUN)
        assert trainer.fit()["steps"] == STEPS
    assert len(asked) == whole[1] + 3
    assert all(torch.equal(a, b) for a, b in zip(weights(trainer), whole[0], strict=True))


@pytest.mark.parametrize("how", ["answers 500 for ever", "is gone"])
def test_a_server_that_dies_ends_the_run_with_a_sentence_and_a_checkpoint_that_goes_on(
    tmp_path: Path, whole: tuple[list[torch.Tensor], int], how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    last = whole[1] // 2
    with server(lambda number: 200 if number <= last else 500) as (url, asked):
        trainer = make_trainer(tmp_path, reward=reward(url), **RUN)
        if how == "is gone":
            ask = trainer.rewards[0].function
            away = NamedReward(name="judge", function=reward("http://127.0.0.1:9/score").function)
            trainer.experience_maker.rewards[0] = NamedReward(
                name="judge", function=lambda samples: (away.function if len(asked) >= last else ask)(samples)
            )
        with pytest.raises(RewardServerError) as caught:
            trainer.fit()
    message = str(caught.value)
    assert "\n" not in message and message.startswith("reward server 'judge' (http://127.0.0.1:") and "asked 4 times" in message
    assert ("Connection refused" if how == "is gone" else "status 500") in message
    [saved] = saved_in(tmp_path / "run")
    assert 1 <= saved.step < STEPS and f"saved {saved.folder} before the run stops" in capsys.readouterr().out
    assert find("latest", run=tmp_path / "run") == saved.folder
    with server(lambda number: 200) as (url, _):
        resumed = make_trainer(tmp_path, reward=reward(url), **RUN, resume_from="latest")
        assert resumed.fit()["steps"] == STEPS
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), whole[0], strict=True)), "bit by bit the run that nothing stopped"
