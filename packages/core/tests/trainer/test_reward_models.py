"""Reward models give what they give alone, in their own template, beside functions; a wrong template is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lightrft.config.load import make_config
from lightrft.config.reward_checks import check_rewards
from lightrft.data.prompts import Prompt
from lightrft.errors import RewardError
from lightrft.models.attention import has_our_attention
from lightrft.models.text_rows import PackedTexts, PaddedTexts
from lightrft.plugins.registry import Registry
from lightrft.rewards.load import NamedReward, load_rewards
from lightrft.rewards.models.classifier import RewardModel
from lightrft.rewards.models.template import Rendering, template_fault
from lightrft.rewards.score import score
from lightrft.strategy.factory import get_strategy
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.packed_rows import CAPPED, SMALL
from lightrft.testing.small_trainer import make_trainer, odd_tokens
from lightrft.testing.tiny import tiny_reward_folder, tiny_tokenizer
from lightrft.trainer.reward_models import build_rewards, unseen_images
from lightrft.trainer.rows import text_rows
from lightrft.types import Sample

CHAT = "{% for turn in messages %}{{ turn.role[0] }}{{ turn.content }}\n{% endfor %}"
ALPHABET = "0123456789 =+-*/abcdefghijklmnopqrstuvwxyz.,?\n"
SAMPLES = [Sample(prompt=f"{n} + {n} =", completion="7" * n, row={"prompt": f"{n} + {n} ="}) for n in range(1, 6)]


def config_of(folder: Path, **changes: Any) -> Any:
    values = {"strategy": "fake", "engine_type": "fake", "reward": [f"judge=model:{folder}"], "micro_rollout_batch_size": 2}
    return make_config(values | changes)


def alone(folder: Path, text: str) -> float:
    """What transformers says of one text, without padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = tiny_tokenizer(ALPHABET)(text)["input_ids"]
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids])).logits[0, 0])


def loaded(folder: Path, **changes: Any) -> RewardModel:
    config = config_of(folder, **changes)
    [reward] = build_rewards(config, get_strategy(config, registry=fake_registry()))
    assert isinstance(reward.function, RewardModel) and reward.name == "judge"
    return reward.function


def test_numbers_in_batches_are_those_of_each_text_alone(tmp_path: Path) -> None:
    folder = tiny_reward_folder(tmp_path / "rm", seed=3)
    found = loaded(folder)(SAMPLES)
    assert found == pytest.approx([alone(folder, s.prompt + s.completion) for s in SAMPLES], abs=1e-5)
    assert len({round(value, 4) for value in found}) == 5


TEXTS = [[3, 4, 5], [6] * 9, [7, 3], [], [4, 5, 6, 7, 8]]
"""Ragged, one longer than the budget of the tests, one without tokens."""


def classifier(kind: str) -> Any:
    """A random one of a family, with two layers."""
    import transformers as tf

    sizes = {name: value for name, value in SMALL.items() if name != "pad_token_id"} | {"num_labels": 1}
    made = {
        "llama": lambda: tf.LlamaForSequenceClassification(tf.LlamaConfig(**sizes)),
        "gemma2": lambda: tf.Gemma2ForSequenceClassification(tf.Gemma2Config(**CAPPED | {"num_labels": 1})),
        "gpt2": lambda: tf.GPT2ForSequenceClassification(tf.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, num_labels=1)),
        "bert": lambda: tf.BertForSequenceClassification(
            tf.BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=1)
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = made[kind]().eval()
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    model.config.pad_token_id = 0
    return model


def rows_of(kind: str, **settings: Any) -> Any:
    config = make_config({"strategy": "single", "micro_rollout_batch_size": 2, **settings})
    strategy = get_strategy(config)
    return text_rows(strategy.prepare_model(classifier(kind)), name="judge", config=config, strategy=strategy)


