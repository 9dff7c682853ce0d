"""A reward server that is slow, dead or wrong costs some seconds and then one sentence, and never the run's secrets."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lightrft.config.load import make_config
from lightrft.config.reward_checks import check_rewards
from lightrft.errors import RewardError, RewardServerError
from lightrft.plugins.registry import Registry
from lightrft.rewards.load import NamedReward, load_rewards
from lightrft.rewards.remote import RemoteReward, RemoteSettings
from lightrft.rewards.score import score
from lightrft.types import Sample

EXAMPLE = Path(__file__).parents[4] / "examples" / "reward_server.py"
SAMPLES = [Sample(prompt=f"p{n}", completion="x" * n, answer="\ud800", row={"id": n, "set": {1}}, num_tokens=n) for n in range(5)]
QUICK = RemoteSettings(timeout_s=0.5, retries=2, backoff_s=0.01, batch_size=2, concurrency=2)
Answer = Callable[["Server", BaseHTTPRequestHandler, dict[str, Any]], None]


class Server:
    """What it was asked, how many at a time, and where it is."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.url = ""

    def enter(self) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def leave(self) -> None:
        with self.lock:
            self.now -= 1


def lengths(server: Server, handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
    send(handler, 200, json.dumps({"rewards": [len(s["completion"]) for s in request["samples"]]}))


def send(handler: BaseHTTPRequestHandler, status: int, text: str, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(text.encode())))
    handler.end_headers()
    handler.wfile.write(text.encode())


@contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.requests.append(request)
                server.headers.append(dict(self.headers))
            with suppress(OSError):  # the asker went away
                answer(server, self, request)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass

    with Quiet(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_address[1]}/score"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


def failure(answer: Answer, *, settings: RemoteSettings = QUICK) -> tuple[str, Server]:
    """The sentence with which asking ends; it is one line, names the reward, and took a bounded time."""
    began = time.monotonic()
    with serving(answer) as server, pytest.raises(RewardServerError) as caught:
        RemoteReward("judge", server.url, settings)(SAMPLES[:2])
    text = str(caught.value)
    assert text.startswith(f"reward server 'judge' ({server.url}) gave no rewards for 2 samples, asked ") and "\n" not in text
    assert time.monotonic() - began < 20
    return text, server


def replying(status: int, text: str, **headers: str) -> Answer:
    return lambda server, handler, request: send(handler, status, text, **headers)


def test_batches_in_order_with_bounded_concurrency() -> None:
    def slowly(server: Server, handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        server.enter()
        time.sleep(0.05 if len(server.requests) % 2 else 0.15)
        server.leave()  # before the answer, after which the next request may come
        lengths(server, handler, request)

    many = [SAMPLES[n % 5] for n in range(21)]
    with serving(slowly) as server:
        settings = RemoteSettings(batch_size=2, concurrency=3, timeout_s=10)
        assert RemoteReward("judge", server.url, settings)(many) == [float(n % 5) for n in range(21)]
        assert len(server.requests) == 11 and 2 <= server.most <= 3
        assert RemoteReward("judge", server.url, settings)([]) == [] and len(server.requests) == 11
    first = server.requests[0]
    fields = {"prompt", "completion", "raw_completion", "answer", "answers", "finish_reason", "num_tokens", "row"}
    assert first["protocol"] == 1 and set(first["samples"][0]) == fields


def test_null_is_a_reward_that_does_not_apply() -> None:
    with serving(replying(200, '{"rewards": [null, 0.5]}')) as server:
        reward = RemoteReward("judge", server.url, RemoteSettings(batch_size=2))
        assert reward(SAMPLES[:4]) == [None, 0.5, None, 0.5]
        scores = score(SAMPLES[:2], rewards=[NamedReward(name="judge", function=reward, weight=2.0)])
    assert scores.total == [0.0, 1.0] and scores.parts == {"judge": [None, 0.5]}


def test_a_server_that_recovers_is_asked_again() -> None:
    def at_first_down(server: Server, handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        if len(server.requests) < 3:
            send(handler, 503, "warming up", Retry_After="0")
        else:
            lengths(server, handler, request)

    with serving(at_first_down) as server:
        assert RemoteReward("judge", server.url, QUICK)(SAMPLES[:2]) == [0.0, 1.0] and len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "words", "times"),
    [
        (replying(500, "boom"), "status 500, 'boom'", 3),
        (replying(429, "later", Retry_After="0"), "status 429, 'later'", 3),
        (replying(200, "<html>"), "its reply is not JSON: '<html>'", 3),
        (replying(200, "[" * 60000), "its reply is not JSON: '[[[", 3),
        (replying(200, "[1, 2]"), "its reply is no object with a list 'rewards': '[1, 2]'", 3),
        (replying(200, '{"rewards": [1]}'), "it returned 1 rewards for 2 samples", 3),
        (replying(200, '{"rewards": [1, NaN]}'), "its reward 1 is nan, expected a finite number", 3),
        (replying(200, '{"rewards": [1, 1e999]}'), "its reward 1 is inf", 3),
        (replying(200, '{"rewards": ["1", 2]}'), "its reward 0 is '1'", 3),
        (replying(200, '{"rewards": [1, {}]}'), "its reward 1 is {}, expected a finite number, or null where it does not apply", 3),
        (replying(200, '{"rewards": [true, 1]}'), "its reward 0 is True", 3),
        (replying(200, '{"rewards": [1, ' + "9" * 400 + "]}"), "its reward 1 is 999", 3),
        (replying(302, "", Location="http://127.0.0.1:9/"), "it redirects (status 302), which is refused", 1),
        (replying(404, "no"), "status 404, 'no'", 1),
        (replying(401, "who?"), "status 401", 1),
    ],
)
def test_what_is_no_reply_is_asked_again_where_that_may_help_and_then_told(answer: Answer, words: str, times: int) -> None:
    text, server = failure(answer)
    assert words in text and f"asked {times} times" in text and len(server.requests) == times


