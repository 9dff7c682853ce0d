"""ReMax's baseline comes from one greedy completion of each prompt, scored once."""

from collections.abc import Sequence
from typing import Any

import torch

from lightrft.algorithms.remax import remax
from lightrft.config.load import make_config
from lightrft.data.prompts import Prompt
from lightrft.experience.pipeline import ExperienceMaker
from lightrft.rewards.load import NamedReward
from lightrft.strategy.factory import get_strategy
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_causal_lm, tiny_model_folder, tiny_tokenizer
from lightrft.types import Sample

ALPHABET = "0123456789 =+"


def test_the_baseline_is_the_greedy_completion_s_reward(tmp_path: Any) -> None:
    config = make_config(
        {
            "strategy": "fake", "engine_type": "hf", "advantage_estimator": "remax", "n_samples_per_prompt": 2,
            "generate_max_len": 6, "prompt_max_len": 16,
            "logprob_gap_prompts": 0, "verify_sync_every": 0,
        }
    )  # fmt: skip
    strategy = get_strategy(config, registry=fake_registry())
    strategy.setup_inference_engine(config, model_path=str(tiny_model_folder(tmp_path / "base", alphabet=ALPHABET, vocab_size=16, seed=2)))
    tokenizer = tiny_tokenizer(ALPHABET)
    seen: list[list[Sample]] = []

    def length(samples: Sequence[Sample]) -> list[float]:
        seen.append(list(samples))
        return [float(len(sample.completion)) for sample in samples]

    maker = ExperienceMaker(
        strategy=strategy,
        config=config,
        tokenizer=tokenizer,
        actor=tiny_causal_lm(seed=2, vocab_size=16),
        initial_model=None,
        rewards=[NamedReward(name="length", function=length)],
        advantage_estimator=remax,
        greedy=True,
    )
    texts = ["1 + 1 =", "7 + 2 ="]
    prompts = [Prompt(index=i, text=t, token_ids=tuple(tokenizer(t)["input_ids"]), answer="", row={}) for i, t in enumerate(texts)]
    rows = maker.reward(maker.generate(prompts))
    expected = strategy.gather_and_generate({"temperature": 0.0, "max_new_tokens": 6}, [list(p.token_ids) for p in prompts])
    texts = tokenizer.batch_decode([list(o.completions[0].token_ids) for o in expected for _ in "ab"], skip_special_tokens=True)
    assert [sample and sample.completion for sample in rows.greedy] == texts
    assert [len(samples) for samples in seen] == [4, 2], "four samples, and each prompt's greedy completion once"
    assert rows.baselines.tolist() == [len(text) for text in texts]
    trained = maker.advantages(maker.score(rows, seed=0))
    for advantages, reward, baseline in zip(trained.by_sequence(trained.advantages), rows.rewards, rows.baselines, strict=True):
        torch.testing.assert_close(advantages, torch.full((len(advantages),), float(reward - baseline)))
