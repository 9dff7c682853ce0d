"""The parts of a trainer from the settings: tokenizer, models, optimizer, schedule, prompts, rewards, loggers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from transformers import get_scheduler

from lightrft.config.eval_files import eval_files
from lightrft.config.schema import Config
from lightrft.data.mixture import mixture_of
from lightrft.data.prompts import Prompt, PromptSet
from lightrft.models.critic import make_critic
from lightrft.models.freeze import freeze
from lightrft.models.load import Opened, load_tokenizer, open_causal_lm
from lightrft.models.lora import add_lora
from lightrft.observe.phase_clock import PhaseFunction
from lightrft.observe.warning_names import Finding, printed
from lightrft.rewards.load import NamedReward
from lightrft.strategy.strategy_base import AdamWSettings, Optimizer, Scheduler, StrategyBase
from lightrft.trainer.early_stop import Callback
from lightrft.trainer.preflight import raise_all
from lightrft.trainer.prompts import image_problems, image_reader, prompt_set
from lightrft.trainer.resume import FilesDigest, user_files, weight_files
from lightrft.trainer.reward_models import build_rewards
from lightrft.trainer.rows import ready_for_rows
from lightrft.trainer.spmd_ppo import SPMDPPOTrainer
from lightrft.trainer.steps import count_updates


def build_trainer(
    config: Config,
    strategy: StrategyBase,
    *,
    model_path: str,
    rewards: Sequence[NamedReward] | None = None,
    phases: Mapping[str, PhaseFunction] | None = None,
    callbacks: Sequence[Callback] = (),
) -> SPMDPPOTrainer:
    """Everything from files and settings, but for `rewards` that are given. The strategy's engine is set up by the caller. Collective."""
    tokenizer = load_tokenizer(model_path, trust_remote_code=config.trust_remote_code)
    findings: list[Finding] = []
    prompts = read_prompts(config, config.prompt_data, tokenizer=tokenizer, strategy=strategy, tell=findings.append)
    eval_sets = read_eval_sets(config, tokenizer=tokenizer, strategy=strategy, tell=findings.append)
    everything = [*prompts.prompts, *(prompt for prompts in eval_sets.values() for prompt in prompts)]
    raise_all(image_problems(config, everything, registry=strategy.registry))
    reader = image_reader(config, everything, model_path=model_path)
    rewards = build_rewards(config, strategy) if rewards is None else rewards
    actor, optimizer = build_actor(config, strategy, model_path=model_path)
    has_critic = strategy.registry.spec("advantage", config.advantage_estimator).critic
    critic, critic_optimizer = build_critic(config, strategy, model_path=model_path) if has_critic else (None, None)
    number = mixture_of(prompts.prompts, config.prompt_data_weights).epoch_rows
    warmup = config.critic_warmup_steps if critic is not None else 0
    actor_updates = count_updates(config, num_prompts=number, first_rollouts_without=warmup)
    critic_updates = count_updates(config, num_prompts=number)
    trainer = SPMDPPOTrainer(
        strategy=strategy,
        actor=actor,
        initial_model=build_initial_model(config, strategy, model_path=model_path),
        ema_model=build_ema_model(config, strategy, model_path=model_path),
        reward_model=list(rewards),
        actor_optim=optimizer,
        actor_scheduler=build_scheduler(config, optimizer, num_steps=actor_updates),
        critic=critic,
        critic_optim=critic_optimizer,
        critic_scheduler=None if critic_optimizer is None else build_scheduler(config, critic_optimizer, num_steps=critic_updates),
        tokenizer=tokenizer,
        prompts=prompts.prompts,
        eval_prompts=eval_sets,
        config=config,
        phases=phases,
        callbacks=callbacks,
        image_reader=reader,
    )
    reference = FilesDigest("the initial model", weight_files(Path(model_path)), refuses=config.kl_coef > 0)
    trainer.state.register("reference", reference)
    trainer.state.register("reward_files", FilesDigest("code or reward model", user_files(config), refuses=False))
    trainer.warn(*dict.fromkeys(findings))
    return trainer


