"""A resumed run is the same run, to the last bit; a checkpoint that does not fit is refused in one line."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightrft.config.schema import Config
from lightrft.errors import CheckpointError, RewardError
from lightrft.run.checkpoint_folder import damage, find, folder_of, read, saved_in, seal
from lightrft.testing.small_trainer import make_trainer, odd_tokens, prompts
from lightrft.trainer import SPMDPPOTrainer
from lightrft.trainer.resume import changed_settings, check_resume
from lightrft.trainer.resume_settings import BELONG_TO_STATE, OF_NO_CONSEQUENCE, TAKES_EFFECT
from lightrft.types import Sample

STEPS = 6
SAME: dict[str, Any] = dict(
    engine_type="hf", max_steps=STEPS, num_episodes=9, eval_every=2, save_every=2, keep_checkpoints=0, kl_coef=0.1, verify_sync_every=3,
    temperature=0.8, lr_scheduler="cosine", n_samples_per_prompt=4, train_batch_size=8, dead_reward_steps=2,
)  # fmt: skip


def rows(folder: Path) -> list[dict[str, Any]]:
    """What a run logged, without what time and memory it took."""
    found = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "memory/")) and k != "rollout/tokens_per_s"} for row in found]


def everything(trainer: SPMDPPOTrainer) -> list[torch.Tensor]:
    state = trainer.actor_optim.state_dict()["state"]
    return [*trainer.actor.state_dict().values(), *(value for moments in state.values() for value in moments.values())]


def assert_same(a: SPMDPPOTrainer, b: SPMDPPOTrainer) -> None:
    assert all(torch.equal(x, y) for x, y in zip(everything(a), everything(b), strict=True))
    assert a.strategy.weight_version == b.strategy.weight_version
    assert a.sampler.state_dict() == b.sampler.state_dict()
    assert a.state.snapshot()["engine"] == b.state.snapshot()["engine"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SPMDPPOTrainer]:
    """A run of six steps that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = make_trainer(folder, **SAME)
    trainer.fit()
    return folder, trainer


@pytest.mark.parametrize("step", [2, 4])
def test_a_resumed_run_is_bitwise_the_run_that_nothing_interrupted(tmp_path: Path, whole: tuple[Path, SPMDPPOTrainer], step: int) -> None:
    folder, expected = whole
    torch.rand(7)  # the generators are anywhere
    resumed = make_trainer(tmp_path, **SAME | {"resume_from": str(folder_of(folder / "run", step))})
    summary = resumed.fit()
    assert_same(resumed, expected)
    assert rows(tmp_path) == rows(folder) and len(rows(folder)) == STEPS + 1, "in another folder the log begins with the earlier steps"
    assert summary["eval_before"] == expected.report.before and summary["eval_after"] == expected.report.after
    assert torch.equal(resumed.state.snapshot()["random"]["torch"], expected.state.snapshot()["random"]["torch"])


def test_what_moves_from_rollout_to_rollout_goes_on_where_it_was(tmp_path: Path) -> None:
    changes = SAME | dict(kl_target=0.5, kl_horizon=20.0, normalize_rewards=True, dynamic_sampling=True, max_steps=4, save_every=1)
    expected = make_trainer(tmp_path / "whole", **changes)
    expected.fit()
    resumed = make_trainer(tmp_path / "resumed", **changes | {"resume_from": str(folder_of(tmp_path / "whole" / "run", 2))})
    resumed.fit()
    assert_same(resumed, expected)
    mine, other = resumed.state.snapshot(), expected.state.snapshot()
    for name in ("kl_control", "reward_moments", "sampling", "monitors", "dead_rewards", "sampler"):
        assert mine[name] == other[name], name
    assert other["kl_control"]["coef"] != 0.1 and other["reward_moments"]["count"] > 0
    assert rows(tmp_path / "resumed") == rows(tmp_path / "whole")


