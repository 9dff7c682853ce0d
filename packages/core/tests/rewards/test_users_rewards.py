"""Rewards as users bring them: files with neighbours, async functions, None, other libraries' signatures, programs that may not run."""

from __future__ import annotations

import asyncio
import concurrent.futures.process  # noqa: F401  # stays imported, where the others of a reward go
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import lightrft
from lightrft.config.load import make_config
from lightrft.config.reward_checks import check_rewards
from lightrft.errors import CodePermissionError, ConfigError, RewardError
from lightrft.plugins.registry import Registry
from lightrft.rewards.adapters import OfTrl, adapted
from lightrft.rewards.code import code_reward
from lightrft.rewards.load import NamedReward, RewardFunction, load_rewards, rewards_of
from lightrft.rewards.score import Scores, not_applicable, score
from lightrft.rewards.trial import loading_problems, tried_apart
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.small_trainer import make_trainer
from lightrft.trainer.data_checks import columns_asked_for
from lightrft.types import Sample

ROWS: list[dict[str, Any]] = [{"prompt": "1+1", "answer": "2", "level": 3}, {"prompt": "2+2", "answer": "4"}]
SAMPLES = [Sample(prompt=f"Q: {row['prompt']}", completion=f"is {n}", answer=row["answer"], row=row) for n, row in enumerate(ROWS)]


@pytest.fixture(autouse=True)
def imports_as_before() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def load(name: str) -> RewardFunction:
    return load_rewards([name], weights=[], registry=Registry.discover())[0].function


def of(*functions: Any) -> Scores:
    return score(SAMPLES, rewards=[NamedReward(name=f"r{n}", function=f) for n, f in enumerate(functions)])


def test_none_is_not_applicable_kept_out_of_the_sum_and_counted() -> None:
    found = of(lambda samples: [None, 2.0], lambda samples: [0.5, 0.25])
    assert found.total == [0.5, 2.25] and found.parts["r0"] == [None, 2.0]
    assert not_applicable(found, SAMPLES) == {"r0": 1, "r1": 0}


def test_a_row_that_names_other_rewards_is_not_counted_as_not_applicable() -> None:
    samples = [Sample(prompt="p", completion="c", row={"kind": kind}) for kind in ("a", "b")]
    rewards = [NamedReward(name=name, function=lambda s: [None] * len(s)) for name in ("a", "b")]
    assert not_applicable(score(samples, rewards=rewards, reward_key="kind"), samples, reward_key="kind") == {"a": 1, "b": 1}


async def slow(samples: Sequence[Sample]) -> list[float]:
    async def one(sample: Sample) -> float:
        await asyncio.sleep(0)
        return float(sample.completion[-1])

    return list(await asyncio.gather(*map(one, samples)))


def test_an_async_reward_is_waited_for() -> None:
    assert of(slow).total == [0.0, 1.0]


def test_and_inside_a_running_event_loop_as_in_a_notebook() -> None:
    async def notebook() -> list[float]:
        return of(slow).total

    assert asyncio.run(notebook()) == [0.0, 1.0]


def test_an_async_reward_that_raises_names_its_line() -> None:
    async def fails(samples: Sequence[Sample]) -> list[float]:
        raise ValueError("later")

    with pytest.raises(RewardError, match=rf"raised ValueError: later \(on 2 samples\), at {__file__}:\d+ in fails"):
        of(fails)


def test_sys_exit_is_a_reward_that_failed(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"reward 'r0' failed: it called sys.exit\(0\) \(on 2 samples\)"):
        of(lambda samples: sys.exit(0))
    file = tmp_path / "leaves.py"
    file.write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(RewardError, match=rf"cannot be imported: it called sys.exit\(0\), at {file}:2 in <module>"):
        load(f"{file}:f")


def test_the_users_line_is_named_where_a_library_raises(tmp_path: Path) -> None:
    file = tmp_path / "parses.py"
    file.write_text("import json\n\ndef f(samples):\n    return [json.loads(s.completion) for s in samples]\n")
    with pytest.raises(RewardError, match=rf"raised JSONDecodeError: .*, at {file}:4 in "):
        of(load(f"{file}:f"))
    (tmp_path / "wrong.py").write_text("def f(samples):\n    return [1.0\n")
    with pytest.raises(RewardError, match=rf"cannot be imported: SyntaxError: .*, at {tmp_path / 'wrong.py'}:2"):
        load(f"{tmp_path / 'wrong.py'}:f")


