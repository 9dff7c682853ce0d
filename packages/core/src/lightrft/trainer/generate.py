"""`lightrft.generate`: completions of prompts by the engine, from Python."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightrft.config.checks import check_engine
from lightrft.config.hang_limits import hang_limits
from lightrft.config.load import make_config
from lightrft.config.schema import Config
from lightrft.data.prompts import Prompt
from lightrft.distributed.collectives import gather_objects
from lightrft.distributed.consensus import together
from lightrft.distributed.watchdog import watching
from lightrft.errors import DataError
from lightrft.experience.images import PromptImages
from lightrft.experience.samples import samples_of
from lightrft.experience.sampling import greedy_params, sampling_params
from lightrft.models.load import load_tokenizer
from lightrft.plugins.registry import Registry
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.trainer.given import Rows, rows_of, write_rows
from lightrft.trainer.model_folders import folder_problems
from lightrft.trainer.preflight import raise_all
from lightrft.trainer.prompts import image_reader, prompt_set
from lightrft.types import Sample


def generate(
    config: Config | Mapping[str, Any], prompts: Rows, *, greedy: bool = False, registry: Registry | None = None
) -> list[list[Sample]]:
    """Completions of each prompt, in the order of the prompts, the same list on every rank. Every rank of the world calls it.

    `prompts` are rows as for `train`: texts, or mappings with the column `input_key` (text, chat messages, token ids). They are made into
    what the model reads by the same settings as in a run (`prompt_template`, `apply_chat_template`, `prompt_max_len` ...), and drawn as
    in a rollout: `n_samples_per_prompt` completions (1, where a mapping leaves it out), `temperature`, `generate_max_len` ... `greedy`
    gives the likeliest.

    Raises:
        ConfigError: settings that cannot work, the model's folder among them.
        DataError: a row that is no prompt, or has more than `prompt_max_len` tokens.

    Example::

        import lightrft

        settings = {"model_name_or_path": "model", "strategy": "single", "engine_type": "hf", "generate_max_len": 16}
        for [sample] in lightrft.generate(settings, ["6 x 7 =", "40 + 2 ="], greedy=True):
            print(sample.prompt, sample.completion)
    """
    if not isinstance(config, Config):
        config = make_config({"n_samples_per_prompt": 1, **config})
    rows = rows_of("prompts", prompts, config)
    strategy = get_strategy(config, registry=registry)
    world = strategy.world
    check_engine(config, registry=strategy.registry, world_size=world.world_size, device_type=world.device.type)
    together(world, "checking the model's folder", lambda: raise_all(folder_problems(config, dequantises=False)))
    with watching(world, hang_limits(config)):
        tokenizer = load_tokenizer(config.model_name_or_path, trust_remote_code=config.trust_remote_code)
        read = _prompts(config, rows, tokenizer, registry=strategy.registry)
        strategy.setup_inference_engine(config, engine_type=config.engine_type)
        found = _sampled(read, strategy, config, tokenizer, greedy=greedy)
    strategy.shutdown()
    return found


def _prompts(config: Config, rows: list[Mapping[str, Any]], tokenizer: Any, *, registry: Registry) -> list[Prompt]:
    """Each row as the model reads it. Local; every rank makes the same."""
    labelled = any(row.get(config.label_key) is not None for row in rows)
    config = config.model_copy(update={} if labelled else {"label_key": ""})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        write_rows(path, rows)
        try:
            found = prompt_set(config, str(path), tokenizer=tokenizer, registry=registry)
        except DataError as error:
            raise DataError(str(error).replace(str(path), "prompts")) from None
    if found.num_too_long:
        kept = {prompt.index for prompt in found.prompts}
        first = next(index for index in range(len(rows)) if index not in kept)
        raise DataError(
            f"prompts[{first}] has more than prompt_max_len={config.prompt_max_len} tokens ({found.num_too_long} of {len(rows)} have); "
            "shorten it, or raise prompt_max_len"
        )
    return found.prompts


def _sampled(prompts: list[Prompt], strategy: StrategyBase, config: Config, tokenizer: Any, *, greedy: bool) -> list[list[Sample]]:
    """Each rank asks for every world-size-th prompt; all get all. Collective."""
    world = strategy.world
    mine = prompts[world.rank :: world.world_size]
    reader = image_reader(config, prompts, model_path=config.model_name_or_path)
    read = PromptImages(reader, world=world, max_pixels=config.max_image_pixels, longest=config.prompt_max_len).read(mine)
    params = replace(greedy_params(config) if greedy else sampling_params(config), seed=config.seed)
    outputs = strategy.gather_and_generate(sampling_params=params, **read.asked, sleep_engine=False)
    samples = samples_of(mine, outputs, tokenizer=tokenizer, pictures=read.pictures)
    groups = [samples[start : start + params.n] for start in range(0, len(samples), params.n)]
    ranks = gather_objects(groups, group=world.group)
    return [ranks[at % world.world_size][at // world.world_size] for at in range(len(prompts))]