def scores_of(rows: Any) -> list[float]:
    found = [0.0] * len(TEXTS)
    with torch.no_grad():
        for part in rows.parts(TEXTS):
            for place, value in zip(part, rows.scores([TEXTS[place] for place in part]), strict=True):
                found[place] = value
        assert rows.scores([]) == []  # a rank without texts
    return found


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_packed_texts_have_the_scores_of_padded_ones(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    packed, padded = rows_of(kind, packing_samples=True, max_tokens_per_micro_batch=8), rows_of(kind)
    assert isinstance(packed, PackedTexts) and isinstance(padded, PaddedTexts) and capsys.readouterr().out == ""
    assert [sum(len(TEXTS[place]) for place in part) for part in packed.parts(TEXTS)] == [9, 8, 2]
    assert scores_of(packed) == pytest.approx(scores_of(padded), abs=1e-5)


def test_a_soft_cap_counts_in_padded_rows_too() -> None:
    """transformers' sdpa drops it."""
    model = classifier("gemma2")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        alone = [float(model(input_ids=torch.tensor([text])).logits[0, 0]) for text in TEXTS if text]
    found = scores_of(rows_of("gemma2"))
    assert [found[place] for place, text in enumerate(TEXTS) if text] == pytest.approx(alone, abs=1e-5)


def test_a_model_that_cannot_be_packed_reads_padded_rows_and_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of("bert", packing_samples=True)
    assert isinstance(rows, PaddedTexts) and rows.model.config._attn_implementation != "lightrft"
    assert "note: reward model 'judge' reads padded rows: packing_samples=True: BertFor" in capsys.readouterr().out


def test_a_score_that_the_model_changes_afterwards_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    """Planted: what leaves the model is not the score of the last token."""
    config = make_config({"strategy": "single", "packing_samples": True})
    strategy, model = get_strategy(config), classifier("llama")
    model.register_forward_hook(lambda _model, _args, out: replace_logits(out))
    rows = text_rows(strategy.prepare_model(model), name="judge", config=config, strategy=strategy)
    assert isinstance(rows, PaddedTexts) and not has_our_attention(model)
    assert "and scores its last token" in capsys.readouterr().out


def replace_logits(out: Any) -> Any:
    out.logits = out.logits.sigmoid()
    return out


def test_a_model_beside_images_is_told(tmp_path: Path) -> None:
    judge = NamedReward(name="judge", function=loaded(tiny_reward_folder(tmp_path / "rm", seed=3)))
    seeing = NamedReward(name="odd", function=odd_tokens)
    plain = Prompt(index=0, text="1 =", token_ids=(3,), answer=None, row={})
    shown = replace(plain, images=("picture.png",))
    assert unseen_images([judge], [plain]) is None and unseen_images([seeing], [shown]) is None
    found = unseen_images([judge, seeing], [plain, shown, shown])
    assert found is not None and found[0] == "reward_model_reads_text"
    assert found[1].startswith("2 of 3 prompts have images, and reward models read text alone ('judge'): their scores")


def test_its_own_chat_template_is_written(tmp_path: Path) -> None:
    folder = tiny_reward_folder(tmp_path / "rm", seed=3, chat_template=CHAT)
    [found] = loaded(folder, prompt_template="a {prompt}")(SAMPLES[:1])
    assert found == pytest.approx(alone(folder, "ua 1 + 1 =\na7\n"), abs=1e-5)
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "3"}]
    [found] = loaded(folder)([Sample(prompt="rendered", completion="4", row={"prompt": turns})])
    assert found == pytest.approx(alone(folder, "u1\na2\nu3\na4\n"), abs=1e-5)


def test_a_text_that_is_too_long_loses_its_beginning(tmp_path: Path) -> None:
    folder = tiny_reward_folder(tmp_path / "rm", seed=3)
    [found] = loaded(folder, reward_max_len=4)([Sample(prompt="1 + 1 =", completion="78")])
    assert found == pytest.approx(alone(folder, " =78"), abs=1e-5)


def test_models_and_functions_in_one_run(tmp_path: Path) -> None:
    folder = tiny_reward_folder(tmp_path / "rm", alphabet="0123456789 =+", seed=3)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    trainer = make_trainer(tmp_path, reward=[odd_tokens])
    trainer = make_trainer(tmp_path / "run", reward=[odd_tokens, trainer.strategy.prepare_model(model)])
    summary = trainer.fit()
    assert [reward.name for reward in trainer.rewards] == ["odd_tokens", "rm"] and summary["steps"] == 2
    rows = [json.loads(line) for line in (tmp_path / "run" / "run" / "metrics.jsonl").read_text().splitlines()]
    last = rows[-2] if "reward/rm" in rows[-2] else rows[-1]
    assert last["rollout/reward"] == pytest.approx(last["reward/odd_tokens"] + last["reward/rm"], abs=1e-6)
    assert any("eval/rm" in row for row in rows)


def test_a_model_on_the_wrong_template_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_reward_folder(tmp_path / "rm", alphabet="0123456789 =+", seed=3)
    model = AutoModelForSequenceClassification.from_pretrained(folder)

    def marked(trainer: Any, batch: Any) -> Any:
        samples = tuple(Sample(prompt=f"<|im_start|>user\n{one.prompt}", completion=one.completion) for one in batch.samples)
        return type(trainer).reward(trainer, replace(batch, samples=samples))

    trainer = make_trainer(tmp_path, reward=[model], phases={"reward": marked}, eval_prompts=())
    warnings = trainer.fit()["warnings"]
    [row] = [row for row in warnings if row["name"] == "reward_model_template"]
    assert row["text"].startswith("reward model 'rm' on the wrong template: its input has '<|im_start|>'")
    assert capsys.readouterr().out.count(f"WARNING: {row['text']}") == 1