def project(folder: Path, value: float) -> str:
    folder.mkdir()
    (folder / "parsing.py").write_text(f"VALUE = {value}\n")
    (folder / "late.py").write_text(f"VALUE = {value}\n")
    (folder / "reward.py").write_text(
        "from parsing import VALUE\n\ndef f(samples):\n    import late\n    assert late\n    return [VALUE for _ in samples]\n"
    )
    return f"{folder / 'reward.py'}:f"


def test_a_reward_file_imports_its_neighbours_at_the_top_and_in_functions(tmp_path: Path) -> None:
    assert of(load(project(tmp_path / "one", 1.5))).total == [1.5, 1.5]


def test_neighbours_of_one_name_in_two_folders_are_each_ones_own(tmp_path: Path) -> None:
    names = [project(tmp_path / "one", 1.0), project(tmp_path / "two", 2.0)]
    assert [of(load(name)).total[0] for name in names] == [1.0, 2.0]


def test_a_file_is_run_once_for_one_text_and_again_for_another(tmp_path: Path) -> None:
    file = tmp_path / "counts.py"
    file.write_text("print('imported')\ndef f(samples):\n    return [1.0] * len(samples)\n")
    assert load(f"{file}:f") is load(f"{file}:f")
    file.write_text("def f(samples):\n    return [2.0] * len(samples)\n")
    assert of(load(f"{file}:f")).total == [2.0, 2.0]


