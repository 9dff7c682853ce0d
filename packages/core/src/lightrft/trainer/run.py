"""What a rank does from its first line to its last: the whole run, for `lightrft train` and for scripts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightrft.config.checks import check_engine
from lightrft.config.hang_limits import hang_limits
from lightrft.config.load import make_config
from lightrft.config.schema import Config
from lightrft.diagnostics.monitors import differing_ends
from lightrft.distributed.collectives import agree, broadcast_object
from lightrft.distributed.consensus import together
from lightrft.distributed.watchdog import watching
from lightrft.errors import ModelError
from lightrft.experience.environments import check_environment
from lightrft.experience.episodes import chosen_episodes
from lightrft.experience.images import PromptImages
from lightrft.models.load import load_tokenizer
from lightrft.observe.phase_clock import PhaseFunction
from lightrft.observe.warning_names import printed
from lightrft.plugins.registry import Registry
from lightrft.rewards.trial import loading_problems
from lightrft.run.evaluate_samples import best_worst_median
from lightrft.run.run_folder import hold_folders, open_run_folder
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.trainer.base_model import prepare_base_model
from lightrft.trainer.build import build_trainer, read_eval_sets
from lightrft.trainer.data_checks import columns_asked_for
from lightrft.trainer.early_stop import Callback
from lightrft.trainer.evaluate import evaluate as evaluate_sets
from lightrft.trainer.evaluate import write_rows
from lightrft.trainer.given import Rows, in_place_of, keep_rows, without_answers
from lightrft.trainer.preflight import Mode, preflight_problems, raise_all
from lightrft.trainer.prompts import check_prompts, image_reader
from lightrft.trainer.resume import check_resume, in_run
from lightrft.trainer.reward_models import as_rewards, build_rewards, unseen_images
from lightrft.types import Sample


def train(
    config: Config | Mapping[str, Any],
    *,
    rewards: Sequence[Callable[[Sequence[Sample]], Any]] | None = None,
    prompts: Rows | None = None,
    eval_prompts: Rows | None = None,
    phases: Mapping[str, PhaseFunction] | None = None,
    callbacks: Sequence[Callback] = (),
    registry: Registry | None = None,
) -> dict[str, Any]:
    """Trains as configured; returns the summary, the same on every rank. Every rank of the world calls it.

    `rewards` are functions `(samples) -> one number each`, in place of the setting `reward`. `prompts` and `eval_prompts` are rows in
    memory (texts, mappings of columns, or a `datasets.Dataset`), in place of `prompt_data` and `eval_data`; they are kept as files in the
    run folder, which can then be evaluated and resumed. Where all rows are texts and the rewards functions, no answers are looked for.
    `phases` are functions in place of phases, `callbacks` are called with the trainer at the end of each rollout, and end the run by
    returning a reason (see `SPMDPPOTrainer`).

    After an error the process group is left as it is: other ranks may be inside a collective, so the caller should end the process.

    Raises:
        ConfigError: all problems of the settings and of what is given beside them.

    Example::

        import lightrft

        summary = lightrft.train(
            {
                "model_name_or_path": "model", "strategy": "single", "engine_type": "hf", "output_dir": "runs/mine",
                "rollout_batch_size": 2, "n_samples_per_prompt": 4, "train_batch_size": 8, "generate_max_len": 8, "max_steps": 2,
            },
            rewards=[lambda samples: [float("42" in sample.completion) for sample in samples]],
            prompts=["6 x 7 =", "40 + 2 ="],
        )
        print(summary["model_dir"])
    """
    config = config if isinstance(config, Config) else make_config(config)
    given = in_place_of(config, rewards=rewards, prompts=prompts, eval_prompts=eval_prompts)
    config = config if rewards is None else without_answers(config, given).model_copy(update={"reward": []})
    strategy = get_strategy(config, registry=registry)
    world = strategy.world
    check_engine(config, registry=strategy.registry, world_size=world.world_size, device_type=world.device.type)
    config = keep_rows(config, given, world=world)
    with watching(world, hang_limits(config)):
        model_path = open_run(config, strategy, rewards=rewards is None)
        strategy.setup_inference_engine(config, engine_type=config.engine_type, model_path=model_path)
        functions = None if rewards is None else as_rewards(list(rewards), config=config, strategy=strategy)
        summary = build_trainer(config, strategy, model_path=model_path, rewards=functions, phases=phases, callbacks=callbacks).fit()
    strategy.shutdown()
    return summary


def evaluate(config: Config, *, registry: Registry | None = None) -> dict[str, Any]:
    """Evaluation of `model_name_or_path` on `eval_data`; the metrics, the same on every rank, and on rank 0 some samples. Every rank calls
    it. `eval_out` gets all completions.

    Example::

        import json
        from pathlib import Path

        import lightrft

        Path("eval.jsonl").write_text(json.dumps({"prompt": "40 + 2 =", "answer": "42"}) + "\\n")
        config = lightrft.make_config(
            {
                "model_name_or_path": "model", "strategy": "single", "engine_type": "hf", "reward": ["exact_match"],
                "eval_data": ["eval.jsonl"], "generate_max_len": 8,
            }
        )
        print(lightrft.evaluate(config)["reward"])
    """
    strategy = get_strategy(config, registry=registry)
    with watching(strategy.world, hang_limits(config)):
        metrics = _evaluate(config, strategy)
    strategy.shutdown()
    return metrics


def _evaluate(config: Config, strategy: StrategyBase) -> dict[str, Any]:
    admit(config, strategy, mode="eval")
    strategy.setup_inference_engine(config, engine_type=config.engine_type)
    if found := differing_ends(strategy.stop_tokens):
        strategy.print(printed(*found))
    tokenizer = load_tokenizer(config.model_name_or_path, trust_remote_code=config.trust_remote_code)
    sets = read_eval_sets(config, tokenizer=tokenizer, strategy=strategy)
    rewards = build_rewards(config, strategy)
    episodes = chosen_episodes(config, strategy=strategy, tokenizer=tokenizer)
    everything = [prompt for prompts in sets.values() for prompt in prompts]
    if unseen := unseen_images(rewards, everything):
        strategy.print(printed(*unseen))
    reader = image_reader(config, everything, model_path=config.model_name_or_path)
    images = PromptImages(reader, world=strategy.world, max_pixels=config.max_image_pixels, longest=config.prompt_max_len)
    with strategy.world.stamp.entering("evaluate"):
        result = evaluate_sets(
            sets, strategy=strategy, config=config, tokenizer=tokenizer, rewards=rewards, episodes=episodes, images=images
        )
    if config.eval_out and strategy.is_rank_0:
        write_rows(Path(config.eval_out), result.rows)
    metrics = {name.removeprefix("eval/"): value for name, value in result.metrics.items()}
    return metrics | {"num_prompts": sum(map(len, sets.values())), "samples": best_worst_median(result.rows)}


def admit(config: Config, strategy: StrategyBase, *, mode: Mode, rewards: bool = True) -> None:
    """Raises, on all ranks, what speaks against the job before a model loads: settings, data and checkpoint as rank 0 sees them, rewards
    on every rank (`rewards` False: functions are given). Collective.

    Raises:
        ConfigError: all problems (PeerError on the other ranks).
    """
    world, registry = strategy.world, strategy.registry

    def look() -> None:
        raise_all(preflight_problems(config, mode=mode, registry=registry, world_size=world.world_size, rewards=rewards))

    together(world, "checking the settings", look, rank_0_only=True)
    if mode in ("train", "eval"):
        columns = columns_asked_for(config, training=mode == "train")
        together(world, "loading the rewards", lambda: raise_all(loading_problems(config, registry=registry, columns=columns)))
        if config.environment:
            together(world, "loading the environment", lambda: check_environment(config, registry=registry))
        together(world, "reading the prompts", lambda: check_prompts(config, registry=registry, training=mode == "train"), rank_0_only=True)


def open_run(config: Config, strategy: StrategyBase, *, rewards: bool = True) -> str:
    """Checks everything (`admit`), opens the run folder and makes the base model, on rank 0 while the others wait; returns the model's path
    on every rank. Collective.

    Example::

        >>> from pathlib import Path
        >>> _ = Path("prompts.jsonl").write_text('{"prompt": "6 x 7 =", "answer": "42"}')
        >>> import lightrft
        >>> config = lightrft.make_config({"model_name_or_path": "model", "strategy": "single",
        ...     "engine_type": "hf", "prompt_data": "prompts.jsonl", "reward": ["exact_match"], "output_dir": "run",
        ...     "rollout_batch_size": 1, "n_samples_per_prompt": 4, "train_batch_size": 4,
        ...     "prompt_max_len": 16, "generate_max_len": 8, "max_steps": 1, "plot_every": 0,
        ... })
        >>> strategy = lightrft.get_strategy(config)
        >>> lightrft.open_run(config, strategy)
        'model'
        >>> strategy.shutdown()
    """
    admit(config, strategy, mode="train", rewards=rewards)
    return share_base_model(strategy, lambda: _base_model(config, strategy))


def share_base_model(strategy: StrategyBase, make: Callable[[], Path]) -> str:
    """The folder that `make()` gives on rank 0 while the others wait, on every rank. Collective."""
    path = ""
    error: Exception | None = None
    try:
        if strategy.is_rank_0:
            path = str(make())
    except Exception as caught:  # raised below, on all ranks together
        error = caught
    agree(error, group=strategy.world.group, doing="preparing the run")
    path = broadcast_object(path, source=0, group=strategy.world.group)
    if Path(path).is_absolute() and not Path(path).exists():
        raise ModelError(
            f"rank {strategy.world.rank} does not see the model folder {path!r} that rank 0 made; output_dir must be shared storage"
        )
    return path


def _base_model(config: Config, strategy: StrategyBase) -> Path:
    """Opens the run folder and gives the base model: of the run that is resumed, where that made one."""
    source = check_resume(config) if config.resume_from else None
    goes_on = source is not None and in_run(source, Path(config.output_dir))
    hold_folders(config, log=strategy.print)
    folder = open_run_folder(config, backend=strategy.describe(), goes_on=goes_on)
    made = source.parent.parent / "base" if source is not None else None
    if made is not None and (made / "config.json").is_file():
        return made
    return prepare_base_model(config, folder=folder / "base", registry=strategy.registry, log=strategy.print)
