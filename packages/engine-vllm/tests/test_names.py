"""The names that vLLM gives to a folder's weights, from what every supported vLLM has."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

from vllm.model_executor.models.utils import WeightsMapper

from lightrft_vllm.weights import own_names

FILES = ["model.layers.0.self_attn.q_proj.weight", "model.visual.patch.weight", "left.out"]


@dataclass
class OldestMapper:
    """What vLLM 0.25's mapper shows in public: it has no `map_name`."""

    orig_to_new_prefix: dict[str, str | None]
    orig_to_new_stacked: dict[str, tuple[str, str]] = field(default_factory=dict)

    def apply_list(self, values: list[str]) -> list[str]:
        plain = WeightsMapper(orig_to_new_prefix=self.orig_to_new_prefix, orig_to_new_stacked=self.orig_to_new_stacked)  # type: ignore[arg-type]
        return plain.apply_list(values)


def test_names_come_from_the_oldest_vllm_and_from_this_one() -> None:
    prefixes = {"model.visual.": "visual.", "left.": None}
    stacked = {".q_proj": (".qkv_proj", "q")}
    for mapper in (OldestMapper(prefixes, stacked), WeightsMapper(orig_to_new_prefix=prefixes, orig_to_new_stacked=stacked)):  # type: ignore[arg-type]
        model = SimpleNamespace(hf_to_vllm_mapper=mapper)
        assert own_names(model, files=FILES) == {  # type: ignore[arg-type]
            FILES[0]: FILES[0],  # not laid into the tensor with others
            FILES[1]: "visual.patch.weight",
            FILES[2]: FILES[2],
        }
    assert own_names(SimpleNamespace(), files=FILES) == {file: file for file in FILES}  # type: ignore[arg-type]
