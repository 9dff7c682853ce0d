"""The errors that a caller can act on. Each message is one line: what was asked, what was found, what is possible."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class LightRFTError(Exception):
    """Base of everything that this library raises on purpose: a line for each problem, with what was asked, found and is possible.

    `section`: that of docs/troubleshooting.md which is about it. The kinds of it are in `lightrft.errors`.

    Example::

        import lightrft

        try:
            lightrft.make_config({"learning_rat": 1e-5, "top_p": 2})
        except lightrft.LightRFTError as error:
            print(error)
    """

    section: str = "a-rank-fails"


class UserError(LightRFTError):
    """Something that the user gave is wrong; commands print it without a traceback and exit with 2."""

    section = "settings-flags-and-files"


class Problem(str):
    """A line about something that is wrong, and the section of the documentation that is about such."""

    section: str

    def __new__(cls, line: str, *, section: str) -> Problem:
        made = super().__new__(cls, line)
        made.section = section
        return made

    @classmethod
    def each(cls, lines: Iterable[str], *, of: type[UserError]) -> list[str]:
        """Each line as a problem of that kind of error."""
        return [cls(line, section=of.section) for line in lines]


class ConfigError(UserError):
    """The configuration cannot be run; holds every problem found, one line each. `section`: of them all, where they have the same one."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))
        sections = {getattr(problem, "section", ConfigError.section) for problem in self.problems}
        self.section = sections.pop() if len(sections) == 1 else ConfigError.section


class PluginError(UserError):
    """A plugin that was asked for cannot be had."""

    section = "an-engine-or-a-strategy-is-missing"


class PluginNotInstalledError(PluginError):
    """No installed distribution provides it; the message says what to install."""


class PluginBrokenError(PluginError):
    """A distribution provides it but fails to import; the original exception is chained."""


class PluginApiError(PluginError):
    """It was written for another plugin API number; the message says which side to upgrade."""


class PluginRuntimeError(PluginError):
    """The library that it drives is not installed, or in a version that it does not support."""


class PluginConflictError(PluginError):
    """Two distributions provide the same name."""


class CapabilityError(UserError):
    """The chosen plugin does not declare what a setting needs."""

    section = "a-plugin-cannot-do-it"


class DataError(UserError):
    """A data file, a column or a row is not usable. One line, whatever stands in the names that it quotes."""

    section = "a-row-cannot-be-read"

    def __init__(self, text: str) -> None:
        super().__init__(text.replace("\r", "\\r").replace("\n", "\\n"))


class ModelError(UserError):
    """A model folder or tokenizer is missing or incomplete."""

    section = "a-model-cannot-be-read"


class RewardError(UserError):
    """A reward function raised or returned something that is not one finite number for each sample.

    `retried`: it was asked several times before, so asking again is no use.
    """

    section = "a-reward-fails"

    retried: bool = False


class RewardServerError(RewardError):
    """A reward server gave no rewards, after all retries."""

    retried = True


class CodePermissionError(RewardError):
    """A reward or a tool would run programs that the model wrote, and `allow_code_execution` is off."""


class SandboxError(RewardError):
    """This system does not give the sandbox in which programs of a model run."""


class EpisodeError(UserError):
    """The environment of a run cannot be loaded, or failed in every episode of a rollout."""

    section = "an-environment-fails"


class RunFolderError(UserError):
    """The output folder cannot be written to or holds another run."""

    section = "a-folder-of-a-run"


class CheckpointError(UserError):
    """A checkpoint is missing, incomplete or of another model."""

    section = "a-resume-is-refused"


class StoppedByWarning(UserError):
    """The run gave a warning, and `on_warning` says to stop then."""

    section = "stopped-by-a-warning"


class StrategyStateError(LightRFTError):
    """The call is not allowed now: no engine set up, or a step while the optimizer is offloaded."""

    section = "calls-in-the-wrong-order"


class DeviceMemoryError(LightRFTError):
    """A phase ran out of the device's memory."""

    section = "out-of-memory"


class EngineError(LightRFTError):
    """The inference engine failed."""

    section = "the-engine-fails"


class EngineStateError(EngineError):
    """The call is not allowed in the engine's present state."""

    section = "calls-in-the-wrong-order"


class WeightSyncError(EngineError):
    """The engine does not hold the actor's weights after a sync, or refused them."""

    section = "a-sync-that-is-not-verified"


class MismatchError(EngineError):
    """Engine and trainer disagree on log-probabilities beyond the threshold."""

    section = "the-log-prob-gap"


class ImageError(LightRFTError):
    """Images of prompts do not reach the trainer or the engine as they should."""

    section = "images-do-not-arrive"


class HangError(LightRFTError):
    """A rank has not moved for longer than its phase's limit; the message names it."""

    section = "the-run-hangs"


class PeerError(LightRFTError):
    """Another rank failed in a step that all ranks take together; the message carries its error."""


def see(section: str) -> str:
    """The end of a printed error: where the documentation says more.

    Example:
        >>> see(CheckpointError.section)
        '(docs: troubleshooting#a-resume-is-refused)'
    """
    return f"(docs: troubleshooting#{section})"


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest known name, or an empty string."""
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
