"""Faults of engines that pass options on to a library: of their lists, and of what they say they were built with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kit_mutants.mutant import mutant
from lightrft.plugins.engine_options import EngineOptions
from lightrft.testing.fake_options import OURS, TYPES, OptionedEngine

UNKNOWN = "an_unknown_option_is_refused_with_the_nearest_name"
SET_HERE = "an_option_that_lightrft_sets_is_refused_with_the_setting_to_use"
TYPE = "an_option_of_another_type_is_refused"
WHOLE = "what_its_library_was_built_with_is_told"
EXAMPLE = {"max_num_seqs": 96}


class AnyName(dict[str, str]):
    """Knows every name."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> str:
        return "Any"


def any_name() -> EngineOptions:
    return EngineOptions(types=AnyName(TYPES), ours=OURS, example=EXAMPLE)


def names_of_flags() -> EngineOptions:
    return EngineOptions(types={name.replace("_", "-"): text for name, text in TYPES.items()}, ours=OURS, example=EXAMPLE)


def nothing_ours() -> EngineOptions:
    return EngineOptions(types=TYPES, ours={}, example=EXAMPLE)


def settings_of_the_library() -> EngineOptions:
    return EngineOptions(types=TYPES, ours=OURS | {"seed": "random_seed"}, example=EXAMPLE)


def classes_as_types() -> EngineOptions:
    return EngineOptions(types=TYPES | {"max_num_seqs": str(int)}, ours=OURS, example=EXAMPLE)


def no_types() -> EngineOptions:
    return EngineOptions(types=dict.fromkeys(TYPES, "Any"), ours=OURS, example=EXAMPLE)


def no_example() -> EngineOptions:
    return EngineOptions(types=TYPES, ours=OURS)


@mutant("optioned", "any option is taken, known or not", test=UNKNOWN, words="was accepted", options="any_name")
class AnyOptionTaken(OptionedEngine):
    pass


@mutant(
    "optioned", "options are listed as flags are written", test=UNKNOWN, words="name an option of the library", options="names_of_flags"
)
class NamesOfFlags(OptionedEngine):
    pass


@mutant("optioned", "its list gives the kit nothing to start with", test=WHOLE, words="EngineOptions.example is {}", options="no_example")
class NoExample(OptionedEngine):
    pass


@mutant("optioned", "what LightRFT sets may be overridden", test=SET_HERE, words="the model's folder is in model", options="nothing_ours")
class OverridesTheModel(OptionedEngine):
    pass


@mutant(
    "optioned", "names a setting that LightRFT does not have", test=SET_HERE, words="LightRFT has no setting 'random_seed'",
    options="settings_of_the_library",
)  # fmt: skip
class SettingsOfTheLibrary(OptionedEngine):
    pass


@mutant("optioned", "types are written as `<class 'int'>`", test=TYPE, words="which is no annotation", options="classes_as_types")
class ClassesAsTypes(OptionedEngine):
    pass


@mutant("optioned", "no option has a type", test=TYPE, words="was accepted: a value of no type at all", options="no_types")
class NoTypes(OptionedEngine):
    pass


@mutant("optioned", "options do not reach the library", test=WHOLE, words="started with max_num_seqs=96, the engine tells None of it")
class OptionsDropped(OptionedEngine):
    @property
    def arguments(self) -> Mapping[str, Any]:
        return {"model": self.setup.model_path, "max_num_seqs": None}


@mutant("optioned", "tells the user's options alone", test=WHOLE, words="arguments do not tell what LightRFT sets")
class TellsTheUsersAlone(OptionedEngine):
    @property
    def arguments(self) -> Mapping[str, Any]:
        return self.setup.options


@mutant("optioned", "with options, tells nothing else", test=WHOLE, words="arguments no longer tell")
class TellsOneOrTheOther(OptionedEngine):
    @property
    def arguments(self) -> Mapping[str, Any]:
        return self.setup.options or super().arguments