def test_a_relative_import_says_how_to_write_it(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("from .parsing import VALUE\n")
    with pytest.raises(RewardError, match="write `from NAME import ...` for a module beside it, or give package.module:function"):
        load(f"{tmp_path / 'r.py'}:f")


OTHERS = """
def of_trl(prompts, completions, answer, level, **kwargs):
    assert set(kwargs) <= {"completion_ids"}, kwargs
    assert prompts == ["1+1", "2+2"] and completions == ["is 0", "is 1"]
    return [float(a) + (l or 0) for a, l in zip(answer, level)]

async def of_trl_async(completions, **kwargs):
    return [None, 1]

def of_verl(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(ground_truth), "acc": 1} if solution_str == "is 0" else 0.5

async def of_verl_async(solution_str, ground_truth, **kwargs):
    return float(ground_truth) * 2

def of_verl_together(data_sources, solution_strs, ground_truths, extra_infos):
    assert extra_infos == [None, None]
    return [{"score": float(t)} if s == "is 0" else 0.5 for s, t in zip(solution_strs, ground_truths)]

def of_verl_mixed(solution_str, ground_truth):
    async def later():
        return 7.0
    return later() if solution_str == "is 0" else 1.5

def of_verl_one(data_sources, solution_strs, ground_truths, extra_infos):
    return {"score": [1.0, 2.0]}

def scoreless(solution_str, ground_truth):
    return {"acc": 1}
"""


@pytest.fixture
def others(tmp_path: Path) -> str:
    (tmp_path / "others.py").write_text(OTHERS)
    return str(tmp_path / "others.py")


@pytest.mark.parametrize(
    ("name", "totals"),
    [
        ("trl:{}:of_trl", [5, 4]),
        ("trl:{}:of_trl_async", [0, 1]),
        ("verl:{}:of_verl", [2, 0.5]),
        ("x=verl:{}:of_verl_async", [4, 8]),
        ("verl:{}:of_verl_together", [2, 0.5]),
        ("verl:{}:of_verl_mixed", [7, 1.5]),
    ],
)
def test_functions_of_other_libraries(name: str, totals: list[float], others: str) -> None:
    (found,) = load_rewards([name.format(others)], weights=[], registry=Registry.discover())
    assert score(SAMPLES, rewards=[found]).total == totals
    assert found.name == ("x" if name.startswith("x=") else name.rpartition(":")[2])
    assert list(check_rewards(make_config({"reward": [name.format(others)]}), registry=Registry.discover())) == []


def test_trl_gets_messages_where_the_prompt_is_a_chat(tmp_path: Path) -> None:
    (tmp_path / "chat.py").write_text(
        "def f(prompts, completions, **kwargs):\n    return [float(p[-1]['role'] == 'user') + len(c[0]['content'])\n"
        "            for p, c in zip(prompts, completions)]\n"
    )
    row = {"prompt": [{"role": "user", "content": "hi"}]}
    sample = Sample(prompt="<user>hi", completion="four", row=row)
    function = load(f"trl:{tmp_path / 'chat.py'}:f")
    assert score([sample], rewards=[NamedReward(name="f", function=function)]).total == [5.0]


def test_the_ground_truth_of_verls_own_rows() -> None:
    def grade(solution_str: str, ground_truth: str, data_source: str) -> float:
        return float(ground_truth == "7" and data_source == "gsm8k")

    row = {"data_source": "gsm8k", "reward_model": {"style": "rule", "ground_truth": "7"}}
    assert adapted(grade, adapter="verl", input_key="prompt")([Sample(prompt="p", completion="c", row=row)]) == [1.0]


def test_without_its_adapter_the_line_says_which(others: str) -> None:
    for function, adapter in (("of_trl", "trl"), ("of_verl", "verl")):
        with pytest.raises(RewardError, match=f"parameters of a {adapter} reward function; give it as {adapter}:{others}:{function}"):
            load(f"{others}:{function}")
    with pytest.raises(RewardError, match=r"a verl reward returned a dict without 'score' \(keys: acc\)"):
        of(load(f"verl:{others}:scoreless"))
    with pytest.raises(RewardError, match=r"returned \{'score': \[1.0, 2.0\]\}, a dict; expected one number for each of 2 samples"):
        of(load(f"verl:{others}:of_verl_one"))


def test_a_function_of_another_library_that_a_script_gives_is_refused_with_its_adapter(tmp_path: Path) -> None:
    def of_trl(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [1.0] * len(prompts)

    with pytest.raises(ValueError, match=r"parameters of a trl reward function; give it as .*adapted\(f, adapter='trl'"):
        make_trainer(tmp_path, reward=of_trl)
    given = adapted(of_trl, adapter="trl", input_key="prompt")
    assert make_trainer(tmp_path / "adapted", reward=given, max_steps=1, eval_prompts=()).fit()["steps"] == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def f(samples, answers): ...", r"takes (samples, answers), and is called with one argument, the list of samples"),
        ("def f(): ...", r"takes (), and is called with one argument"),
        ("def f(*, samples): ...", r"takes (*, samples), and is called with one argument"),
        ("def f(completion, answer): ...", r"takes (completion, answer), and is called with one argument"),
        ("def f(completions, answer): ...", "has the parameters of a trl reward function; give it as trl:"),
        ("def f(solution_strs, ground_truths): ...", "has the parameters of a verl reward function; give it as verl:"),
        ("class f: ...", "is a class, not a function"),
    ],
)
def test_a_function_that_takes_something_else_is_refused_before_ranks_start(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(f"{text}\n")
    config = make_config({"reward": [f"{tmp_path / 'r.py'}:f"]})
    [line] = loading_problems(config, registry=Registry.discover())
    assert words in line
    space: dict[str, Any] = {}
    exec(text, space)
    settings = {"strategy": "fake", "engine_type": "fake", "model_name_or_path": "owner/none", "output_dir": str(tmp_path / "run")}
    with pytest.raises(ConfigError) as caught:
        lightrft.train(settings, rewards=[space["f"]], prompts=["a"], registry=fake_registry())
    assert words.partition("give it as ")[0] in str(caught.value) and "rewards[0]='f'" in str(caught.value)


def test_what_another_library_does_not_give_is_told(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("def f(solution_str, ground_truth, tokens): ...\ndef g(prompts, completions, answr): ...\n")
    with pytest.raises(
        RewardError, match=r"'verl:.*r.py:f': it takes 'tokens', and is given 'data_source', 'solution_str', 'ground_truth'"
    ):
        load(f"verl:{tmp_path / 'r.py'}:f")
    with pytest.raises(RewardError, match="it takes 'answr', and is given 'answer', 'level', 'completion_ids', 'prompts', 'completions'"):
        of(load(f"trl:{tmp_path / 'r.py'}:g"))


def test_the_column_of_prompts_keeps_its_own_name_beside_prompts() -> None:
    def f(prompts: list[str], completions: list[str], question: list[str]) -> list[float]:
        return [float(prompt == asked) for prompt, asked in zip(prompts, question, strict=True)]

    given = adapted(f, adapter="trl", input_key="question")
    assert given([Sample(prompt="<user>1 + 1", completion="2", row={"question": "1 + 1"})]) == [1.0]
    assert isinstance(given, OfTrl) and given.lacking(["question"]) == [] and given.lacking(["prompt"]) == ["question"]


@pytest.mark.parametrize("parameter", ["solution", "solution=None", "prompts", "completion_ids", "answer", "**rest"])
def test_a_column_that_a_function_of_trl_takes_is_looked_for_before_ranks_start(parameter: str, tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(f"def f(completions, {parameter}): ...\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "1"}\n{"prompt": "b", "answer": "2", "level": 1}\n')
    reward = f"trl:{tmp_path / 'r.py'}:f"
    config = make_config({"reward": [reward], "prompt_data": str(tmp_path / "rows.jsonl")})
    columns = columns_asked_for(config, training=True)
    file = tmp_path / "rows.jsonl"
    line = f"reward {reward!r} takes 'solution', and {file} has the columns prompt, answer, level; rename one, or give a default"
    expected = [line] if parameter == "solution" else []
    assert loading_problems(config, registry=Registry.discover(), columns=columns) == expected == tried_apart(config, columns=columns)
    assert columns_asked_for(config.model_copy(update={"reward": [reward.removeprefix("trl:")]}), training=True) == {}


def test_a_task_that_was_cancelled_is_a_reward_that_failed() -> None:
    async def cancelled(samples: Sequence[Sample]) -> list[float]:
        raise asyncio.CancelledError

    with pytest.raises(RewardError, match=rf"reward 'r0' raised CancelledError: .*, at {__file__}:\d+ in cancelled"):
        of(cancelled)
    with pytest.raises(RewardError, match="a set; expected one number for each of 2 samples"):
        of(lambda samples: {1.0, 2.0})


CODE = [Sample(prompt="p", completion="x = 1", answer="assert x == 1")]


@pytest.mark.parametrize("name", ["lightrft.rewards.code:code_reward", "FILE", "code"])
def test_a_models_program_never_runs_without_permission_whatever_the_reward_is_called(name: str, tmp_path: Path) -> None:
    (tmp_path / "wraps.py").write_text("from lightrft.rewards.code import code_reward\ndef f(samples):\n    return code_reward(samples)\n")
    name = f"{tmp_path / 'wraps.py'}:f" if name == "FILE" else name
    registry = Registry.discover()
    for early in (False, True):
        found: list[Any] = []

        def ask(found: list[Any] = found) -> None:
            with pytest.raises(CodePermissionError, match="allow_code_execution is off; set --allow_code_execution"):
                score(CODE, rewards=rewards_of(make_config({"reward": [name]}), registry=registry))
            allowed = make_config({"reward": [name], "allow_code_execution": True})
            assert list(check_rewards(allowed, registry=registry)) == []
            found.append(score(CODE, rewards=rewards_of(allowed, registry=registry)).total)

        if early:  # rewards while the engine generates are asked in a thread
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()
        else:
            ask()
        assert found == [[1.0]]


ELSEWHERE = """
import concurrent.futures, multiprocessing, threading
from lightrft.rewards.code import code_reward

POOL = concurrent.futures.ThreadPoolExecutor(1)
POOL.submit(int).result()

def thread(samples):
    found = []
    def ask():
        try:
            found.append(code_reward(samples))
        except Exception as error:
            found.append(error)
    one = threading.Thread(target=ask)
    one.start()
    one.join()
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]

def pool(samples):
    return POOL.submit(code_reward, samples).result()

def process(samples):
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(code_reward, samples).result()
"""


@pytest.mark.parametrize("name", ["thread", "pool", "process"])
def test_nor_in_a_thread_or_process_that_the_reward_starts(name: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    settings = {"reward": [f"{tmp_path / 'elsewhere.py'}:{name}"]}
    registry = Registry.discover()
    with pytest.raises(CodePermissionError, match="allow_code_execution is off"):
        score(CODE, rewards=rewards_of(make_config(settings), registry=registry))
    allowed = make_config(settings | {"allow_code_execution": True})
    assert score(CODE, rewards=rewards_of(allowed, registry=registry)).total == [1.0]


def test_by_hand_it_runs() -> None:
    assert code_reward(CODE) == [1.0]


CHANGES = """
import os, sys
import torch
def change():
    os.makedirs("elsewhere", exist_ok=True)
    os.chdir("elsewhere")
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
change()
def f(samples):
    change()
    return [1.0 for _ in samples]
def lazy(samples):
    for _ in samples:
        change()
        yield 1.0
async def later(samples):
    change()
    return [1.0 for _ in samples]
def fails(samples):
    change()
    raise ValueError("x")
"""


def state() -> tuple[Any, ...]:
    return str(Path.cwd()), torch.is_grad_enabled(), torch.get_default_dtype(), torch.ones(1).device, torch.get_default_device()


@pytest.mark.parametrize("name", ["f", "lazy", "later", "fails"])
def test_what_a_reward_changes_of_the_process_is_put_back(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "changes.py").write_text(CHANGES)
    before = state()
    function = load(f"changes.py:{name}")
    assert state() == before and (tmp_path / "elsewhere").is_dir()
    with pytest.raises(RewardError) if name == "fails" else nullcontext():
        assert score(SAMPLES, rewards=[NamedReward(name=name, function=function)]).total == [1.0, 1.0]
    assert state() == before
