"""The model that a run starts from: one that is loaded, or made on the spot, and perhaps warmed up on target texts. Rank 0 only."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from lightrft.config.column_names import value_at
from lightrft.config.data_sources import prompt_sources
from lightrft.config.eval_files import eval_files
from lightrft.config.schema import Config
from lightrft.data.columns import answers_at
from lightrft.data.prompts import Prompt, PromptSet
from lightrft.data.rows import load_rows
from lightrft.engine.hf_generate import generate, truncate_by
from lightrft.engine.quiet import no_progress_bars, without_deepspeed
from lightrft.engine.stop_tokens import folder_stop_tokens
from lightrft.errors import DataError, ModelError
from lightrft.experience.images import PromptImages
from lightrft.experience.samples import samples_of
from lightrft.experience.sampling import eval_greedy_params
from lightrft.models.dequantise import dequantise, is_quantised
from lightrft.models.load import load_causal_lm, load_tokenizer, local_folder
from lightrft.models.scratch import bpe_tokenizer, char_tokenizer, scratch_model
from lightrft.plugins.registry import Registry
from lightrft.rewards.load import NamedReward, rewards_of
from lightrft.rewards.score import score
from lightrft.strategy.source_folder import source_folder
from lightrft.trainer.prompts import alone_images, prompt_set, target_end
from lightrft.trainer.warmup import Example, WarmupSettings, warm_up
from lightrft.types import Request

Log = Callable[[str], None]


def prepare_base_model(config: Config, *, folder: Path, registry: Registry, log: Log) -> Path:
    """The path of the run's base model: `model_name_or_path` as it is, or `folder`, where a model that was dequantised, made or warmed up
    is saved.

    For one process alone; it uses the threads of all ranks of this machine (or this rank's GPU) while the others wait.

    Raises:
        DataError, ModelError, RewardError: the data, the model to load or a reward cannot be used.
    """
    loads = config.scratch_tokenizer == "none"
    path = _plain(config.model_name_or_path, folder=folder, log=log) if loads else folder
    if loads and not config.sft_steps:
        return path
    with _all_threads():
        tokenizer, model = _load(path, trust_remote_code=config.trust_remote_code) if loads else _make(config, log)
        if config.sft_steps:
            _warm_up(config, tokenizer=tokenizer, model=model, registry=registry, log=log)
        with no_progress_bars():
            _save(model.to("cpu"), folder, source=config.model_name_or_path)
            tokenizer.save_pretrained(folder)
    return folder


def _plain(name: str, *, folder: Path, log: Log) -> Path:
    """The model of a path or hub name, dequantised as `folder` where it is quantised."""
    path = local_folder(name)
    if not is_quantised(path):
        return Path(name)
    if not Path(name).expanduser().is_dir():
        raise ModelError(f"model {name!r} is quantised; download it with its tokenizer and give the folder, which training dequantises")
    log(dequantise(path, folder))
    return folder


def _save(model: Any, folder: Path, *, source: str) -> None:
    """As `save_pretrained`; what lay beside the weights that were loaded comes along as it was, and is not checked again."""
    found = source_folder(source)
    if found.folder is not None:
        plain: Any = GenerationConfig  # transformers does not annotate its constructor
        model.generation_config = plain()
    with without_deepspeed():
        model.save_pretrained(folder)
    found.copy_files(folder)


def target_text(row: Any, *, config: Config) -> str:
    """What the warm-up imitates: the column `sft_key` (or `label_key`) without what `sft_strip` matches."""
    name = config.sft_key or config.label_key
    text = answers_at(row, name, where=f"{config.prompt_data}, a row")[0]
    return re.sub(config.sft_strip, "", text) if config.sft_strip else text


def _load(path: Path, *, trust_remote_code: bool) -> tuple[Any, Any]:
    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    return tokenizer, load_causal_lm(path, dtype=torch.float32, trust_remote_code=trust_remote_code)


def scratch_tokenizer(config: Config) -> Any:
    """The tokenizer that the settings make from the data. Raises DataError, ModelError."""
    texts = _texts(config)
    return char_tokenizer(texts) if config.scratch_tokenizer == "char" else bpe_tokenizer(texts, vocab_size=config.scratch_vocab_size)


def _make(config: Config, log: Log) -> tuple[Any, Any]:
    tokenizer = scratch_tokenizer(config)
    model = scratch_model(
        tokenizer,
        layers=config.scratch_layers,
        hidden=config.scratch_hidden,
        heads=config.scratch_heads,
        kv_heads=config.scratch_kv_heads,
        seed=config.seed,
    )
    parameters = sum(p.numel() for p in model.parameters())
    log(f"made a model of {parameters / 1e6:.2f} M parameters and a {config.scratch_tokenizer} tokenizer of {len(tokenizer)} tokens")
    return tokenizer, model


def _texts(config: Config) -> list[str]:
    """What the tokenizer is made from: training prompts and targets. A character tokenizer has to know those of the evaluation too."""
    targets = [key for key in [config.sft_key or config.label_key] if key]
    texts = []
    for path in [
        *prompt_sources(config.prompt_data).values(),
        *(eval_files(config.eval_data).values() if config.scratch_tokenizer == "char" else []),
    ]:
        for row in load_rows(path, required=[config.input_key], known=targets):
            texts.append(config.prompt_template.replace("{prompt}", str(value_at(row, config.input_key))))
            texts += [target_text(row, config=config) for name in targets if value_at(row, name) is not None]
    return texts


def _warm_up(config: Config, *, tokenizer: Any, model: Any, registry: Registry, log: Log) -> None:
    model.to(_device())
    rewards = rewards_of(config, registry=registry) if config.sft_target_reward else []
    files = eval_files(config.eval_data).values() if config.sft_target_reward else []
    limit = config.max_eval_samples
    held_out = [p for path in files for p in prompt_set(config, path, tokenizer=tokenizer, registry=registry, limit=limit).prompts]
    settings = WarmupSettings(
        steps=config.sft_steps,
        batch_size=config.sft_batch_size,
        learning_rate=config.sft_learning_rate,
        seed=config.seed,
        target_reward=config.sft_target_reward,
    )
    found = prompt_set(config, config.prompt_data, tokenizer=tokenizer, registry=registry)
    images = alone_images(config, [*found.prompts, *held_out])
    result = warm_up(
        model,
        _examples(config, found, tokenizer=tokenizer, images=images, log=log),
        settings=settings,
        greedy_reward=lambda: greedy_reward(model, held_out, config=config, tokenizer=tokenizer, rewards=rewards, images=images),
        log=log,
    )
    if result.greedy_reward is not None and result.greedy_reward < config.sft_target_reward:
        log(f"warm-up: all {result.steps} steps ended at greedy reward {result.greedy_reward:.3f}, below {config.sft_target_reward}")


def greedy_reward(
    model: Any, prompts: Sequence[Prompt], *, config: Config, tokenizer: Any, rewards: Sequence[NamedReward], images: PromptImages
) -> float:
    """Mean weighted reward of greedy completions, in this process."""
    sampling, read = eval_greedy_params(config), images.read(prompts)
    outputs = generate(
        model,
        [Request(id=at, prompt_token_ids=p.token_ids, seed=0, images=read.pictures[at]) for at, p in enumerate(prompts)],
        sampling,
        eos_token_ids=_end_tokens(config, tokenizer=tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        batch_size=config.sft_batch_size,
        max_model_len=config.prompt_max_len + sampling.max_new_tokens,
        version=0,
        truncate=truncate_by(tokenizer, sampling),
        read_images=images.of_request,
    )
    samples = samples_of(prompts, outputs, tokenizer=tokenizer, pictures=read.pictures)
    totals = score(samples, rewards=rewards, reward_key=config.reward_key).total
    return sum(totals) / len(totals)


def _end_tokens(config: Config, *, tokenizer: Any) -> Sequence[int]:
    """Those at which the engine will end a completion of this model; of a model that is made here, the tokenizer's."""
    if config.scratch_tokenizer != "none":
        return [tokenizer.eos_token_id]
    return folder_stop_tokens(config.model_name_or_path, tokenizer=tokenizer).ids


class _Examples(Sequence[Example]):
    """Prompts with their targets; images are read when their example is taken."""

    def __init__(self, pairs: Sequence[tuple[Prompt, list[int]]], images: PromptImages) -> None:
        self._pairs, self._images = pairs, images

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, at: Any) -> Any:
        prompt, target = self._pairs[at]
        [(token_ids, seen)] = self._images.read([prompt]).whole()
        return Example(prompt=token_ids, target=target, images=seen)


