"""Fused, sharded, padded and copied tensors are put under the names they were sent by, and everything else is left out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lightrft.testing.expert_model import EXPERTS, tiny_expert_model
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.weights.checksum import WeightChecksum, tensor_checksum
from lightrft.weights.experts import ExpertFiles, checksums_of, expert_files
from lightrft.weights.fused_fingerprints import OwnChecksum, OwnChecksums, read_own_checksums
from lightrft.weights.hf_names import FileNames
from lightrft.weights.manifest import expected_shapes
from lightrft.weights.verify import over_group

LAYER = "model.layers.{}."


def folder(path: Path, *, shard: str = "10GB") -> dict[str, torch.Tensor]:
    model = tiny_causal_lm(seed=1, kv_heads=2)
    model.save_pretrained(path, max_shard_size=shard)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same_names(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Where an engine, the sender and the folder call weights the same."""
    return {name: (name, name) for name in names}


def laid_out(weights: dict[str, torch.Tensor], rank: int = 0, size: int = 1) -> dict[str, torch.Tensor]:
    """As engines hold them: qkv and gate_up fused, rows or columns cut, the embedding padded with zeros, norms whole."""

    def rows(name: str) -> torch.Tensor:
        return weights[name].chunk(size)[rank]

    own = {}
    for layer in (LAYER.format(i) for i in range(2)):
        own[f"{layer}self_attn.qkv_proj.weight"] = torch.cat([rows(f"{layer}self_attn.{p}_proj.weight") for p in "qkv"])
        own[f"{layer}mlp.gate_up_proj.weight"] = torch.cat([rows(f"{layer}mlp.{p}_proj.weight") for p in ("gate", "up")])
        for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
            own[layer + name] = weights[layer + name].chunk(size, dim=1)[rank]
        for name in ("input_layernorm.weight", "self_attn.q_norm.weight"):
            own[layer + name] = weights[layer + name]
        own[f"{layer}post_attention_layernorm.weight"] = weights[f"{layer}post_attention_layernorm.weight"] * 2 + 1  # another form
    own["model.embed_tokens.weight"] = nn.functional.pad(rows("model.embed_tokens.weight"), (0, 0, 0, 8))
    own["lm_head.weight"] = rows("lm_head.weight")
    own["model.norm.weight"] = weights["model.norm.weight"]
    return own


def checksums(own: dict[str, torch.Tensor]) -> dict[str, OwnChecksum]:
    return {name: OwnChecksum(*tensor_checksum(tensor), tensor.numel()) for name, tensor in own.items()}


