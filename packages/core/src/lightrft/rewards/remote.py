"""Rewards from a server: samples in batches over HTTP, several at a time, asked again when it fails, never for ever.

The protocol is in docs/rewards.md. Only the standard library: the requests are few and large, and threads wait as well as coroutines.
"""

from __future__ import annotations

import json
import math
import os
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from lightrft.errors import RewardError, RewardServerError
from lightrft.rewards.http_post import HttpFault, Reply, post
from lightrft.types import Sample

PROTOCOL = 1
LONGEST_WAIT_S = 30.0
REPLY_BYTES = 64 << 10
REPLY_BYTES_PER_SAMPLE = 256
"""A longer reply is not read to its end."""
ASK_AGAIN = (408, 425, 429)
"""Client errors that may go away, beside all of 500 and above."""


@dataclass(frozen=True, kw_only=True)
class RemoteSettings:
    """`timeout_s` for one request, from connecting to the last byte; `retries` after the first; `concurrency` requests at a time.

    `auth_env` names the environment variable with the value of the Authorization header; empty: none is sent.
    """

    timeout_s: float = 60.0
    retries: int = 5
    concurrency: int = 8
    batch_size: int = 32
    backoff_s: float = 1.0
    auth_env: str = ""


@dataclass
class RemoteReward:
    """A reward function that asks a server. May run in any thread; the global random state is not touched."""

    name: str
    url: str
    settings: RemoteSettings = field(default_factory=RemoteSettings)

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        """A number for each sample, in order; None where the server says null: its reward does not apply there.

        Raises:
            RewardServerError: a batch got none, after all retries; the requests of the other batches end first.
        """
        size = self.settings.batch_size
        batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        if not batches:
            return []
        headers = self._headers()
        stopped = threading.Event()
        with ThreadPoolExecutor(min(self.settings.concurrency, len(batches)), thread_name_prefix="reward") as pool:
            futures = [pool.submit(self._batch, batch, headers, stopped) for batch in batches]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            errors = [error for future in done if (error := future.exception()) is not None]
            if errors:
                stopped.set()
                pool.shutdown(cancel_futures=True)
                raise errors[0]
        return [number for future in futures for number in future.result()]

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity", "Connection": "close"}
        if self.settings.auth_env:
            value = os.environ.get(self.settings.auth_env, "")
            if not value or not value.isprintable() or not value.isascii():
                raise RewardError(
                    f"reward {self.name!r}: the environment variable {self.settings.auth_env} (reward_auth_env) holds no header"
                )
            headers["Authorization"] = value
        return headers

    def _batch(self, samples: Sequence[Sample], headers: dict[str, str], stopped: threading.Event) -> list[float | None]:
        body = _request(samples)
        began = time.monotonic()
        faults: list[str] = []
        for attempt in range(1 + self.settings.retries):
            try:
                limit = REPLY_BYTES + REPLY_BYTES_PER_SAMPLE * len(samples)
                return _rewards(post(self.url, body, headers=headers, timeout_s=self.settings.timeout_s, max_bytes=limit), len(samples))
            except HttpFault as fault:
                faults.append(self._without_secret(str(fault)))
                if fault.final or attempt == self.settings.retries or stopped.wait(self._pause(attempt, fault.wait_s)):
                    break
        address = self.url.partition("?")[0]  # what stands behind it may be a key
        raise RewardServerError(
            f"reward server {self.name!r} ({address}) gave no rewards for {len(samples)} samples, asked {len(faults)} times "
            f"in {time.monotonic() - began:.1f} s: {faults[-1]}; see to the server, or raise reward_retries or reward_timeout_s"
        )

    def _pause(self, attempt: int, asked_s: float) -> float:
        """Doubled each time, with jitter, so that ranks do not come back together; or what the server asks for."""
        pause = self.settings.backoff_s * 2.0**attempt * random.SystemRandom().uniform(0.5, 1.5)
        return min(max(pause, asked_s), LONGEST_WAIT_S)

    def _without_secret(self, text: str) -> str:
        secret = os.environ.get(self.settings.auth_env, "") if self.settings.auth_env else ""
        for part in sorted({secret, secret.rpartition(" ")[2]} - {""}, key=len, reverse=True):
            text = text.replace(part, "***")
        return text


def _request(samples: Sequence[Sample]) -> bytes:
    rows = [
        {
            "prompt": s.prompt,
            "completion": s.completion,
            "answer": s.answer,
            "answers": list(s.accepted),
            "raw_completion": s.raw_completion,
            "finish_reason": s.finish_reason,
            "num_tokens": s.num_tokens,
            "row": dict(s.row),
        }
        for s in samples
    ]
    # Lone surrogates, which a tokenizer may decode to, are not UTF-8; escapes are.
    return json.dumps({"protocol": PROTOCOL, "samples": rows}, default=str).encode("ascii")


def _rewards(reply: Reply, count: int) -> list[float | None]:
    """The numbers of a reply, None for null. Raises HttpFault where it has none."""
    shown = reply.body[:80].decode("utf-8", "replace")
    if 300 <= reply.status < 400:
        raise HttpFault(f"it redirects (status {reply.status}), which is refused: give the address itself", final=True)
    if reply.status != 200:
        final = reply.status < 500 and reply.status not in ASK_AGAIN
        raise HttpFault(f"status {reply.status}, {shown!r}", final=final, wait_s=reply.retry_after_s)
    try:
        found: Any = json.loads(reply.body)
    except (ValueError, RecursionError):
        raise HttpFault(f"its reply is not JSON: {shown!r}") from None
    values = found.get("rewards") if isinstance(found, dict) else None
    if not isinstance(values, list):
        raise HttpFault(f"its reply is no object with a list 'rewards': {shown!r}")
    if len(values) != count:
        raise HttpFault(f"it returned {len(values)} rewards for {count} samples")
    for index, value in enumerate(values):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(_as_float(value)):
            raise HttpFault(f"its reward {index} is {value!r:.60}, expected a finite number, or null where it does not apply")
    return [None if value is None else float(value) for value in values]


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
