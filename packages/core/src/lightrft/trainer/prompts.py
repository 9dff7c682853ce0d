"""A data file as the configuration says to read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from transformers import AutoConfig

from lightrft.config.eval_files import eval_files
from lightrft.config.schema import Config
from lightrft.data.images import ImageSettings
from lightrft.data.prompts import Prompt, PromptSet, load_prompts
from lightrft.distributed.world import World
from lightrft.engine.image_reader import ImageReader
from lightrft.engine.stop_tokens import embedding_rows, folder_stop_tokens
from lightrft.errors import DataError
from lightrft.experience.environments import chat_settings
from lightrft.experience.images import PromptImages
from lightrft.models.load import load_tokenizer
from lightrft.observe.warning_names import Finding
from lightrft.plugins.registry import Registry
from lightrft.plugins.specs import Capability
from lightrft.trainer.preflight import raise_all
from lightrft.types import Video
from lightrft.weights.model_class import reads_images


def prompt_set(config: Config, path: str, *, tokenizer: Any, registry: Registry, limit: int = 0) -> PromptSet:
    """The prompts of one source or of several, tokenized; `limit`: of the first rows only, 0 all.

    Raises:
        DataError: see `load_prompts`.
        EpisodeError, PluginError: see `chat_settings`.
    """
    made_here = config.scratch_tokenizer != "none"
    found = load_prompts(
        path,
        tokenizer=tokenizer,
        input_key=config.input_key,
        label_key=config.label_key,
        prompt_template=config.prompt_template,
        apply_chat_template=config.apply_chat_template,
        prompt_max_len=config.prompt_max_len,
        limit=limit,
        chat=chat_settings(config, registry=registry),
        special_tokens_in_prompts=config.special_tokens_in_prompts,
        vocab_size=None if made_here else embedding_rows(config.model_name_or_path),
        images=image_settings(config),
    )
    _refuse_mixture(config, found)
    return replace(found, findings=(*found.findings, *([] if made_here else _runs_on(config, found, tokenizer=tokenizer))))


def image_settings(config: Config) -> ImageSettings:
    """Where the rows' images are, and what stands for one in the model's prompts; its processor is looked at where it has one. Local."""
    settings = ImageSettings(key=config.images_key, videos_key=config.videos_key, folder=config.images_folder)
    if config.scratch_tokenizer != "none":
        made = "a model that is made from the data (scratch_tokenizer) reads text alone"
        return replace(settings, unread=made, videos_unread=made)
    token, video_token, unread = _tokens(config.model_name_or_path, trust_remote_code=config.trust_remote_code)
    videos_unread = unread or "the model's processor reads none here; name a model that does, or install torchvision, which reads them"
    return replace(settings, token=token, unread=unread, video_token=video_token, videos_unread=videos_unread)


@cache
def _tokens(path: str, *, trust_remote_code: bool) -> tuple[str, str, str]:
    """Of an image and a video; empty where the model reads none, and why it reads no images."""
    if not reads_images(AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)):
        return "", "", f"the model {path!r} reads text alone; name an image-text model, or leave them out (images_key '')"
    try:
        reader = ImageReader(path, trust_remote_code=trust_remote_code)
        return reader.token, reader.video_token, ""
    except ValueError as error:
        return "", "", str(error)


def image_reader(config: Config, prompts: Sequence[Prompt], *, model_path: str) -> ImageReader | None:
    """The model's processor, where a prompt has images. Local."""
    if not any(prompt.images for prompt in prompts):
        return None
    return ImageReader(model_path, trust_remote_code=config.trust_remote_code)


def alone_images(config: Config, prompts: Sequence[Prompt]) -> PromptImages:
    """Reads images of these prompts in one process, whatever the others do."""
    reader = image_reader(config, prompts, model_path=config.model_name_or_path)
    return PromptImages(reader, world=World.alone(), max_pixels=config.max_image_pixels, longest=config.prompt_max_len)


