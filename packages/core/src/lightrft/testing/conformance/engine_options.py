"""Requirements of an engine that passes options on to its library: what is wrong with one is told, what became of a right one is too."""

from __future__ import annotations

from typing import Any

import pytest

from lightrft.config.checks import check_engine
from lightrft.config.engine_args import options_of
from lightrft.config.load import make_config
from lightrft.config.schema import Config
from lightrft.errors import ConfigError, PluginBrokenError
from lightrft.plugins.engine_options import EngineOptions
from lightrft.testing.conformance.engine_kit import EngineKit, Record
from lightrft.testing.conformance.requirement import requirement
from lightrft.testing.engine_bench import EngineBench

OF_THE_LAUNCHER = "nproc_per_node"
OF_NO_TYPE = object()


class Options(EngineKit, kit=True):
    """`engine_args`, where the spec names `options`; an engine without them takes none."""

    @requirement("arguments")
    def test_an_unknown_option_is_refused_with_the_nearest_name(self, bench: EngineBench, record_property: Record) -> None:
        """`options`: one that the library does not have is refused by its name, and the nearest one is named"""
        options = self._options(bench, record_property)
        for name in options.example if options else ():
            said = self._refusal(bench, {f"{name}_": 1}, "an option that the library does not have")
            assert f"did you mean {name!r}?" in said, f"{name}_ is refused without the nearest name, {name!r}: {said}"

    @requirement("arguments")
    def test_an_option_that_lightrft_sets_is_refused_with_the_setting_to_use(self, bench: EngineBench, record_property: Record) -> None:
        """`options`: those that LightRFT sets, the model's folder among them, are refused, and a setting of LightRFT's is named"""
        options = self._options(bench, record_property)
        if options is None:
            return
        set_here = [name for name, value in bench.engine.arguments.items() if value == str(bench.folder)]
        free = [name for name in set_here if name not in options.ours]
        assert not free, f"the model's folder is in {', '.join(free)}, which is not among those that LightRFT sets (EngineOptions.ours)"
        for name, use in options.ours.items():
            said = self._refusal(bench, {name: 1}, "an option that LightRFT sets")
            words = [word for word in use.replace(",", " ").split() if word != "and"]
            unknown = [word for word in words if word not in Config.model_fields and word != OF_THE_LAUNCHER]
            assert not unknown, f"{said}: LightRFT has no setting {unknown[0]!r}"

    @requirement("arguments")
    def test_an_option_of_another_type_is_refused(self, bench: EngineBench, record_property: Record) -> None:
        """`options`: a value that does not have the type of its option is refused, and the type is named"""
        options = self._options(bench, record_property)
        for name in options.example if options else ():
            said = self._refusal(bench, {name: OF_NO_TYPE}, "a value of no type at all")
            assert options is not None and options.types[name] in said, f"{name} is refused without its type: {said}"

    @requirement("arguments")
    def test_what_its_library_was_built_with_is_told(self, bench: EngineBench, record_property: Record) -> None:
        """`options`: built with one, it tells it in `arguments`, as it is used, beside what LightRFT set: the whole"""
        options = self._options(bench, record_property)
        if options is None:
            return
        usual = dict(bench.engine.arguments)
        assert str(bench.folder) in usual.values(), f"arguments do not tell what LightRFT sets, such as the model's folder: {usual}"
        bench.restart(options=options.example)
        told = bench.engine.arguments
        for name, value in options.example.items():
            assert usual.get(name) != value, f"the example {name}={value!r} is the engine's own choice: nothing would be seen of it"
            assert told.get(name) == value, f"started with {name}={value!r}, the engine tells {told.get(name, 'nothing')!r} of it"
        missing = sorted(set(usual) - set(told))
        assert not missing, f"started with {options.example}, arguments no longer tell {', '.join(missing)}"

    def _options(self, bench: EngineBench, record: Record) -> EngineOptions | None:
        """None where it takes none; that any is refused is asked here."""
        if not bench.spec.options:
            self._refusal(bench, {"anything": 1}, "an option of an engine that has none")
            record("refused", "engine_args")
            return None
        try:
            options = options_of(bench.spec)
        except PluginBrokenError as error:
            raise AssertionError(str(error)) from error
        unlisted = [name for name in options.example if name not in options.types]
        assert options.example and not unlisted, (
            f"EngineOptions.example is {dict(options.example)}: name an option of the library, with a value that changes no answer; the "
            "kit starts an engine with it"
        )
        return options

    def _refusal(self, bench: EngineBench, given: dict[str, Any], what: str) -> str:
        config = make_config({"engine_type": bench.spec.name}).model_copy(update={"engine_args": given})
        try:
            check_engine(config, registry=bench.registry, world_size=1)
        except ConfigError as error:
            [said] = [problem for problem in error.problems if "engine_args" in problem] or [""]
            assert all(name in said for name in given), f"engine_args={given} is refused without the option's name: {error}"
            return said
        pytest.fail(f"engine_args={given} was accepted: {what}", pytrace=False)
