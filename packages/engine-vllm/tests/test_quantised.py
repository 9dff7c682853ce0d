"""Weights that vLLM quantises as it loads them: compared to half a quantum with what was loaded, which is compared with what was sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lightrft.engine.base import EngineSetup
from lightrft.errors import WeightSyncError
from lightrft.plugins import Registry
from lightrft.testing.engine_bench import GREEDY, requests_of, weights_of
from lightrft.testing.tiny import tiny_causal_lm, tiny_model_folder
from lightrft.weights.verify import SentChecksums
from lightrft_vllm.quantised import quantum, quantum_error

FP8 = torch.float8_e4m3fn
VALUES = torch.tensor([[448.0, 1.0, -0.3], [-7.0, 0.001, 0.0]])


def test_half_a_quantum_is_that_of_the_codes() -> None:
    """FP8 E4M3 has 3 bits of mantissa, and its smallest number above zero is 2**-9; int8 has steps of 1."""
    assert quantum(FP8) == (2**-4, 2**-10) and quantum(torch.int8) == (0.0, 0.5)
    assert quantum(torch.bfloat16) is None


@pytest.mark.parametrize("transposed", [False, True])
def test_codes_of_one_scale_are_within_half_a_quantum_and_the_next_code_is_not(transposed: bool) -> None:
    codes = (VALUES / 2).to(FP8)

    def error() -> float:
        found = quantum_error(VALUES, codes.t() if transposed else codes, torch.tensor([2.0]))
        assert found is not None
        return found

    assert error() <= 1
    codes.view(torch.uint8)[1, 0] += 1  # -3.5 becomes -3.75: a whole quantum
    assert error() == pytest.approx(0.5 / (7 / 16))


def test_scales_of_rows_of_blocks_and_of_experts() -> None:
    rows = torch.tensor([[2.0], [0.5]])
    assert quantum_error(VALUES, (VALUES / rows).to(FP8), rows) <= 1  # type: ignore[operator]
    assert quantum_error(VALUES, (VALUES / rows).to(FP8), rows.flip(0)) > 1  # type: ignore[operator]
    blocks = torch.tensor([[2.0, 4.0], [0.5, 1.0]])
    wide = torch.tensor([[2.0, 2.0, 4.0], [0.5, 0.5, 1.0]])
    assert quantum_error(VALUES, (VALUES / wide).to(FP8), blocks, block=(1, 2)) <= 1  # type: ignore[operator]
    experts, scales = torch.stack([VALUES, 3 * VALUES]), torch.tensor([4.0, 12.0])
    codes = (experts / scales[:, None, None]).round().clamp(-127, 127).to(torch.int8)
    assert quantum_error(experts / 4, codes, scales / 4) <= 1  # type: ignore[operator]
    assert quantum_error(experts.flip(0) / 4, codes, scales / 4) > 1  # type: ignore[operator]


def test_a_scale_of_nothing_is_infinitely_wrong() -> None:
    codes = torch.zeros(2, 3).to(FP8)
    assert quantum_error(VALUES, codes, torch.tensor([0.0])) == pytest.approx(16.0)  # all of the value, of which 1/16 is allowed
    assert quantum_error(torch.zeros(2, 3), codes, torch.tensor([float("nan")])) == float("inf")


@pytest.mark.parametrize(
    ("codes", "scale"),
    [(torch.zeros(6).to(FP8), torch.ones(1)), (torch.zeros(2, 3).to(FP8), torch.ones(3, 2)), (torch.zeros(2, 3), torch.ones(1))],
)
def test_a_layout_that_is_not_known_is_not_compared(codes: torch.Tensor, scale: torch.Tensor) -> None:
    assert quantum_error(VALUES, codes, scale) is None


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    setup = EngineSetup(
        model_path=str(tiny_model_folder(tmp_path_factory.mktemp("fp8"))), dtype=torch.bfloat16, device=torch.device("cpu"), seed=0,
        max_model_len=64, max_batch_size=8, mem_util=0.3, trust_remote_code=False, rank=0, group_size=1, group=None,
        options={"quantization": "fp8_per_channel"},
    )  # fmt: skip
    engine = Registry.discover().load("engine", "vllm")(setup)
    yield engine
    engine.shutdown()


def sync(engine: Any, seed: int) -> SentChecksums:
    sent = SentChecksums()
    model = tiny_causal_lm(seed=seed).bfloat16()
    engine.update_weights(sent.watch(weights_of(model)), version=seed)
    return sent


def linear(engine: Any) -> Any:
    return engine._llm.apply_model(lambda model: model.model.layers[1].mlp.down_proj)[0]


def test_every_tensor_is_compared_after_each_sync(engine: Any) -> None:
    assert linear(engine).weight.dtype == FP8
    for seed in (1, 2, 3):
        sent = sync(engine, seed)
        held = engine.weight_checksums()
        assert sent.differing(held) == [] and sent.unverified(held) == []
    assert len(engine.generate(requests_of([[3, 4, 5]]), GREEDY)) == 1


def test_a_code_or_a_scale_that_changes_is_named(engine: Any) -> None:
    sent = sync(engine, 1)
    layer = linear(engine)
    name = "model.layers.1.mlp.down_proj.weight"
    for change in (lambda: layer.weight.view(torch.uint8)[3, 4].bitwise_xor_(1), lambda: layer.weight_scale.mul_(1.5)):
        with torch.no_grad():
            change()
        assert sent.differing(engine.weight_checksums()) == [name]
        sent = sync(engine, 1)
        assert sent.differing(engine.weight_checksums()) == []


def test_a_layer_that_is_not_quantised_again_is_named(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sync(engine, 1)
    layer = linear(engine)
    before = {"weight": layer.weight.detach().clone(), "weight_scale": layer.weight_scale.detach().clone()}
    monkeypatch.setattr(layer.quant_method, "process_weights_after_loading", lambda layer: _keep(layer, before), raising=False)
    sent = sync(engine, 2)
    assert sent.differing(engine.weight_checksums()) == ["model.layers.1.mlp.down_proj.weight"]


def test_a_layer_that_is_quantised_with_another_scale_ends_the_sync(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers.quantization.online import fp8

    real = fp8._fp8_quant_per_channel
    monkeypatch.setattr(fp8, "_fp8_quant_per_channel", lambda weight, scale: real(weight, scale * 1.5))
    said = r"vLLM quantised weights wrongly: model.layers.0.self_attn.qkv_proj.weight: is \S+ times half a quantum"
    with pytest.raises(WeightSyncError, match=said):
        sync(engine, 3)


def _keep(layer: Any, before: dict[str, torch.Tensor]) -> None:
    for name, value in before.items():
        setattr(layer, name, torch.nn.Parameter(value, requires_grad=False))
