"""PPO's critic. Its head, loss and optimizer by hand, its warm-up, and a trainer that needs it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.algorithms.gae import gae
from lightrft.algorithms.inputs import AdvantageInput
from lightrft.batch.planning import Batching
from lightrft.batch.stages import Trainable
from lightrft.config.load import make_config
from lightrft.data.prompts import Prompt
from lightrft.experience.scoring import score_values
from lightrft.models.critic import make_critic
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.batches import batch_of, rows_of
from lightrft.testing.fake_engine import VOCAB_SIZE
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_causal_lm, tiny_model_folder, tiny_tokenizer
from lightrft.trainer import SPMDPPOTrainer
from lightrft.trainer.critic_update import CriticUpdate
from lightrft.types import Sample

ALPHABET = "0123456789 =+"
ROWS = [([3, 4], [5, 6, 1]), ([7], [8, 1]), ([9, 10, 11], [12])]


def odd_tokens(samples: Sequence[Sample]) -> list[float]:
    return [float(len(s.completion) % 2) for s in samples]


def make_strategy(**values: Any) -> Any:
    base = {"strategy": "fake", "engine_type": "fake", "max_norm": 0.0, "train_batch_size": 3, "advantage_estimator": "gae"}
    return get_strategy(make_config(base | values), registry=fake_registry())


def critic_with_head(seed: int = 3, **options: Any) -> Any:
    """A critic whose head is not at its start of zero."""
    critic: Any = make_critic(tiny_causal_lm(seed=seed, vocab_size=VOCAB_SIZE, **options))
    head = critic.get_output_embeddings()
    with torch.no_grad():
        head.weight.copy_(0.3 * torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed)))
    return critic


def by_hand(critic: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Values before each token of one completion: the last hidden state there, times the head."""
    hidden = critic.model(input_ids=torch.tensor([[*prompt, *completion]])).last_hidden_state[0]
    values: torch.Tensor = (hidden @ critic.lm_head.weight[0])[len(prompt) - 1 : -1]
    return values


def experience() -> Trainable:
    values = [torch.linspace(-0.2, 0.4, len(completion)) for _, completion in ROWS]
    return batch_of(Trainable, ROWS, group_ids=range(3), values=values, returns=[-0.5, 0.5, 1.5])


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_values_are_those_of_the_head_whatever_the_padding(micro: int) -> None:
    critic = critic_with_head()
    batching = Batching(train_batch_size=3, micro_batch_size=micro)
    parts = batching.micro_batches(experience(), torch.arange(3))
    got = score_values(critic, experience(), parts, strategy=make_strategy(), batching=batching)
    for values, (prompt, completion) in zip(experience().by_sequence(got), ROWS, strict=True):
        torch.testing.assert_close(values, by_hand(critic, prompt, completion).detach(), rtol=0, atol=1e-6)