def read_prompts(
    config: Config,
    path: str,
    *,
    tokenizer: object,
    strategy: StrategyBase,
    limit: int = 0,
    tell: Callable[[Finding], None] | None = None,
) -> PromptSet:
    """The prompts of one source or of several (see `load_prompts`), tokenized; what was left out or added is printed. No path: no prompts.

    `tell` is given what a person should know of the rows; without it, that is printed too.

    Example::

        >>> from pathlib import Path
        >>> _ = Path("prompts.jsonl").write_text('{"prompt": "6 x 7 =", "answer": "42"}')
        >>> import lightrft
        >>> config = lightrft.make_config({"model_name_or_path": "model", "strategy": "single", "prompt_data": "prompts.jsonl"})
        >>> strategy = lightrft.get_strategy(config)
        >>> tokenizer = lightrft.load_tokenizer("model")
        >>> [prompt] = lightrft.read_prompts(config, config.prompt_data, tokenizer=tokenizer, strategy=strategy).prompts
        >>> prompt.text, prompt.answer
        ('6 x 7 =', '42')
        >>> strategy.shutdown()
    """
    if not path:
        return PromptSet(prompts=[], num_too_long=0, path="")
    found = prompt_set(config, path, tokenizer=tokenizer, registry=strategy.registry, limit=limit)
    for note in found.notes:
        strategy.print(f"note: {path}: {note}")
    for finding in found.findings:
        if tell is None:
            strategy.print(printed(*finding))
        else:
            tell(finding)
    if found.num_too_long:
        total = found.num_too_long + len(found.prompts)
        strategy.print(
            f"{path}: left out {found.num_too_long} of {total} prompts, longer than prompt_max_len={config.prompt_max_len} tokens"
        )
    return found


def read_eval_sets(
    config: Config, *, tokenizer: object, strategy: StrategyBase, tell: Callable[[Finding], None] | None = None
) -> dict[str, list[Prompt]]:
    """The prompts of each file of `eval_data` by its name.

    Example::

        >>> from pathlib import Path
        >>> _ = Path("held_out.jsonl").write_text('{"prompt": "6 x 7 =", "answer": "42"}')
        >>> import lightrft
        >>> config = lightrft.make_config({"model_name_or_path": "model", "strategy": "single", "eval_data": ["held_out.jsonl"]})
        >>> strategy = lightrft.get_strategy(config)
        >>> sets = lightrft.read_eval_sets(config, tokenizer=lightrft.load_tokenizer("model"), strategy=strategy)
        >>> {name: len(prompts) for name, prompts in sets.items()}
        {'held_out': 1}
        >>> strategy.shutdown()
    """
    limit = config.max_eval_samples
    return {
        name: read_prompts(config, path, tokenizer=tokenizer, strategy=strategy, limit=limit, tell=tell).prompts
        for name, path in eval_files(config.eval_data).items()
    }


def build_actor(
    config: Config, strategy: StrategyBase, settings: AdamWSettings | None = None, *, model_path: str
) -> tuple[torch.nn.Module, Optimizer]:
    """The trained model, in float32 (with adapters where `lora_rank` asks for them, without gradients where `freeze` does), and its AdamW
    (`settings` None: the configuration's). Collective.

    Raises:
        ModelError: as `open_causal_lm`, `add_lora` and `freeze`.

    Example::

        >>> import lightrft
        >>> config = lightrft.make_config({"model_name_or_path": "model", "strategy": "single"})
        >>> strategy = lightrft.get_strategy(config)
        >>> actor, optimizer = lightrft.build_actor(config, strategy, model_path="model")
        >>> {parameter.dtype for parameter in actor.parameters()}
        {torch.float32}
        >>> strategy.shutdown()
    """
    opened = _open(config, strategy, model_path, torch.float32)
    model: torch.nn.Module = opened.model
    if config.lora_rank:
        model = add_lora(model, rank=config.lora_rank, alpha=config.lora_alpha, target_modules=config.lora_target_modules, seed=config.seed)
    if config.freeze:
        strategy.print(freeze(model, config.freeze))
    settings = settings or _adamw(config, config.learning_rate)
    actor, optimizer = strategy.prepare_trainable(model, optimizer=settings, weights=opened.weights)
    ready_for_rows(actor, config=config, strategy=strategy)
    return actor, optimizer