def _examples(config: Config, found: PromptSet, *, tokenizer: Any, images: PromptImages, log: Log) -> Sequence[Example]:
    """A target longer than a rollout may be could only teach completions that are cut off."""
    prompts, end = found.prompts, target_end(config, found, tokenizer=tokenizer)
    targets = tokenizer([target_text(p.row, config=config) for p in prompts], add_special_tokens=False)["input_ids"]
    pairs = [(prompt, [*ids, end]) for prompt, ids in zip(prompts, targets, strict=True)]
    examples = _Examples([(p, target) for p, target in pairs if len(target) <= config.generate_max_len], images)
    if not examples:
        shortest = min(len(target) for _, target in pairs)
        raise DataError(
            f"{config.prompt_data}: every target text is longer than generate_max_len={config.generate_max_len}; "
            f"the shortest has {shortest} tokens: set --generate_max_len {shortest} or more"
        )
    too_long = len(pairs) - len(examples)
    if too_long:
        log(f"warm-up: left out {too_long} of {len(pairs)} targets, longer than generate_max_len={config.generate_max_len}")
    return examples


def _device() -> torch.device:
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def _all_threads() -> Iterator[None]:
    """The launcher gives each rank its part of the threads; while the other ranks wait, this one may use them all."""
    before = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    # More threads than this job has a right to, or than there are cores, make every step many times slower.
    torch.set_num_threads(min(cores, before * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    try:
        yield
    finally:
        torch.set_num_threads(before)