def test_a_critic_starts_at_zero_and_a_tied_embedding_stays() -> None:
    model = tiny_causal_lm(seed=3, vocab_size=VOCAB_SIZE, tie=True)
    before = model.get_input_embeddings().weight.detach().clone()
    critic: Any = make_critic(model)
    logits = critic(input_ids=torch.tensor([[3, 4, 5]])).logits
    assert logits.shape == (1, 3, 1) and not logits.any()
    torch.testing.assert_close(critic.get_input_embeddings().weight, before, rtol=0, atol=0)
    assert not critic.config.tie_word_embeddings


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_the_critic_s_gradient_by_hand(micro: int) -> None:
    strategy = make_strategy(micro_train_batch_size=micro, value_clip=0.1)
    critic, optimizer = strategy.prepare_trainable(critic_with_head(), optimizer=AdamWSettings(learning_rate=1e-3))
    seen: dict[str, torch.Tensor] = {}
    step = strategy._step

    def spying_step(*args: Any) -> Any:
        seen.update({name: p.grad.clone() for name, p in critic.named_parameters() if p.grad is not None})
        return step(*args)

    strategy._step = spying_step
    update = CriticUpdate(strategy=strategy, config=strategy.config, critic=critic, optimizer=optimizer, scheduler=None)
    metrics = update.run(experience(), seed=0)
    reference = critic_with_head().double()
    terms = []
    for row in rows_of(experience()):
        for value, old, target in zip(by_hand(reference, row.prompt_ids, row.completion_ids), row.values, row.returns, strict=True):
            bounded = old + (value - old).clamp(-0.1, 0.1)
            terms.append(torch.maximum((value - target) ** 2, (bounded - target) ** 2) / 2)
    loss = sum(terms[1:], start=terms[0]) / 6  # 3 + 2 + 1 tokens
    loss.backward()
    assert metrics["critic/loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, p in reference.named_parameters():
        if p.grad is not None:
            assert (seen[name] - p.grad).abs().max() <= 5e-6 * max(float(p.grad.abs().max()), 1e-3), name


def test_explained_variance_of_the_values_before_the_update() -> None:
    strategy = make_strategy()
    critic, optimizer = strategy.prepare_trainable(critic_with_head(), optimizer=AdamWSettings(learning_rate=1e-3))
    update = CriticUpdate(strategy=strategy, config=strategy.config, critic=critic, optimizer=optimizer, scheduler=None)
    rows = experience()
    returns = rows.sampled(rows.returns)
    errors = returns - rows.sampled(rows.values)
    expected = 1 - float(errors.var(unbiased=False) / returns.var(unbiased=False))
    assert update.run(rows, seed=0)["critic/explained_variance"] == pytest.approx(expected, rel=1e-5)
    equal = replace(rows, returns=torch.zeros_like(rows.returns))
    assert "critic/explained_variance" not in update.run(equal, seed=0)


def make_trainer(folder: Path, **changes: Any) -> SPMDPPOTrainer:
    values: dict[str, Any] = dict(
        output_dir=str(folder / "run"), logprob_gap_prompts=0, verify_sync_every=0, prompt_max_len=16, generate_max_len=8,
        rollout_batch_size=4, n_samples_per_prompt=4, train_batch_size=8, micro_train_batch_size=3, learning_rate=1e-2, max_steps=2,
        plot_every=0, loggers=["jsonl"], seed=1,
    )  # fmt: skip
    strategy = make_strategy(**values | changes)
    model_folder = tiny_model_folder(folder / "base", alphabet=ALPHABET, vocab_size=VOCAB_SIZE, seed=2)
    strategy.setup_inference_engine(strategy.config, engine_type="fake", model_path=str(model_folder))
    start = AdamWSettings(learning_rate=1e-2)
    actor, actor_optim = strategy.prepare_trainable(tiny_causal_lm(seed=2, vocab_size=VOCAB_SIZE), optimizer=start)
    critic, critic_optim = strategy.prepare_trainable(make_critic(tiny_causal_lm(seed=2, vocab_size=VOCAB_SIZE)), optimizer=start)
    tokenizer = tiny_tokenizer(ALPHABET)
    texts = [f"{index} + {index} =" for index in range(6)]
    return SPMDPPOTrainer(
        strategy=strategy,
        actor=actor,
        critic=critic,
        reward_model=odd_tokens,
        actor_optim=actor_optim,
        critic_optim=critic_optim,
        actor_scheduler=torch.optim.lr_scheduler.ConstantLR(actor_optim, factor=1.0),
        critic_scheduler=torch.optim.lr_scheduler.LambdaLR(critic_optim, lambda step: 1.0 / (1 + step)),
        tokenizer=tokenizer,
        prompts=[Prompt(index=i, text=t, token_ids=tuple(tokenizer(t)["input_ids"]), answer="", row={}) for i, t in enumerate(texts)],
    )


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(before: list[torch.Tensor], model: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_in_the_warm_up_the_critic_learns_alone(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, critic_warmup_steps=1)
    trainer.begin()
    actor, critic = weights(trainer.actor), weights(trainer.critic)  # type: ignore[arg-type]
    trainer.begin_step(1)
    trainer.make_experience()
    first = trainer.ppo_train(1)
    assert same(actor, trainer.actor) and not same(critic, trainer.critic)  # type: ignore[arg-type]
    assert "train/loss" not in first and first["critic/loss"] > 0
    trainer.begin_step(2)
    trainer.make_experience()
    second = trainer.ppo_train(2)
    assert not same(actor, trainer.actor) and "train/loss" in second
    # 2 steps of 8 completions in each of the two rollouts; the schedule of the critic alone has moved: its fourth step is made at a quarter
    assert second["critic/lr"] == pytest.approx(1e-2 / 4) and second["train/lr"] == pytest.approx(1e-2)


def test_a_run_with_a_critic_reports_it(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = rows[-1]
    assert {"critic/loss", "critic/clip_fraction", "critic/grad_norm", "critic/lr", "train/loss"} <= last.keys()


def test_the_advantages_of_a_rollout_are_gae_s_whitened(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, gamma=0.9, lambd=0.5)
    trainer.begin()
    trainer.begin_step(1)
    trainer.make_experience()
    rows = rows_of(trainer.experience)
    raw = []
    for row in rows:
        mask, rewards = torch.ones(1, len(row.values)), torch.tensor([row.rewards])
        batch = AdvantageInput(rewards=rewards, group_ids=torch.tensor([0]), mask=mask, values=row.values[None], gamma=0.9, lambd=0.5)
        found = gae(batch)
        raw.append(found.advantages[0])
        assert found.returns is not None
        torch.testing.assert_close(row.returns, found.returns[0])
    every = torch.cat(raw)
    for row, advantages in zip(rows, raw, strict=True):
        torch.testing.assert_close(row.advantages, (advantages - every.mean()) / every.std(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("left_out", "words"), [("critic", "needs a critic, found critic=None"), ("critic_optim", "needs a critic, found critic_optim=None")]
)
def test_gae_without_a_critic_is_refused(tmp_path: Path, left_out: str, words: str) -> None:
    trainer = make_trainer(tmp_path)
    arguments: dict[str, Any] = dict(
        strategy=trainer.strategy, actor=trainer.actor, critic=trainer.critic, reward_model=odd_tokens, actor_optim=trainer.actor_optim,
        critic_optim=trainer.critic_optim, tokenizer=trainer.tokenizer, prompts=trainer.prompts,
    )  # fmt: skip
    with pytest.raises(ValueError, match=words):
        SPMDPPOTrainer(**arguments | {left_out: None})


def test_a_resumed_run_with_a_critic_is_the_same_run(tmp_path: Path) -> None:
    changes: dict[str, Any] = dict(save_every=1, keep_checkpoints=0, max_steps=4, num_episodes=9, normalize_rewards=True)
    expected = make_trainer(tmp_path / "whole", **changes)
    expected.fit()
    step = tmp_path / "whole" / "run" / "checkpoints" / "step-2"
    assert {path.name for path in step.iterdir()} == {"actor", "critic", "trainer.json"}
    resumed = make_trainer(tmp_path / "resumed", **changes, resume_from=str(step))
    resumed.fit()
    for mine, other in ((resumed.actor, expected.actor), (resumed.critic, expected.critic)):
        assert mine is not None and other is not None and same(weights(other), mine)
    assert resumed.state.snapshot()["reward_moments"] == expected.state.snapshot()["reward_moments"]
    rates = [t.critic_scheduler.get_last_lr() for t in (resumed, expected) if t.critic_scheduler is not None]
    assert rates[0] == rates[1] and len(rates) == 2