def test_sources_with_weights_go_on_where_they_were(tmp_path: Path) -> None:
    """Of 4 and 2 rows with weights 1 and 3: rollouts babb of 1 and 3 prompts, a pass of 14."""
    two = [replace(prompt, source="few" if index < 4 else "many") for index, prompt in enumerate(prompts())]
    changes = SAME | dict(prompt_data="few.jsonl,many.jsonl", prompt_data_weights=[1, 3])
    expected = make_trainer(tmp_path / "whole", train_prompts=two, **changes)
    expected.fit()
    source = str(folder_of(tmp_path / "whole" / "run", 2))
    resumed = make_trainer(tmp_path / "resumed", train_prompts=two, **changes | {"resume_from": source})
    resumed.fit()
    assert_same(resumed, expected)
    assert rows(tmp_path / "resumed") == rows(tmp_path / "whole")
    logged = rows(tmp_path / "whole")[1:]
    assert {(row["source/few/fraction"], row["source/many/fraction"]) for row in logged} == {(0.25, 0.75)}
    for row in logged:
        assert 0.25 * row["source/few/reward"] + 0.75 * row["source/many/reward"] == pytest.approx(row["rollout/reward"])
    assert expected.sampler.state_dict()["taken"] == [6, 18] and expected.sampler.epoch == 24 / 14
    other = SAME | dict(prompt_data="few.jsonl,many.jsonl", resume_from=source)
    with pytest.raises(CheckpointError, match=r"saved with prompt_data_weights=\[1.0, 3.0\], here \[\]"):
        make_trainer(tmp_path / "other", train_prompts=two, **other).fit()


