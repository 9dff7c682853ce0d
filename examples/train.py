"""A training script of one's own. The guide's script: flags, strategy, engine, models, trainer.

    python examples/train.py --fsdp --engine_type hf --model_name_or_path FOLDER --prompt_data prompts.jsonl ...

starts one rank for each GPU (else `--nproc-per-node` ranks) by itself; under `torchrun` it is one rank. `lightrft train` does the
same from a recipe; start from this file where something between the parts has to be your own.
"""

from __future__ import annotations

import argparse

from lightrft.config import as_config
from lightrft.config.checks import check
from lightrft.distributed.failure import reporting_failures
from lightrft.distributed.launch import default_nproc, relaunch_if_needed, under_torchrun
from lightrft.errors import UserError
from lightrft.plugins import Registry
from lightrft.strategy import get_strategy
from lightrft.utils import add_arguments


def train(args: argparse.Namespace) -> None:
    """What every rank does."""
    from lightrft.models.load import load_tokenizer  # torch and transformers: only in a rank, the launcher needs neither
    from lightrft.trainer import SPMDPPOTrainer
    from lightrft.trainer.build import build_actor, build_ema_model, build_initial_model, build_scheduler, read_eval_sets, read_prompts
    from lightrft.trainer.reward_models import build_rewards
    from lightrft.trainer.run import open_run
    from lightrft.trainer.steps import count_updates

    # --strategy NAME, else FSDP with --fsdp, else DeepSpeed
    strategy = get_strategy(args)
    config = strategy.config
    model_path = open_run(config, strategy)
    strategy.setup_inference_engine(args, engine_type=args.engine_type, model_path=model_path)

    tokenizer = load_tokenizer(model_path, trust_remote_code=config.trust_remote_code)
    prompts = read_prompts(config, config.prompt_data, tokenizer=tokenizer, strategy=strategy).prompts
    eval_sets = read_eval_sets(config, tokenizer=tokenizer, strategy=strategy)
    rewards = build_rewards(config, strategy)

    actor, actor_optim = build_actor(config, strategy, model_path=model_path)
    actor_scheduler = build_scheduler(config, actor_optim, num_steps=count_updates(config, num_prompts=len(prompts)))
    initial_model = build_initial_model(config, strategy, model_path=model_path)

    trainer = SPMDPPOTrainer(
        strategy=strategy,
        actor=actor,
        critic=None,
        reward_model=rewards,
        initial_model=initial_model,
        ema_model=build_ema_model(config, strategy, model_path=model_path),
        actor_optim=actor_optim,
        critic_optim=None,
        actor_scheduler=actor_scheduler,
        critic_scheduler=None,
        tokenizer=tokenizer,
        prompts=prompts,
        eval_prompts=eval_sets,
    )
    trainer.fit()
    strategy.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains by reinforcement learning, as the flags say.")
    add_arguments(parser)
    parser.add_argument("--nproc-per-node", type=int, help="ranks to start on this machine (default: one for each GPU, else 1)")
    args = parser.parse_args()
    if not under_torchrun():
        try:  # all problems at once, before any process starts
            check(as_config(args), registry=Registry.discover(), world_size=args.nproc_per_node or default_nproc())
        except UserError as error:
            parser.exit(2, "".join(f"error: {line}\n" for line in str(error).splitlines()))
    relaunch_if_needed(args.nproc_per_node)
    with reporting_failures():
        train(args)


if __name__ == "__main__":
    main()