@pytest.mark.parametrize(("size", "shard"), [(1, "10GB"), (2, "20KB")])
def test_every_tensor_in_a_known_form_is_named_by_what_was_sent(tmp_path: Path, size: int, shard: str) -> None:
    weights = folder(tmp_path, shard=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    unit = OwnChecksums(
        [checksums(laid_out(weights, r, size)) for r in range(size)],
        folder=str(tmp_path),
        dtype=torch.float32,
        sendable=same_names(weights),
    )
    changed = {name: tensor + 1 for name, tensor in weights.items()}
    held = over_group([unit.named(checksums(laid_out(changed, r, size))) for r in range(size)])
    for names, value in held.items():
        parts = [WeightChecksum(*tensor_checksum(changed[name])) for name in names]
        assert value.same_as(sum(parts[1:], start=parts[0])), names
    missing = set(weights) - {name for names in held for name in names}
    unheld = {f"{LAYER.format(i)}{n}" for i in range(2) for n in ("post_attention_layernorm.weight", "self_attn.k_norm.weight")}
    assert missing == unheld, "what has another form, and what the engine has not"
    assert tuple(f"{LAYER.format(1)}self_attn.{p}_proj.weight" for p in "qkv") in held


def test_half_of_a_fused_tensor_shows(tmp_path: Path) -> None:
    weights = folder(tmp_path)
    unit = OwnChecksums([checksums(laid_out(weights))], folder=str(tmp_path), dtype=torch.float32, sendable=same_names(weights))
    changed = {name: tensor + 1 for name, tensor in weights.items()}
    half = changed | {f"{LAYER.format(1)}self_attn.k_proj.weight": weights[f"{LAYER.format(1)}self_attn.k_proj.weight"]}
    found = [
        names
        for names, value in unit.named(checksums(laid_out(half))).items()
        if not value.same_as(unit.named(checksums(laid_out(changed)))[names])
    ]
    assert found == [tuple(f"{LAYER.format(1)}self_attn.{p}_proj.weight" for p in "qkv")]


def test_a_bias_of_zeros_is_cut_or_whole_by_its_size(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a.bias": torch.zeros(4), "b.bias": torch.zeros(4)}, tmp_path / "model.safetensors")
    ranks = [checksums({"a.bias": torch.zeros(2), "b.bias": torch.zeros(4)})] * 2
    unit = OwnChecksums(ranks, folder=str(tmp_path), dtype=torch.float32, sendable=same_names(["a.bias", "b.bias"]))
    found = unit.named(checksums({"a.bias": torch.ones(2), "b.bias": torch.ones(4)}))
    assert [value.sharded for value in found.values()] == [True, False]


def test_copies_of_key_value_heads_are_left_out(tmp_path: Path) -> None:
    weights = folder(tmp_path)
    name = f"{LAYER.format(0)}self_attn.qkv_proj.weight"
    q, k, v = (weights[f"{LAYER.format(0)}self_attn.{p}_proj.weight"] for p in "qkv")
    ranks = [checksums({name: torch.cat([q.chunk(2)[r], k, v])}) for r in range(2)]
    unit = OwnChecksums(ranks, folder=str(tmp_path), dtype=torch.float32, sendable=same_names(weights))
    assert unit.named(ranks[0]) == {}


def test_other_dtypes_and_emptied_tensors_are_not_read() -> None:
    model = nn.ParameterDict(
        {"a": nn.Parameter(torch.ones(2)), "b": nn.Parameter(torch.ones(2).bfloat16()), "c": nn.Parameter(torch.ones(0))}
    )
    assert list(read_own_checksums(model, dtype=torch.float32)) == ["a"]


def test_one_tensor_under_another_name_is_found(tmp_path: Path) -> None:
    """As image-text models have it, whose folders keep queries, keys and values of the part that reads images in one."""
    whole = {"visual.blocks.0.attn.qkv.weight": torch.randn(6, 2)}
    save_file(whole, tmp_path / "model.safetensors")
    own = {"visual.blocks.0.attn.qkv_proj.weight": whole["visual.blocks.0.attn.qkv.weight"]}
    unit = OwnChecksums([checksums(own)], folder=str(tmp_path), dtype=torch.float32, sendable=same_names(whole))
    assert list(unit.named(checksums(own))) == [("visual.blocks.0.attn.qkv.weight",)]


def test_the_two_halves_of_latent_attention_are_known_in_one(tmp_path: Path) -> None:
    files = {f"layers.0.self_attn.{part}.weight": torch.randn(4, 2) for part in ("q_a_proj", "kv_a_proj_with_mqa")}
    save_file(files, tmp_path / "model.safetensors")
    own = {"layers.0.self_attn.fused_qkv_a_proj.weight": torch.cat(list(files.values()))}
    unit = OwnChecksums([checksums(own)], folder=str(tmp_path), dtype=torch.float32, sendable=same_names(files))
    assert list(unit.named(checksums(own))) == [tuple(files)]


STACKS = ("gate_up", "down")


def expert_folder(path: Path) -> tuple[FileNames, dict[str, torch.Tensor]]:
    model = tiny_expert_model()
    model.save_pretrained(path)
    return FileNames(str(path), expected_shapes(str(path))), {n: p.detach().clone() for n, p in model.named_parameters()}


def packed(weights: dict[str, torch.Tensor], *, rank: int = 0, size: int = 1) -> nn.Module:
    """As an engine may hold experts: under other names, cut through each, its numbers in another order, filled up with zeros."""
    layers = nn.ModuleDict()
    for layer in range(2):
        experts = nn.Module()
        for own, name in zip(("w13_weight", "w2_weight"), STACKS, strict=True):
            stack = weights[f"{LAYER.format(layer)}mlp.experts.{name}_proj"]
            part = stack.chunk(size, dim=1 if own == "w13_weight" else 2)[rank]
            experts.register_parameter(own, nn.Parameter(nn.functional.pad(part.flip(1).mT.contiguous(), (0, 8))))
        layers[str(layer)] = nn.ModuleDict({"moe": nn.ModuleDict({"experts": experts})})
    return nn.ModuleDict({"model": nn.ModuleDict({"layers": layers})})


def expert_checksums(names: FileNames, folder: Path, weights: dict[str, torch.Tensor], size: int) -> OwnChecksums:
    ranks = [read_own_checksums(packed(weights, rank=r, size=size), dtype=torch.float32) for r in range(size)]
    return OwnChecksums(ranks, folder=str(folder), dtype=torch.float32, sendable=same_names(names.one_to_one()), stacks=names.stacks())


@pytest.mark.parametrize("size", [1, 2])
def test_experts_are_known_one_by_one_however_they_lie(tmp_path: Path, size: int) -> None:
    names, weights = expert_folder(tmp_path)
    unit = expert_checksums(names, tmp_path, weights, size)

    def held(weights: dict[str, torch.Tensor]) -> dict[tuple[str, ...], WeightChecksum]:
        return over_group([unit.named(read_own_checksums(packed(weights, rank=r, size=size), dtype=torch.float32)) for r in range(size)])

    changed = {name: tensor + 1 for name, tensor in weights.items()}
    expected = checksums_of({(name,): tensor for name, tensor in changed.items() if ".experts." in name})
    found = held(changed)
    assert found.keys() == expected.keys() and len(found) == 2 * 2 * EXPERTS
    assert all(value.same_as(expected[names]) for names, value in found.items())

    stack = f"{LAYER.format(1)}mlp.experts.down_proj"
    exchanged = changed | {stack: changed[stack][[1, 0, 2, 3]]}
    wrong = [names for names, value in held(exchanged).items() if not value.same_as(expected[names])]
    assert wrong == [(f"{stack}[0]",), (f"{stack}[1]",)]


def test_experts_of_zeros_that_may_be_either_stack_are_left_out(tmp_path: Path) -> None:
    model = tiny_expert_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." in name:
                parameter.zero_()
    model.save_pretrained(tmp_path)
    names = FileNames(str(tmp_path), expected_shapes(str(tmp_path)))
    weights = dict(model.named_parameters())
    unit = expert_checksums(names, tmp_path, weights, 1)
    assert unit.named(read_own_checksums(packed(weights), dtype=torch.float32)) == {}


def test_ranks_with_experts_of_their_own_are_left_out(tmp_path: Path) -> None:
    names, weights = expert_folder(tmp_path)
    ranks = [
        read_own_checksums(packed(weights | {n: t[2 * r : 2 * r + 2] for n, t in weights.items() if ".experts." in n}), dtype=torch.float32)
        for r in range(2)
    ]
    unit = OwnChecksums(ranks, folder=str(tmp_path), dtype=torch.float32, sendable={}, stacks=names.stacks())
    assert unit.named(ranks[0]) == {}


def test_files_of_experts_are_known_stacked_or_one_by_one() -> None:
    one = {f"mlp.experts.{e}.{part}.weight": (3, 2) for part in ("gate", "up") for e in range(2)}
    assert expert_files((2, 6, 2), one) == ExpertFiles(
        single=(("mlp.experts.0.gate.weight", "mlp.experts.0.up.weight"), ("mlp.experts.1.gate.weight", "mlp.experts.1.up.weight"))
    )
    assert expert_files((2, 6, 2), {"moe.input_linear.weight": (2, 6, 2)}) == ExpertFiles(stacked=("moe.input_linear.weight",))
    assert expert_files((2, 6, 2), {"moe.all.weight": (12, 2)}) is None
    assert expert_files((3, 6, 2), one) is None, "one is missing"
