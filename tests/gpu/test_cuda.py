"""What only a GPU shows: memory that really comes free, nccl, bfloat16. One rank; `make gpu-test` runs these."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.data.prompts import Prompt
from lightrft.experience.pipeline import ExperienceMaker
from lightrft.models.load import load_causal_lm, load_tokenizer
from lightrft.rewards.load import NamedReward
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings, StrategyBase
from lightrft.testing.tiny import tiny_model_folder
from lightrft.types import EngineStatus

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
GREEDY = {"temperature": 0.0, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """About 50 M parameters, so that memory shows them."""
    path = tmp_path_factory.mktemp("model")
    return str(tiny_model_folder(path, vocab_size=4096, layers=8, hidden=768, heads=24, kv_heads=8))


def make_strategy(folder: str, **changes: Any) -> StrategyBase:
    values: dict[str, Any] = dict(
        fsdp=True, engine_type="hf", model_name_or_path=folder, prompt_max_len=64, generate_max_len=32, n_samples_per_prompt=2,
        logprob_gap_prompts=4, micro_rollout_batch_size=8,
    )  # fmt: skip
    return get_strategy(make_config(values | changes))


@pytest.fixture
def strategy(folder: str, request: pytest.FixtureRequest) -> Iterator[StrategyBase]:
    strategy = make_strategy(folder, **getattr(request, "param", {}))
    yield strategy
    strategy.shutdown()


def held() -> int:
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def step(strategy: StrategyBase, actor: Any, optimizer: Any) -> None:
    ids = torch.tensor([[3, 4, 5, 6]], device=strategy.world.device)
    strategy.backward(actor(input_ids=ids).logits.float().logsumexp(-1).mean(), actor, optimizer)
    strategy.optimizer_step(optimizer, actor, None, name="actor")


def trainable(strategy: StrategyBase, folder: str) -> tuple[Any, Any]:
    return strategy.prepare_trainable(load_causal_lm(folder, dtype=torch.float32), optimizer=AdamWSettings(learning_rate=1e-4))


@pytest.mark.parametrize("level", [1, 2])
def test_a_sleeping_engine_holds_no_device_memory(folder: str, level: int) -> None:
    strategy = make_strategy(folder, engine_sleep_level=level)
    before = held()
    strategy.setup_inference_engine(strategy.config)
    actor = load_causal_lm(folder, dtype=torch.float32).to("cuda")
    with_actor = held() - before
    outputs = strategy.gather_and_generate(GREEDY, all_prompt_token_ids=[[3, 4, 5]], sleep_engine=False)
    awake = held()
    strategy.maybe_sleep_inference_engine()
    asleep = held()
    engine_bytes = sum(p.numel() * 4 for p in actor.parameters())
    print(f"level {level}: awake {awake / 2**20:.0f} MiB, asleep {asleep / 2**20:.0f} MiB, engine weights {engine_bytes / 2**20:.0f} MiB")
    assert awake - asleep > 0.95 * engine_bytes
    assert with_actor > 1.9 * engine_bytes
    frozen = strategy.prepare_model(actor)
    strategy.update_engine_weights(frozen)
    assert strategy.inference_engine_status is EngineStatus.WEIGHTS_ONLY
    again = strategy.gather_and_generate(GREEDY, all_prompt_token_ids=[[3, 4, 5]])
    assert [list(c.token_ids) for c in again[0].completions] == [list(c.token_ids) for c in outputs[0].completions]
    strategy.shutdown()


@pytest.mark.parametrize("strategy", [{"fsdp_cpu_offload": True}], indirect=True)
def test_an_offloaded_optimizer_holds_no_device_memory(strategy: StrategyBase, folder: str) -> None:
    actor, optimizer = trainable(strategy, folder)
    step(strategy, actor, optimizer)
    on_device = held()
    moments = [s["exp_avg"].to_local().clone() for s in optimizer.state.values()]
    clones = sum(m.numel() * 4 for m in moments)
    strategy.maybe_offload_optimizer(optimizer)
    freed = on_device + clones - held()
    print(f"offload frees {freed / 2**20:.0f} MiB; two moments of all parameters are {2 * clones / 2**20:.0f} MiB")
    assert freed > 0.95 * 2 * clones
    strategy.maybe_load_optimizer(optimizer)
    torch.cuda.synchronize()  # the strategy's own methods wait for the copies; we read them ourselves
    assert all(torch.equal(a, s["exp_avg"].to_local()) for a, s in zip(moments, optimizer.state.values(), strict=True))
    step(strategy, actor, optimizer)


@pytest.mark.parametrize(("strategy", "bound"), [({"bf16": True}, 0.03), ({}, 1e-3)], indirect=["strategy"])
def test_the_engine_agrees_with_the_actor_after_each_sync(strategy: StrategyBase, folder: str, bound: float) -> None:
    strategy.setup_inference_engine(strategy.config)
    actor, optimizer = trainable(strategy, folder)
    assert all(p.dtype is torch.float32 for p in actor.parameters()), "master weights"
    maker = ExperienceMaker(
        strategy=strategy, config=strategy.config, tokenizer=load_tokenizer(folder), actor=actor, initial_model=None,
        rewards=[NamedReward(name="length", function=lambda samples: [float(len(s.completion)) for s in samples])],
        advantage_estimator=strategy.registry.load("advantage", "grpo"),
    )  # fmt: skip
    prompts = [Prompt(index=i, text="", token_ids=tuple(range(3, 6 + 5 * i)), answer=None, row={}) for i in range(4)]
    for _ in range(3):
        strategy.update_engine_weights(actor)
        maker.score(maker.reward(maker.generate(prompts)), seed=0)
        found = maker.metrics.reduce(strategy.world.group)
        gap = found["rollout/logprob_gap"]
        print(f"bf16={strategy.config.bf16}: gap {gap:.2e}")
        assert gap < bound
        step(strategy, actor, optimizer)


def test_the_demo_learns_on_the_gpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lightrft.cli.main", "demo", "--nproc-per-node", "1", "--json", "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=420)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(result))
    assert result["accuracy_before"] <= 0.45
    assert result["accuracy_after"] >= 0.9