def test_a_slow_server_and_one_that_drips_are_given_up_in_time() -> None:
    def hangs(server: Server, handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        time.sleep(1.5)

    def drips(server: Server, handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(30):
            handler.wfile.write(b" ")
            time.sleep(0.1)

    for answer in (hangs, drips):
        began = time.monotonic()
        text, _ = failure(answer, settings=RemoteSettings(timeout_s=0.4, retries=1, backoff_s=0.01))
        assert "no whole reply within 0.4 s (reward_timeout_s)" in text
        assert time.monotonic() - began < 6


def test_a_huge_reply_is_not_read() -> None:
    sent = 0

    def endless(server: Server, handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        while True:
            sent += handler.wfile.write(b"x" * 65536)

    text, _ = failure(endless, settings=RemoteSettings(timeout_s=10, retries=0))
    assert "its reply is longer than 66048 bytes" in text and sent < 64 << 20


def test_a_connection_that_breaks_within_the_reply() -> None:
    def breaks(server: Server, handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b'{"rewards": [1, 2]}')

    assert "the connection broke within its reply" in failure(breaks)[0]


def test_a_dead_server() -> None:
    with serving(lengths) as server:
        url = server.url
    with pytest.raises(RewardServerError, match=r"asked 3 times in .* s: ConnectionRefusedError: "):
        RemoteReward("judge", url, QUICK)(SAMPLES[:2])


def test_when_one_batch_fails_the_others_are_not_asked_for() -> None:
    with serving(replying(404, "no")) as server, pytest.raises(RewardServerError):
        RemoteReward("judge", server.url, RemoteSettings(batch_size=1, concurrency=2))([SAMPLES[0]] * 200)
    assert len(server.requests) < 100


def test_the_header_comes_from_the_environment_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def echoes(server: Server, handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        send(handler, 403, "refused: " + handler.headers["Authorization"])

    monkeypatch.setenv("JUDGE", "Bearer s3cret")
    settings = RemoteSettings(timeout_s=5, auth_env="JUDGE")
    with serving(lengths) as server:
        RemoteReward("judge", server.url, settings)(SAMPLES[:2])
        assert server.headers[0]["Authorization"] == "Bearer s3cret"
        RemoteReward("judge", server.url, QUICK)(SAMPLES[:2])
        assert "Authorization" not in server.headers[1]
    text, _ = failure(echoes, settings=settings)
    assert "s3cret" not in text and "***" in text and "s3cret" not in repr(RemoteReward("judge", "http://h/", settings))
    monkeypatch.setenv("JUDGE", "Bearer\nX-Evil: 1")
    with pytest.raises(RewardError, match="JUDGE"):
        RemoteReward("judge", "http://127.0.0.1:9/", settings)(SAMPLES)


def test_asking_leaves_the_random_state_alone() -> None:
    random.seed(3)
    expected = random.random()
    random.seed(3)
    failure(replying(500, "boom"))
    assert random.random() == expected


def test_a_server_beside_a_function_in_a_weighted_sum() -> None:
    with serving(lengths) as server:
        rewards = load_rewards([f"judge=http://{server.url[7:]}", "format"], weights=[0.5, 1.0], registry=Registry.discover(), remote=QUICK)
        found = score(SAMPLES, rewards=rewards)
    assert found.total == [0.0, 0.5, 1.0, 1.5, 2.0] and list(found.parts) == ["judge", "format"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reward": ["http://user:pw@h/"]}, "no user or password in an address"),
        ({"reward": ["j=http:///x"]}, "names no host"),
        ({"reward": ["http://h:99999/"]}, "is no address: Port out of range"),
        ({"reward": ["http://h/ x"]}, "is no address: it has spaces"),
        ({"reward": ["a b=http://h/"]}, "the name before = may have"),
        ({"reward": ["format"], "reward_retries": 2}, "reward_retries=2 has no effect without a reward server"),
        (
            {"reward": ["http://h/"], "reward_auth_env": "NO_SUCH_VARIABLE"},
            "'NO_SUCH_VARIABLE': no such environment variable",
        ),
    ],
)
def test_what_cannot_be_asked_is_told_at_start(settings: dict[str, Any], words: str) -> None:
    [problem] = check_rewards(make_config(settings), registry=Registry.discover())
    assert words in problem and "pw" not in problem


def test_a_good_address_has_no_problem() -> None:
    config = make_config({"reward": ["judge=https://h.example:8443/v1/score?x=1", "http://[::1]:80/"]})
    assert list(check_rewards(config, registry=Registry.discover())) == []


def test_two_servers_need_two_names() -> None:
    with pytest.raises(RewardError, match="two rewards are called 'h/a'; give them names of their own"):
        load_rewards(["http://h/a?1", "http://h/a?2"], weights=[], registry=Registry.discover())


def test_the_example_server_keeps_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE", "Bearer s3cret")
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLE), "--port", "0", "--auth_env", "JUDGE"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        long = Sample(prompt="p", completion="word " * 51)
        assert RemoteReward("r", url, RemoteSettings(auth_env="JUDGE"))([*SAMPLES, long]) == [1.0] * 5 + [0.0]
        with pytest.raises(RewardServerError, match="status 401"):
            RemoteReward("r", url, QUICK)(SAMPLES)
    finally:
        process.kill()
        process.wait()