def test_a_failing_reward_leaves_a_checkpoint_of_the_last_whole_step(
    tmp_path: Path, whole: tuple[Path, SPMDPPOTrainer], capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def dies(samples: Sequence[Sample]) -> list[float]:
        calls.append(1)
        if len(calls) == 6:  # an evaluation, three rollouts and an evaluation come before
            raise ConnectionError("the server is gone")
        return odd_tokens(samples)

    dies.__name__ = "odd_tokens"
    with pytest.raises(RewardError, match="the server is gone"):
        make_trainer(tmp_path, reward=dies, **SAME | {"save_every": 0, "keep_checkpoints": 3}).fit()
    [saved] = saved_in(tmp_path / "run")
    assert saved.step == 3 and f"saved {saved.folder} before the run stops; go on with --resume_from" in capsys.readouterr().out
    resumed = make_trainer(tmp_path, **SAME | {"resume_from": "latest"})
    resumed.fit()
    assert_same(resumed, whole[1])
    assert rows(tmp_path) == rows(whole[0]), "in the same folder the log goes on, and no step is there twice"


def test_an_error_after_the_models_changed_saves_nothing_old(tmp_path: Path) -> None:
    def breaks(trainer: SPMDPPOTrainer, experience: Any) -> dict[str, float]:
        SPMDPPOTrainer.update(trainer, experience)
        raise RewardError("half-way")

    with pytest.raises(RewardError, match="half-way"):
        make_trainer(tmp_path, phases={"update": breaks}).fit()
    assert saved_in(tmp_path / "run") == []


def test_a_failing_evaluation_leaves_a_checkpoint_of_the_step_that_it_followed(tmp_path: Path) -> None:
    def breaks(trainer: SPMDPPOTrainer) -> dict[str, float]:
        if trainer.step:
            raise RewardError("no evaluation")
        return {}

    with pytest.raises(RewardError, match="no evaluation"):
        make_trainer(tmp_path, phases={"evaluate": breaks}, eval_every=1).fit()
    assert [one.step for one in saved_in(tmp_path / "run")] == [1]


def test_sigterm_saves_and_returns(tmp_path: Path, whole: tuple[Path, SPMDPPOTrainer]) -> None:
    def told(trainer: SPMDPPOTrainer, experience: Any) -> Any:
        if trainer.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return SPMDPPOTrainer.reward(trainer, experience)

    before = signal.getsignal(signal.SIGTERM)
    summary = make_trainer(tmp_path, phases={"reward": told}, **SAME).fit()
    assert signal.getsignal(signal.SIGTERM) is before
    assert summary["stopped"] == "SIGTERM" and summary["steps"] == 3 and summary["model_dir"] is None
    assert summary["checkpoint"] == str(folder_of(tmp_path / "run", 3))
    resumed = make_trainer(tmp_path, **SAME | {"resume_from": "latest"})
    resumed.fit()
    assert_same(resumed, whole[1])


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    values = iter([0.0, 0.9, 0.1, 0.8, 0.2, 0.3, 0.1])

    def evaluated(trainer: SPMDPPOTrainer) -> dict[str, float]:
        return {"eval/reward": next(values)}

    changes = SAME | dict(eval_every=1, save_every=1, keep_checkpoints=2, keep_best=2)
    make_trainer(tmp_path, phases={"evaluate": evaluated}, **changes).fit()
    assert [(one.step, one.value) for one in saved_in(tmp_path / "run")] == [(1, 0.9), (3, 0.8), (5, 0.3), (6, 0.1)]
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-1", "step-3", "step-5", "step-6"]


def test_a_save_that_fails_leaves_the_older_one_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightrft.distributed import atomic_folder

    replace, seen = atomic_folder.replace, []

    def full(temporary: Path, folder: Path) -> None:
        seen.append(folder.name)
        if folder.name == "step-2":
            raise OSError(28, "No space left on device")
        replace(temporary, folder)

    monkeypatch.setattr(atomic_folder, "replace", full)
    with pytest.raises(CheckpointError, match="step-2': No space left on device"):
        make_trainer(tmp_path, save_every=1).fit()
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-1"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 1e-3}, "saved with learning_rate=0.01, here 0.001; set it as it was"),
        ({"seed": 2}, "saved with seed=1, here 2"),
        ({"overwrite_output_dir": True}, "overwrite_output_dir would remove the run"),
        ({"resume_from": "step-2"}, "resume_from='step-2' is no checkpoint"),
        ({"output_dir": "nowhere"}, "resume_from='latest': no checkpoint in 'nowhere/checkpoints'"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_model_loads(whole: tuple[Path, SPMDPPOTrainer], changes: dict[str, Any], words: str) -> None:
    settings = whole[1].config.model_copy(update={"resume_from": "latest", **changes})
    with pytest.raises(CheckpointError) as caught:
        check_resume(settings)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_every_setting_is_refused_told_or_of_no_consequence() -> None:
    lists = [*BELONG_TO_STATE, *OF_NO_CONSEQUENCE, *TAKES_EFFECT]
    assert sorted(lists) == sorted(Config.model_fields), "put a new setting into one of the lists of resume_settings.py"


@pytest.mark.parametrize("name", Config.model_fields)
def test_what_a_changed_setting_does_to_a_resumed_run(name: str) -> None:
    saved = Config().model_dump()
    now: Any = SimpleNamespace(model_dump=lambda: saved | {name: "another value"})
    if name in BELONG_TO_STATE:
        with pytest.raises(CheckpointError, match=f"saved with {name}=.*, here 'another value'; set it as it was"):
            changed_settings(saved, now)
    else:
        told = [] if name in OF_NO_CONSEQUENCE else [f"{name}: {saved[name]!r} -> 'another value'"]
        assert changed_settings(saved, now) == told


def test_a_changed_kl_coef_takes_effect_while_it_is_fixed_and_is_refused_while_it_adapts(tmp_path: Path, whole: Any) -> None:
    last = str(folder_of(whole[0] / "run", 4))
    resumed = make_trainer(tmp_path, **SAME | {"resume_from": last, "kl_coef": 50.0})
    resumed.fit()
    assert resumed.experience_maker.kl_control.coef == 50.0
    assert any(not torch.equal(x, y) for x, y in zip(everything(resumed), everything(whole[1]), strict=True))
    adaptive = Config(kl_coef=0.1, kl_target=1.0)
    with pytest.raises(CheckpointError, match="kl_coef=0.1, here 0.2"):
        changed_settings(adaptive.model_dump(), adaptive.model_copy(update={"kl_coef": 0.2}))


def test_an_older_checkpoint_of_the_same_folder_is_refused_while_newer_ones_are_there(whole: tuple[Path, SPMDPPOTrainer]) -> None:
    folder = folder_of(whole[0] / "run", 2)
    with pytest.raises(CheckpointError, match=r"newer checkpoints \(step-4, step-6\)"):
        check_resume(whole[1].config.model_copy(update={"resume_from": str(folder)}))
    assert check_resume(whole[1].config.model_copy(update={"resume_from": str(folder), "output_dir": "elsewhere"})) == folder


def test_changes_that_matter_are_told(tmp_path: Path, whole: tuple[Path, SPMDPPOTrainer], capsys: pytest.CaptureFixture[str]) -> None:
    last = str(folder_of(whole[0] / "run", 4))
    make_trainer(tmp_path, **SAME | {"resume_from": last, "temperature": 0.9, "plot_every": 0, "loggers": []}).fit()
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("resume:")]
    assert told == ["resume: changed since the checkpoint: temperature: 0.8 -> 0.9"]


def test_other_prompts_are_refused(tmp_path: Path, whole: tuple[Path, SPMDPPOTrainer]) -> None:
    trainer = make_trainer(tmp_path, **SAME | {"resume_from": str(folder_of(whole[0] / "run", 4))})
    other = SPMDPPOTrainer(
        strategy=trainer.strategy, actor=trainer.actor, initial_model=trainer.initial_model, reward_model=odd_tokens,
        actor_optim=trainer.actor_optim, tokenizer=trainer.tokenizer, prompts=list(reversed(trainer.prompts)),
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="not those that the run began with"):
        other.fit()


@pytest.mark.parametrize("damage", ["trainer.json", "actor/state.pt", "actor/manifest.json"])
def test_a_damaged_checkpoint_is_one_line(tmp_path: Path, whole: tuple[Path, SPMDPPOTrainer], damage: str) -> None:
    copy = folder_of(tmp_path / "copy", 4)
    shutil.copytree(folder_of(whole[0] / "run", 4), copy)
    (copy / damage).write_bytes((copy / damage).read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        make_trainer(tmp_path, **SAME | {"resume_from": str(copy)}).fit()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../../../secret", "/dev/zero", "pipe", "a\nb", "", "."])
def test_a_manifest_cannot_name_what_is_no_file_of_the_checkpoint(tmp_path: Path, name: str) -> None:
    """With checksums that fit. Nothing is opened, so nothing hangs."""
    folder = folder_of(tmp_path, 3)
    (folder / "actor").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    os.mkfifo(folder / "actor" / "pipe")
    (folder / "actor" / "manifest.json").write_text(json.dumps({"files": {name: "0" * 64}}))
    seal(folder, {"step": 3, "config": {}})
    found = damage(folder)
    assert found.endswith(" is missing") and "\n" not in found


def altered(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    about = json.loads((folder / "trainer.json").read_text())
    change(about)
    (folder / "trainer.json").write_text(json.dumps(about, indent=2))


def test_every_flipped_bit_of_trainer_json_is_refused(tmp_path: Path, whole: tuple[Path, SPMDPPOTrainer]) -> None:
    copy = folder_of(tmp_path / "copy", 4)
    shutil.copytree(folder_of(whole[0] / "run", 4), copy)
    path = copy / "trainer.json"
    before = path.read_bytes()
    saved = read(copy)
    draw = random.Random(0)
    for place in [before.index(b'"step"') + 8, *draw.sample(range(len(before)), 200)]:
        flipped = bytearray(before)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        assert read_or_words(copy) in (saved, "is damaged")  # saved: white space, or an escape for the same character


def read_or_words(folder: Path) -> dict[str, Any] | str:
    try:
        return read(folder)
    except CheckpointError as error:
        return "is damaged" if "is damaged" in str(error) else str(error)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: altered(folder, lambda about: about.update(step=3)), "trainer.json is not what was saved"),
        (lambda folder: altered(folder, lambda about: about["config"].update(kl_coef=50)), "trainer.json is not what was saved"),
        (lambda folder: altered(folder, lambda about: about.pop("checksum")), "trainer.json cannot be read"),
        (lambda folder: folder.rename(folder_of(folder.parents[1], 9)), "its name says step 9, its trainer.json step 4"),
        (lambda folder: shutil.rmtree(folder / "actor"), "actor/manifest.json is missing"),
        (lambda folder: shutil.copytree(folder / "actor", folder / "critic"), "critic/manifest.json is not what was saved"),
        (lambda folder: exchange(folder, folder.parents[2] / "other"), "actor/manifest.json is not what was saved"),
        (lambda folder: (folder / "actor" / "rank-00009.pt").write_bytes(b""), "rank-00009.pt was not saved with it"),
    ],
)
def test_name_step_and_content_of_a_checkpoint_agree(
    tmp_path: Path, whole: tuple[Path, SPMDPPOTrainer], change: Callable[[Path], object], words: str
) -> None:
    shutil.copytree(folder_of(whole[0] / "run", 2) / "actor", tmp_path / "other")
    copy = folder_of(tmp_path / "copy", 4)
    shutil.copytree(folder_of(whole[0] / "run", 4), copy)
    change(copy)
    changed = next(copy.parent.iterdir())
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        make_trainer(tmp_path, **SAME | {"resume_from": str(changed)}).fit()
    assert words in str(caught.value)