def test_what_shows_a_wrong_template() -> None:
    tokenizer = tiny_tokenizer(ALPHABET)
    assert template_fault(["1 + 1 = 2"], tokenizer=tokenizer, chats=False) == ""
    assert "its tokenizer has no chat template" in template_fault(["1"], tokenizer=tokenizer, chats=True)
    assert "'[INST]'" in template_fault(["[INST] 1 [/INST]"], tokenizer=tokenizer, chats=False)
    assert "are unknown to it" in template_fault(["ÄÖÜ 12"], tokenizer=tokenizer, chats=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|u|>", "<|a|>"]})
    tokenizer.chat_template = "{% for turn in messages %}<|{{ turn.role[0] }}|>{{ turn.content }}{% endfor %}"
    good = Rendering(input_key="prompt").text(SAMPLES[0], tokenizer=tokenizer)
    assert good == "<|u|>1 + 1 =<|a|>7" and template_fault([good], tokenizer=tokenizer, chats=True) == ""
    nested = "<|u|><|u|>1<|a|>2<|u|>3<|a|>4<|u|>5<|a|>7"
    assert "in one another" in template_fault([nested], tokenizer=tokenizer, chats=True)


def test_what_cannot_be_a_reward_model(tmp_path: Path) -> None:
    folder = tiny_reward_folder(tmp_path / "rm", num_labels=3)
    with pytest.raises(RewardError, match=r"reward model 'judge' has 3 outputs \(num_labels\), expected 1"):
        loaded(folder)
    with pytest.raises(RewardError, match="is a model, which needs a strategy"):
        load_rewards([f"model:{folder}"], weights=[], registry=Registry.discover())
    (tmp_path / "empty").mkdir()
    for reward, words in ((f"model:{tmp_path}/empty", "the folder has no config.json"), ("model:./gone", "no such folder")):
        [problem] = check_rewards(make_config({"reward": [reward]}), registry=Registry.discover())
        assert words in problem
    [problem] = check_rewards(make_config({"reward": ["format"], "reward_max_len": 8}), registry=Registry.discover())
    assert "reward_max_len=8 has no effect without a reward model" in problem


def named(name: str, value: float, seen: list[str]) -> NamedReward:
    def function(samples: Sequence[Sample]) -> list[float]:
        seen.extend(f"{name}:{s.prompt}" for s in samples)
        return [value] * len(samples)

    return NamedReward(name=name, function=function, weight=2.0)


def test_a_column_of_the_data_names_the_rewards_that_count() -> None:
    seen: list[str] = []
    rows: list[Any] = ["x", ["x", "y"], None, ["y"]]
    samples = [Sample(prompt=str(i), completion="c", row={"kind": kind}) for i, kind in enumerate(rows)]
    found = score(samples, rewards=[named("x", 1.0, seen), named("y", 10.0, seen)], reward_key="kind")
    assert found.total == [2.0, 22.0, 22.0, 20.0]
    assert found.parts == {"x": [1.0, 1.0, 1.0, None], "y": [None, 10.0, 10.0, 10.0]}
    assert seen == ["x:0", "x:1", "x:2", "y:1", "y:2", "y:3"]
    for value, words in (("z", "there is no reward 'z'"), ([], "names no reward"), (3, "names no reward")):
        with pytest.raises(RewardError, match=f"sample 0 .*{words}"):
            score([Sample(prompt="p", completion="c", row={"kind": value})], rewards=[named("x", 1.0, seen)], reward_key="kind")


def test_routed_rewards_in_a_run(tmp_path: Path) -> None:
    kinds = [{"kind": "left"}, {"kind": "right"}]
    prompts = [
        Prompt(
            index=i, text=f"{i} =", token_ids=tuple(tiny_tokenizer("0123456789 =+")(f"{i} =")["input_ids"]), answer="1", row=kinds[i % 2]
        )
        for i in range(4)
    ]
    seen: list[str] = []
    trainer = make_trainer(tmp_path, reward=[named("left", 1.0, seen), named("right", 3.0, seen)], reward_key="kind", eval_prompts=prompts)
    trainer.strategy.update_engine_weights(trainer.actor)
    metrics = trainer.evaluate()
    assert metrics["eval/left"] == 1.0 and metrics["eval/right"] == 3.0 and metrics["eval/reward"] == pytest.approx(4.0)
    assert {(one.partition(":")[0], int(one.partition(":")[2][0]) % 2) for one in seen} == {("left", 0), ("right", 1)}
