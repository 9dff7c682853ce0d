"""A training script of one's own. The guide's script: flags, strategy, engine, models, trainer.

    python examples/train.py --fsdp --engine_type hf --model_name_or_path FOLDER --prompt_data prompts.jsonl ...

starts one rank for each GPU (else `--nproc-per-node` ranks) by itself; under `torchrun` it is one rank. `lightrft train` does the
same from a recipe; start from this file where something between the parts has to be your own.
"""

from __future__ import annotations

import argparse

import lightrft


def train(args: argparse.Namespace) -> None:
    """What every rank does."""
    # --strategy NAME, else FSDP with --fsdp, else DeepSpeed
    strategy = lightrft.get_strategy(args)
    config = strategy.config
    model_path = lightrft.open_run(config, strategy)
    strategy.setup_inference_engine(args, engine_type=args.engine_type, model_path=model_path)

    tokenizer = lightrft.load_tokenizer(model_path, trust_remote_code=config.trust_remote_code)
    prompts = lightrft.read_prompts(config, config.prompt_data, tokenizer=tokenizer, strategy=strategy).prompts
    eval_sets = lightrft.read_eval_sets(config, tokenizer=tokenizer, strategy=strategy)
    rewards = lightrft.build_rewards(config, strategy)

    actor, actor_optim = lightrft.build_actor(config, strategy, model_path=model_path)
    num_steps = lightrft.count_updates(config, num_prompts=len(prompts))
    actor_scheduler = lightrft.build_scheduler(config, actor_optim, num_steps=num_steps)
    initial_model = lightrft.build_initial_model(config, strategy, model_path=model_path)

    trainer = lightrft.SPMDPPOTrainer(
        strategy=strategy,
        actor=actor,
        critic=None,
        reward_model=rewards,
        initial_model=initial_model,
        ema_model=lightrft.build_ema_model(config, strategy, model_path=model_path),
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
    lightrft.add_arguments(parser)
    parser.add_argument("--nproc-per-node", type=int, help="ranks to start on this machine (default: one for each GPU, else 1)")
    args = parser.parse_args()
    lightrft.launch(train, args, nproc_per_node=args.nproc_per_node)


if __name__ == "__main__":
    main()