def exchange(folder: Path, other: Path) -> None:
    shutil.rmtree(folder / "actor")
    shutil.copytree(other, folder / "actor")


@pytest.mark.parametrize("damage", ["trainer.json", "actor/manifest.json", "actor/state.pt", "actor/extra.pt"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, whole: tuple[Path, SPMDPPOTrainer], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole[0] / "run" / "checkpoints", run / "checkpoints")
    broken = folder_of(run, STEPS) / damage
    broken.write_bytes(broken.read_bytes()[:-7] + b"damaged")
    settings = SAME | {"resume_from": "latest"}
    check_resume(make_trainer(tmp_path, **settings).config)
    resumed = make_trainer(tmp_path, **settings)
    resumed.fit()
    assert_same(resumed, whole[1])
    out = capsys.readouterr().out
    assert "step-6' is damaged: " in out and "; the one before it is tried" in out and "step-4, rollout 4 of 6" in out


def test_a_save_without_room_is_refused_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CheckpointError, match=r"step-1': no space left on device: about \d+ MiB are needed, 0 MiB free at .*; make room"):
        make_trainer(tmp_path, save_every=1).fit()
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_saves_beside_the_training_are_the_same_checkpoints(tmp_path: Path, whole: tuple[Path, SPMDPPOTrainer]) -> None:
    trainer = make_trainer(tmp_path / "cut", **SAME | {"async_save": True, "save_every": 1, "keep_checkpoints": 0})
    trainer.fit()
    assert_same(trainer, whole[1])
    assert [one.step for one in saved_in(tmp_path / "cut" / "run")] == list(range(1, STEPS + 1))
    assert not [path.name for path in (tmp_path / "cut" / "run" / "checkpoints").iterdir() if path.name.startswith(".")]
    assert all(damage(one.folder) == "" for one in saved_in(tmp_path / "cut" / "run"))
    source = str(folder_of(tmp_path / "cut" / "run", 3))
    resumed = make_trainer(tmp_path / "resumed", **SAME | {"async_save": True, "resume_from": source})
    resumed.fit()
    assert_same(resumed, whole[1])


