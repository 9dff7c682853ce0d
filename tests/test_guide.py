"""The Python snippets of the strategy guide run as they stand. With `engine_type='hf'`, on one rank of FSDP2."""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lightrft.data.prompts import load_prompts
from lightrft.models.load import load_causal_lm, load_tokenizer
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings, StrategyBase
from lightrft.testing.tiny import tiny_model_folder
from lightrft.trainer import SPMDPPOTrainer
from lightrft.types import EngineStatus
from lightrft.utils import add_arguments

FLAGS = [
    "--fsdp",
    "--fsdp_cpu_offload",
    "--engine_tp_size",
    "1",
    "--engine_mem_util",
    "0.85",
    "--engine_type",
    "hf",
    "--enable_engine_sleep",
    "--micro_train_batch_size",
    "2",
    "--train_batch_size",
    "8",
    "--rollout_batch_size",
    "4",
    "--n_samples_per_prompt",
    "2",
    "--prompt_max_len",
    "16",
    "--generate_max_len",
    "8",
    "--plot_every",
    "10",
    "--learning_rate",
    "1e-2",
    "--max_steps",
    "1",
    "--loggers",
    "jsonl",
]


@pytest.fixture
def args(tmp_path: Path) -> argparse.Namespace:
    model = tiny_model_folder(tmp_path / "base")
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"prompt": "{i} + {i} =", "answer": "{2 * i}"}}\n' for i in range(8)))

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    places = [
        "--model_name_or_path",
        str(model),
        "--prompt_data",
        str(data),
        "--log_dir",
        str(tmp_path / "logs"),
        "--output_dir",
        str(tmp_path / "run"),
    ]
    return parser.parse_args([*FLAGS, *places])


@pytest.fixture
def strategy(args: argparse.Namespace) -> Iterator[StrategyBase]:
    strategy = get_strategy(args)
    strategy.setup_inference_engine(args, engine_type="hf")
    yield strategy
    strategy.shutdown()


class GuideTrainer(SPMDPPOTrainer):
    """The guide's `ppo_train`, word for word."""

    def ppo_train(self, global_steps=0):  # type: ignore[no-untyped-def]  # as in the guide
        torch.cuda.synchronize()
        train_begin = time.time()

        self.strategy.maybe_load_optimizer(self.actor_optim)

        train_ret = super().ppo_train(global_steps)

        self.strategy.maybe_offload_optimizer(self.actor_optim)

        torch.cuda.synchronize()
        self.strategy.print(f"PPO Train TIMECOST {time.time() - train_begin}")

        self.strategy.update_engine_weights(self.actor)

        return train_ret


def make_trainer(args: argparse.Namespace, strategy: StrategyBase) -> GuideTrainer:
    tokenizer = load_tokenizer(args.model_name_or_path)
    actor, actor_optim = strategy.prepare_trainable(
        load_causal_lm(args.model_name_or_path, dtype=torch.float32), optimizer=AdamWSettings(learning_rate=args.learning_rate)
    )
    actor_scheduler = torch.optim.lr_scheduler.ConstantLR(actor_optim, factor=1.0)
    prompts = load_prompts(
        args.prompt_data, tokenizer=tokenizer, input_key="prompt", label_key="answer", prompt_template="{prompt}",
        apply_chat_template=False,
        prompt_max_len=args.prompt_max_len,
    ).prompts  # fmt: skip
    return GuideTrainer(
        strategy=strategy,
        actor=actor,
        critic=None,
        reward_model=lambda samples: [float(len(s.completion) % 3) for s in samples],
        initial_model=None,
        ema_model=None,
        actor_optim=actor_optim,
        critic_optim=None,
        actor_scheduler=actor_scheduler,
        critic_scheduler=None,
        tokenizer=tokenizer,
        prompts=prompts,
    )


def test_creating_a_strategy_and_training(
    args: argparse.Namespace, strategy: StrategyBase, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The guide's method synchronizes CUDA; without a GPU there is nothing to wait for.
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert type(strategy).__name__ == "FSDPV2Strategy"
    vllm_engine = strategy.inference_engine
    assert vllm_engine is not None
    trainer = make_trainer(args, strategy)
    trainer.fit()
    assert "PPO Train TIMECOST" in capsys.readouterr().out
    assert (Path(args.log_dir) / "metrics.jsonl").is_file()


def test_standard_operations(args: argparse.Namespace, strategy: StrategyBase) -> None:
    model, optimizer = strategy.prepare_trainable(
        load_causal_lm(args.model_name_or_path, dtype=torch.float32), optimizer=AdamWSettings(learning_rate=1e-2)
    )
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    loss = model(input_ids=torch.tensor([[3, 4, 5]])).logits.float().logsumexp(-1).mean()
    strategy.backward(loss, model, optimizer)
    strategy.optimizer_step(optimizer, model, scheduler, name="actor")
    local_value = torch.tensor([1.0, 3.0])
    averaged_value = strategy.all_reduce(local_value, op="mean")
    gathered_values = strategy.all_gather(local_value)
    assert averaged_value.tolist() == gathered_values.tolist() == [1.0, 3.0]
    strategy.update_engine_weights(model)
    assert strategy.weight_version == 1
    strategy.report_memory(prefix="checkpoint_name")
    assert strategy.inference_engine_status is EngineStatus.AWAKE


def test_text_generation_in_the_experience_maker(args: argparse.Namespace, strategy: StrategyBase) -> None:
    maker: Any = make_trainer(args, strategy).experience_maker
    all_prompts = ["1 + 1 =", "20 + 20 ="]
    all_prompt_token_ids = maker.tokenize_fn(all_prompts, maker.prompt_max_len, padding=False)["input_ids"]
    all_outputs = maker.strategy.gather_and_generate(
        sampling_params={"temperature": 0.0, "max_new_tokens": 4}, all_prompt_token_ids=all_prompt_token_ids, sleep_engine=True
    )
    assert dist.get_rank(maker.vllm_mp_group) == 0
    assert [list(o.prompt_token_ids) for o in all_outputs] == all_prompt_token_ids
    same = strategy.gather_and_generate(
        sampling_params={"temperature": 0.0, "max_new_tokens": 4},
        all_prompts=all_prompts,
        all_images=None,
        images_num=None,
        sleep_engine=True,
    )
    assert [o.completions for o in same] == [o.completions for o in all_outputs]


def test_the_engine_s_life(strategy: StrategyBase) -> None:
    assert strategy.inference_engine_status is EngineStatus.AWAKE
    strategy.maybe_sleep_inference_engine()
    assert strategy.inference_engine_status is EngineStatus.ASLEEP
    strategy.wakeup_inference_engine()
    assert strategy.inference_engine_status is EngineStatus.AWAKE


def test_reward_models(args: argparse.Namespace, strategy: StrategyBase) -> None:
    reward_models = [load_causal_lm(args.model_name_or_path, dtype=torch.float32) for _ in range(3)]
    ids = torch.tensor([[3, 4, 5]])
    expected = reward_models[0](input_ids=ids).logits.detach()
    prepared_rms = [strategy.prepare_model(rm, shard_size=1) for rm in reward_models]
    assert len(prepared_rms) == 3
    for model in prepared_rms:
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=0, atol=1e-6)
        assert not any(p.requires_grad for p in model.parameters())
