"""Episodes under a template that writes earlier turns anew: a context for each turn, one sequence, one reward, one advantage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightrft.batch.stages import Sampled
from lightrft.config.load import make_config
from lightrft.data.prompts import Prompt, load_prompts
from lightrft.errors import DataError
from lightrft.experience.environments import chat_settings
from lightrft.experience.episodes import Episodes
from lightrft.experience.gap import differences
from lightrft.experience.pipeline import ExperienceMaker
from lightrft.rewards.load import NamedReward
from lightrft.rollout.environment import Continue, End, Environment, Step, Turn
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.chat_styles import MISTRAL, style_folder, style_tokenizer
from lightrft.testing.fake_strategy import fake_registry
from lightrft.trainer.update import PolicyUpdate

TURN = 4


class Talk(Environment):
    """Ends after as many turns as the row says."""

    def start(self, row: Any) -> None:
        self.row = row

    def step(self, turn: Turn) -> Step:
        if turn.number + 1 == self.row["turns"]:
            return End()
        said = [{"role": "user", "content": f"no {turn.number}"}]
        return Continue(text="no") if self.row.get("plain") and turn.number == 0 else Continue(messages=said)


def first_is_right(samples: Any) -> list[float]:
    """1 for the first episode of each prompt; it is asked once for each episode."""
    calls.append(len(samples))
    return [float(at % 2 == 0) for at in range(len(samples))]


calls: list[int] = []


def maker(folder: Path, **settings: Any) -> ExperienceMaker:
    base = style_folder(folder / "base", MISTRAL, seed=2)
    config = make_config(
        dict(
            strategy="single", engine_type="hf", generate_max_len=120, prompt_max_len=60, n_samples_per_prompt=2, logprob_gap_prompts=8,
            environment=f"{__name__}:Talk", max_turns=3, turn_max_len=TURN, ignore_eos=True, apply_chat_template=True,
            system_prompt="be kind", rewritten_turns="split", micro_rollout_batch_size=4, rollout_batch_size=2, train_batch_size=4,
            micro_train_batch_size=4,
        )
        | settings
    )  # fmt: skip
    strategy = get_strategy(config, registry=fake_registry())
    strategy.setup_inference_engine(config, model_path=str(base))
    actor, optimizer = strategy.prepare_trainable(AutoModelForCausalLM.from_pretrained(base), optimizer=AdamWSettings(learning_rate=1e-2))
    tokenizer = style_tokenizer(MISTRAL)
    made = ExperienceMaker(
        strategy=strategy, config=config, tokenizer=tokenizer, actor=actor, initial_model=None,
        rewards=[NamedReward(name="first", function=first_is_right, weight=1.0)],
        advantage_estimator=strategy.registry.load("advantage", "dr_grpo"),
        episodes=Episodes(strategy=strategy, config=config, tokenizer=tokenizer),
    )  # fmt: skip
    vars(made)["update"] = PolicyUpdate(
        strategy=strategy, config=config, actor=actor, optimizer=optimizer, scheduler=None,
        policy_loss=strategy.registry.load("policy_loss", config.policy_loss),
    )  # fmt: skip
    return made


def prompts(folder: Path, made: ExperienceMaker, *rows: dict[str, Any]) -> list[Prompt]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {at}", **row}) + "\n" for at, row in enumerate(rows)))
    return load_prompts(
        str(path), tokenizer=made.tokenizer, input_key="prompt", label_key="", prompt_template="{prompt}", apply_chat_template=True,
        prompt_max_len=60, chat=chat_settings(made.config, registry=made.strategy.registry),
    ).prompts  # fmt: skip


def contexts(batch: Sampled, index: int) -> list[tuple[list[int], list[int]]]:
    """Of each context of a sequence: what was read, and what was sampled then."""
    start, end = batch.offsets[index : index + 2].tolist()
    begins = [at for at in range(start, end) if batch.begins[at]] + [end]
    found = []
    for a, b in zip(begins, begins[1:], strict=False):
        mask = batch.loss_mask[a:b].tolist()
        read = mask.index(True)
        assert all(mask[read:]) and not any(mask[:read])
        found.append((batch.token_ids[a : a + read].tolist(), batch.token_ids[a + read : b].tolist()))
    return found


def test_each_turn_is_sampled_from_the_conversation_as_the_template_writes_it_then(tmp_path: Path) -> None:
    made = maker(tmp_path)
    rows = prompts(tmp_path, made, {"turns": 1}, {"turns": 3})
    batch = made.generate(rows)
    tokenizer = made.tokenizer
    for index, (row, turns) in enumerate([(0, 1), (0, 1), (1, 3), (1, 3)]):
        told: list[dict[str, str]] = [{"role": "system", "content": "be kind"}, {"role": "user", "content": f"say {row}"}]
        found = contexts(batch, index)
        assert len(found) == turns
        for number, (read, sampled) in enumerate(found):
            text = tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True)
            assert read == tokenizer(text, add_special_tokens=False)["input_ids"] and len(sampled) == TURN
            words = tokenizer.decode(sampled, skip_special_tokens=False).removesuffix(tokenizer.eos_token)
            told += [{"role": "assistant", "content": words}, {"role": "user", "content": f"no {number}"}]
        sample = batch.samples[index]
        assert list(sample.token_ids) == [token for _, sampled in found for token in sampled]
        assert [who for who, _ in sample.episode.turns] == (["policy", "environment"] * turns)[:-1]  # type: ignore[union-attr]
    assert made.metrics.reduce(None)["episode/contexts"] == 2.0


def test_an_episode_earns_once_and_counts_once_in_its_group(tmp_path: Path) -> None:
    calls.clear()
    made = maker(tmp_path)
    rewarded = made.reward(made.generate(prompts(tmp_path, made, {"turns": 1}, {"turns": 3})))
    assert calls == [4] and rewarded.rewards.tolist() == [1.0, 0.0, 1.0, 0.0] and rewarded.group_ids.tolist() == [0, 0, 1, 1]
    batch = made.advantages(made.score(rewarded, seed=0))
    assert [values.tolist() for values in batch.by_sequence(batch.advantages)] == [[0.5] * 4, [-0.5] * 4, [0.5] * 12, [-0.5] * 12]
    gaps = torch.cat(differences(batch, made.scorer.run(rewarded, seed=0).untempered))
    assert len(gaps) == 2 * (4 + 12) and float(gaps.abs().max()) < 1e-5


@pytest.mark.parametrize("how", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("rows", [{}, {"packing_samples": True, "max_tokens_per_micro_batch": 200}], ids=["padded", "packed"])
def test_the_update_is_that_of_contexts_weighed_by_hand(tmp_path: Path, how: str, rows: dict[str, Any]) -> None:
    """The policy's gradient of one step: sum over contexts of advantage x weight x grad log p, each context read alone."""
    made: Any = maker(tmp_path, loss_aggregation=how, max_norm=0.0, **rows)
    batch = made.advantages(made.score(made.reward(made.generate(prompts(tmp_path, made, {"turns": 1}, {"turns": 3}))), seed=0))
    expected = 0.0
    for index, (advantage, tokens) in enumerate([(0.5, 4), (-0.5, 4), (0.5, 12), (-0.5, 12)]):
        weight = 1 / 32 if how == "token_mean" else 1 / (4 * tokens)
        for read, sampled in contexts(batch, index):
            logits = made.scorer.actor(input_ids=torch.tensor([[*read, *sampled]])).logits[0].log_softmax(-1)
            own = logits[len(read) - 1 : -1].gather(1, torch.tensor(sampled)[:, None])
            expected = expected - (own * advantage * weight).sum()
    expected.backward()  # type: ignore[attr-defined]
    norm = sum(float((p.grad**2).sum()) for p in made.scorer.actor.parameters() if p.grad is not None) ** 0.5
    made.scorer.actor.zero_grad()
    found = made.update.run(batch, seed=0)
    assert norm > 1e-3 and found["train/grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_an_episode_of_texts_and_messages_cannot_be_written_anew(tmp_path: Path) -> None:
    made = maker(tmp_path)
    made.generate(prompts(tmp_path, made, {"turns": 2}, {"turns": 3, "plain": True}))
    assert made.episodes is not None and "takes messages; the episode has token ids or text" in made.episodes.first_error
    assert made.metrics.reduce(None)["episode/env_error"] == 0.5


def test_without_the_setting_it_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="otherwise than before the last one.*set rewritten_turns to split"):
        maker(tmp_path, rewritten_turns="refuse")