def image_problems(config: Config, prompts: Sequence[Prompt], *, registry: Registry) -> list[str]:
    """What these settings cannot do where a prompt has images, a line each. Local."""
    if not any(prompt.images for prompt in prompts):
        return []
    problems = []
    videos = {isinstance(image, Video) for prompt in prompts for image in prompt.images}
    for what, capability in [("videos", Capability.VIDEO)] * (True in videos) + [("images", Capability.MULTIMODAL)] * (False in videos):
        if capability not in registry.spec("engine", config.engine_type).capabilities:
            able = ", ".join(registry.having("engine", capability))
            problems.append(f"the prompts have {what}, which engine_type={config.engine_type!r} does not read; these do: {able}")
    if len(videos) > 1:  # a pass with both would call the part of the model that reads them twice, and on other ranks it is called once
        problems.append("some prompts have images and some videos, which one run does not mix; leave one of them out (videos_key '')")
    if config.environment:
        problems.append(f"the prompts have images, which episodes do not show; leave environment={config.environment!r} out")
    if config.max_version_lag:
        problems.append(f"the prompts have images, which max_version_lag={config.max_version_lag} does not go on from; leave it out")
    return problems


def _refuse_mixture(config: Config, found: PromptSet) -> None:
    """Raises DataError where some rows have images and others none, unless that was asked for."""
    having = [bool(prompt.images) for prompt in found.prompts]
    if any(having) and not all(having) and not config.mixed_mm_data:
        first = found.prompts[having.index(False)]
        raise DataError(
            f"{first.where}: the row has no image, and {sum(having)} of {len(having)} rows have; if that is meant, set --mixed_mm_data"
        )


def check_prompts(config: Config, *, training: bool, registry: Registry) -> None:
    """Makes every prompt as the model would read it, before a model loads: templates, tokens, lengths, the first images. Local.

    A model that is made from the data is not there yet, nor is its tokenizer: nothing is looked at then.

    Raises:
        DataError, EpisodeError, PluginError: see `prompt_set`, and `PromptImages.read` for the first prompt of each file that has images.
        ConfigError: the settings cannot do what prompts with images need.
        ModelError: the tokenizer cannot be loaded.
    """
    if config.scratch_tokenizer != "none":
        return
    tokenizer = load_tokenizer(config.model_name_or_path, trust_remote_code=config.trust_remote_code)
    read = partial(prompt_set, config, tokenizer=tokenizer, registry=registry)
    found = [read(config.prompt_data)] if training and config.prompt_data else []
    found += [read(path, limit=config.max_eval_samples) for path in eval_files(config.eval_data).values()]
    everything = [prompt for one in found for prompt in one.prompts]
    raise_all(image_problems(config, everything, registry=registry))
    images = alone_images(config, everything)
    for one in found:
        images.read([prompt for prompt in one.prompts if prompt.images][:1]).whole()


def target_end(config: Config, found: PromptSet, *, tokenizer: Any) -> int:
    """The token that ends a text to imitate: the one with which the chat template ends a turn, where completions end at it, else the
    tokenizer's.
    """
    own = int(tokenizer.eos_token_id)
    if found.end_of_turn is None or config.scratch_tokenizer != "none":
        return own
    stops = folder_stop_tokens(config.model_name_or_path, tokenizer=tokenizer)
    return found.end_of_turn[0] if found.end_of_turn[0] in (*stops.ids, *config.stop_token_ids) else own


def _runs_on(config: Config, found: PromptSet, *, tokenizer: Any) -> list[Finding]:
    """A chat template that ends a turn with a token at which no completion ends: a base model's folder with a template of its own."""
    if found.end_of_turn is None:
        return []
    token, text = found.end_of_turn
    stops = folder_stop_tokens(config.model_name_or_path, tokenizer=tokenizer)
    asked = stops.with_setting(config.stop_token_ids, ignore_eos=config.ignore_eos)
    if token in asked.ids or text in config.stop:
        return []
    sentence = (
        f"the chat template ends a turn with {text!r}, which is no stop token (stop tokens: {asked.described()}): completions that end "
        f"as the template writes them run on to their limit; set --stop_token_ids {token}"
    )
    return [("end_of_turn_runs_on", sentence)]
