"""Environments of OpenEnv, at a server of theirs: each observation is a turn of the user, and the model's turn the action. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lightrft.rollout.environment import Continue, End, Environment, Step, Turn


class OpenEnvTexts(Environment):
    """Plays one session at the server `url`, which a subclass names; it also says what actions and observations are.

    An action is an object whose field `action_key` is the turn's text; of an observation the model reads the text in its field
    `observation_key` (the run needs `apply_chat_template`). The rewards of all steps add up, none counts 0. Columns of the data: `seed` (a
    whole number, so that all episodes of a row begin the same), and, where they are needed, `options`, a mapping of further arguments of
    the environment's reset.

    Example::

        >>> import lightrft
        >>> class Coding(lightrft.OpenEnvTexts):
        ...     url, action_key, observation_key = "http://127.0.0.1:8000", "code", "stdout"
        >>> Coding().text({"stdout": "7", "exit_code": 0})
        '7'
    """

    url: ClassVar[str] = ""
    action_key: ClassVar[str] = "message"
    observation_key: ClassVar[str] = ""

    def __init__(self) -> None:
        self._client: Any = None

    def client(self) -> Any:
        """What the session is played with: an asynchronous client of OpenEnv, not connected yet.

        Raises:
            ValueError: the class has no `url`.
        """
        from openenv.core import GenericEnvClient  # an extra

        if not self.url:
            raise ValueError(f"{type(self).__name__} names no server; set its url (http://host:port)")
        return GenericEnvClient(base_url=self.url, message_timeout_s=NO_LIMIT_S)

    def text(self, observation: Mapping[str, Any]) -> str:
        """An observation as the model reads it. Raises ValueError where it has no such text."""
        found = observation.get(self.observation_key)
        if not isinstance(found, str):
            names = ", ".join(sorted(name for name, value in observation.items() if isinstance(value, str))) or "none"
            raise ValueError(
                f"an observation has no text {self.observation_key!r}; set observation_key of {type(self).__name__} to one of its texts "
                f"({names}), or say in text() what the model reads"
            )
        return found

    def action(self, turn: Turn) -> Mapping[str, Any]:
        """The action of a turn: its text, without space around it, in the field `action_key`."""
        return {self.action_key: turn.text.strip()}

    async def start(self, row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        seed, options = row.get("seed"), row.get("options") or {}
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ValueError(f"a row needs a column seed with a whole number, found {seed!r:.60}: all episodes of a row begin the same")
        if not isinstance(options, Mapping):
            raise ValueError(f"the column options is {options!r:.60}, not a mapping of names to values")
        self._client = self.client()
        await self._client.connect()
        result = await self._client.reset(**{**options, "seed": seed})
        return [{"role": "user", "content": self.text(result.observation)}]

    async def step(self, turn: Turn) -> Step:
        result = await self._client.step(dict(self.action(turn)))
        reward = float(result.reward or 0.0)
        if result.done:
            return End(reward=reward)
        return Continue(messages=[{"role": "user", "content": self.text(result.observation)}], reward=reward)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()


NO_LIMIT_S = 86_400.0
"""Of the client: `environment_timeout_s` is the limit of a call."""