def test_training_goes_on_while_a_checkpoint_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first save is held until the next rollout has been rewarded: what trains does not wait for it, the next save does."""
    from lightrft.distributed import atomic_folder

    replace, goes_on, seen = atomic_folder.replace, threading.Event(), []

    def held(temporary: Path, folder: Path) -> None:
        assert goes_on.wait(60)
        replace(temporary, folder)

    def rewarded(trainer: SPMDPPOTrainer, experience: Any) -> Any:
        seen.append((trainer.step, [one.step for one in saved_in(tmp_path / "run")]))
        if trainer.step == 2:
            goes_on.set()
        return SPMDPPOTrainer.reward(trainer, experience)

    monkeypatch.setattr(atomic_folder, "replace", held)
    make_trainer(tmp_path, phases={"reward": rewarded}, async_save=True, save_every=1, keep_checkpoints=0, max_steps=3).fit()
    assert seen[:2] == [(1, []), (2, [])] and [one.step for one in saved_in(tmp_path / "run")] == [1, 2, 3]


@pytest.mark.parametrize("step", [1, 3])
def test_a_save_beside_the_training_that_fails_ends_the_run_and_leaves_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    from lightrft.distributed import atomic_folder

    replace = atomic_folder.replace

    def full(temporary: Path, folder: Path) -> None:
        if folder.name == f"step-{step}":
            raise OSError(28, "No space left on device")
        replace(temporary, folder)

    monkeypatch.setattr(atomic_folder, "replace", full)
    with pytest.raises(CheckpointError, match=f"step-{step}': No space left on device; what was there before is unchanged"):
        make_trainer(tmp_path, async_save=True, save_every=1, keep_checkpoints=0, max_steps=3).fit()
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == (["step-2"] if step == 1 else ["step-1", "step-2"]), "the marked step is saved when the error is heard"


def test_a_checkpoint_every_so_many_minutes(tmp_path: Path) -> None:
    make_trainer(tmp_path, **SAME | {"save_every": 0, "save_every_minutes": 1e-9, "keep_checkpoints": 0}).fit()
    assert [one.step for one in saved_in(tmp_path / "run")] == list(range(1, STEPS + 1))


def test_latest_survives_a_kill_between_two_renames(tmp_path: Path, whole: tuple[Path, SPMDPPOTrainer]) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole[0] / "run" / "checkpoints", run / "checkpoints")
    last = folder_of(run, STEPS)
    last.rename(last.with_name(f".{last.name}.old"))
    (run / "checkpoints" / ".step-8.tmp").mkdir()
    assert find("latest", run=run) == last and read(last)["step"] == STEPS
    resumed = make_trainer(tmp_path, **SAME | {"resume_from": "latest"})
    assert resumed.fit()["steps"] == STEPS
    assert_same(resumed, whole[1])


def test_random_states_of_another_number_of_ranks_are_left_out_and_told(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    saved = trainer.state.gathered(trainer.state.snapshot())
    saved["random"] = saved["random"] * 2
    assert trainer.state.load(saved) == ["random of 2 ranks does not fit 1 and starts anew"]
    del saved["sampler"]
    with pytest.raises(CheckpointError, match="has no state of sampler"):
        trainer.state.load(saved)
    with pytest.raises(ValueError, match="'sampler' of the run's state is registered already"):
        trainer.state.register("sampler", trainer.sampler)
