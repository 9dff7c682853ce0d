"""Environments of `gymnasium` whose observations are texts: each is a turn of the user, and the model's turn the action. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightrft.rollout.environment import Continue, End, Environment, Step, Turn


class GymnasiumTexts(Environment):
    """Plays `gymnasium.make(row["env"], **row["env_args"])`, or what a subclass makes: an object with `reset`, `step` and `close`.

    Each observation is a message of the user (the run needs `apply_chat_template`), each turn of the model an action; the rewards of all
    steps add up. The episode ends where the environment terminates or truncates it. Columns of the data: `env`, `seed` (a whole number, so
    that all episodes of a row begin the same), and, where they are needed, `env_args` and `options` (of `reset`), mappings.

    A subclass may say what observations and actions are as text, and make environments that `gymnasium` does not know by name.

    Example::

        >>> import lightrft
        >>> class Echo:
        ...     def reset(self, *, seed, options):
        ...         return "Say x.", {}
        ...     def step(self, action):
        ...         return "Good.", 1.0, action == "x", False, {}
        ...     def close(self):
        ...         pass
        >>> class Echoes(lightrft.GymnasiumTexts):
        ...     def make(self, row):
        ...         return Echo()
        >>> Echoes().start({"seed": 0})
        [{'role': 'user', 'content': 'Say x.'}]
    """

    def __init__(self) -> None:
        self._env: Any = None

    def make(self, row: Mapping[str, Any]) -> Any:
        """The environment of a row.

        Raises:
            ValueError: no column `env`, or one that would import a module (`module:Name-v0`): import it in the file of a subclass.
        """
        import gymnasium  # an extra

        name = row.get("env")
        if not isinstance(name, str) or not name or ":" in name:
            raise ValueError(f"a row needs a column env with the name of a registered environment, without a module, found {name!r:.60}")
        return gymnasium.make(name, disable_env_checker=True, **_mapping(row, "env_args"))

    def text(self, observation: Any) -> str:
        """An observation as the model reads it. Raises ValueError for what is no str."""
        if not isinstance(observation, str):
            raise ValueError(
                f"the observation is {observation!r:.60}, a {type(observation).__name__}, not a str; say in text() of a subclass what it is"
            )
        return observation

    def action(self, turn: Turn) -> Any:
        """The action of a turn: its text, without space around it."""
        return turn.text.strip()

    def start(self, row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        seed = row.get("seed")
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ValueError(f"a row needs a column seed with a whole number, found {seed!r:.60}: all episodes of a row begin the same")
        self._env = self.make(row)
        observation, _ = self._env.reset(seed=seed, options=_mapping(row, "options"))
        return [{"role": "user", "content": self.text(observation)}]

    def step(self, turn: Turn) -> Step:
        observation, reward, terminated, truncated, info = self._env.step(self.action(turn))
        if terminated or truncated:
            return End(reward=float(reward), info=dict(info))
        return Continue(messages=[{"role": "user", "content": self.text(observation)}], reward=float(reward), info=dict(info))

    def close(self) -> None:
        if self._env is not None:
            self._env.close()


def _mapping(row: Mapping[str, Any], column: str) -> dict[str, Any]:
    value = row.get(column) or {}
    if not isinstance(value, Mapping):
        raise ValueError(f"the column {column} is {value!r:.60}, not a mapping of names to values")
    return dict(value)