def build_critic(
    config: Config, strategy: StrategyBase, settings: AdamWSettings | None = None, *, model_path: str
) -> tuple[torch.nn.Module, Optimizer]:
    """The value model, in float32, and its AdamW: trained whole, also beside adapters and `freeze`. Collective.

    Example::

        >>> import lightrft
        >>> config = lightrft.make_config({"model_name_or_path": "model", "strategy": "single"})
        >>> strategy = lightrft.get_strategy(config)
        >>> critic, optimizer = lightrft.build_critic(config, strategy, model_path="model")
        >>> optimizer.param_groups[0]["lr"] == config.critic_learning_rate
        True
        >>> strategy.shutdown()
    """
    opened = _open(config, strategy, config.critic_model_name_or_path or model_path, torch.float32)
    settings = settings or _adamw(config, config.critic_learning_rate)
    critic, optimizer = strategy.prepare_trainable(make_critic(opened.model), optimizer=settings, weights=opened.weights)
    ready_for_rows(critic, config=config, strategy=strategy)
    return critic, optimizer


def build_initial_model(config: Config, strategy: StrategyBase, *, model_path: str) -> torch.nn.Module | None:
    """The frozen copy for the KL, where there is one. Collective.

    Example::

        >>> import lightrft
        >>> config = lightrft.make_config({"model_name_or_path": "model", "strategy": "single", "kl_coef": 0.1})
        >>> strategy = lightrft.get_strategy(config)
        >>> model = lightrft.build_initial_model(config, strategy, model_path="model")
        >>> any(parameter.requires_grad for parameter in model.parameters())
        False
        >>> strategy.shutdown()
    """
    if config.kl_coef == 0:
        return None
    opened = _open(config, strategy, model_path, torch.bfloat16 if config.bf16 else torch.float32)
    model = strategy.prepare_model(opened.model, weights=opened.weights)
    ready_for_rows(model, config=config, strategy=strategy)
    return model


def build_ema_model(config: Config, strategy: StrategyBase, *, model_path: str) -> torch.nn.Module | None:
    """The average of the actor's weights, at their start, where there is one. Collective.

    Example::

        >>> import lightrft
        >>> config = lightrft.make_config({"model_name_or_path": "model", "strategy": "single"})
        >>> strategy = lightrft.get_strategy(config)
        >>> lightrft.build_ema_model(config, strategy, model_path="model") is None  # ema_beta is 0
        True
        >>> strategy.shutdown()
    """
    if not config.ema_beta:
        return None
    opened = _open(config, strategy, model_path, torch.float32)
    return strategy.prepare_ema_model(opened.model, weights=opened.weights)


def build_scheduler(config: Config, optimizer: Optimizer, *, num_steps: int) -> Scheduler:
    """The learning-rate schedule over all optimizer steps.

    Example::

        >>> import lightrft
        >>> config = lightrft.make_config({"model_name_or_path": "model", "strategy": "single", "lr_warmup_steps": 10})
        >>> strategy = lightrft.get_strategy(config)
        >>> actor, optimizer = lightrft.build_actor(config, strategy, model_path="model")
        >>> lightrft.build_scheduler(config, optimizer, num_steps=100).get_last_lr()
        [0.0]
        >>> strategy.shutdown()
    """
    scheduler: Scheduler = get_scheduler(
        config.lr_scheduler, optimizer, num_warmup_steps=config.lr_warmup_steps, num_training_steps=num_steps
    )
    return scheduler


def _adamw(config: Config, learning_rate: float) -> AdamWSettings:
    return AdamWSettings(learning_rate=learning_rate, betas=(config.adam_beta1, config.adam_beta2), weight_decay=config.weight_decay)


def _open(config: Config, strategy: StrategyBase, model_path: str, dtype: torch.dtype) -> Opened:
    opened = open_causal_lm(model_path, dtype=dtype, trust_remote_code=config.trust_remote_code)
    if opened.whole_because:
        strategy.print(f"{model_path}: every rank loads the whole model before it is sharded, because {opened.whole_because}")
    return opened
