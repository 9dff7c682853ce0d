"""Images in a step: how much of their preprocessing hides behind the engine, and the memory of the part of a model that reads them.

A random Qwen2.5-VL, one image for each prompt. Time: images alone, the engine alone (`hf`), and both as a run has them: decoded first, the
processor in a thread beside the engine, the rest waited for. Memory: one forward and backward pass of the part that reads images, with its
activations kept and computed again (`gradient_checkpointing`), above what was held before; each in a process of its own, as on a CPU a peak
is that of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from memory import held

from lightrft.data.prompts import Prompt
from lightrft.distributed.world import World
from lightrft.engine.base import EngineSetup
from lightrft.engine.hf import HFEngine
from lightrft.engine.image_reader import ImageReader
from lightrft.experience.images import PromptImages
from lightrft.models.scratch import char_tokenizer
from lightrft.models.scratch_images import SPECIAL, with_image_tokens
from lightrft.strategy.recompute import recompute_activations
from lightrft.types import Request, SamplingParams

tf: Any = transformers  # its classes take their fields as keywords, unseen by type checkers
KINDS = ("kept", "recomputed")
PATCH = 14
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "text": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2},
        "vision": {"hidden_size": 128, "intermediate_size": 256, "depth": 8, "num_heads": 4, "fullatt_block_indexes": [3, 7]},
        "rope": [8, 12, 12],
    },
    "3b": {
        "text": {
            "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
        },
        "vision": {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "num_heads": 16, "fullatt_block_indexes": [7, 15, 23, 31]},
        "rope": [16, 24, 24],
    },
}  # fmt: skip
"""`3b` has the shapes of Qwen2.5-VL-3B, but for its vocabulary."""


def main() -> int:
    """Returns 1 where recomputed gradients are others."""
    args = arguments()
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed leaves the process at once
    if args.kind:
        print(json.dumps(memory_of(args.kind, args)))
        return 0
    times = seconds(args)
    print(f"{args.prompts} images of {args.side} x {args.side}, {times['tokens']} tokens each: {times['image_ms']:.1f} ms an image")
    print(f"alone: images {times['images_s']:.2f} s, generation {times['engine_s']:.2f} s; beside the processor {times['beside_s']:.2f} s")
    print(f"decoding before it {times['decoding_s']:.4f} s, waiting after it {times['waiting_s']:.4f} s")
    print(f"{times['hidden']:.0%} of the preprocessing is hidden behind generation")
    found = {kind: of_a_process(kind, args) for kind in KINDS}
    for kind, one in found.items():
        print(f"activations {kind:10}  {one['peak'] / 2**30:.3f} GiB at most  {one['seconds']:.2f} s")
    kept, recomputed = (found[kind]["gradient"] for kind in KINDS)
    good = abs(kept - recomputed) <= 1e-3 * abs(kept)
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name != "kind"}
        print(json.dumps({"benchmark": "vision", "ok": good, "settings": settings, "time": times, "memory": found}))
    return 0 if good else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--side", type=int, default=280, help="pixels of an image's side")
    parser.add_argument("--prompts", type=int, default=8, help="each with one image")
    parser.add_argument("--samples", type=int, default=4, help="completions of each prompt")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--json", action="store_true", help="make the last line one JSON object")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    return parser.parse_args()


def model_of(size: str, tokenizer: Any) -> Any:
    """A random one, in eval mode."""
    shapes = SIZES[size]
    image, video, start, end = (tokenizer.convert_tokens_to_ids(token) for token in SPECIAL)
    rope = {"rope_type": "default", "mrope_section": shapes["rope"], "rope_theta": 1_000_000.0}
    text = shapes["text"] | {"vocab_size": len(tokenizer), "max_position_embeddings": 32768, "rope_parameters": rope}
    vision = shapes["vision"] | {"patch_size": PATCH, "window_size": 8 * PATCH, "out_hidden_size": text["hidden_size"]}
    config = tf.Qwen2_5_VLConfig(
        text_config=text | {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None},
        vision_config=vision, image_token_id=image, video_token_id=video, vision_start_token_id=start, vision_end_token_id=end,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return tf.Qwen2_5_VLForConditionalGeneration(config).eval()


def tokenizer_of() -> Any:
    return with_image_tokens(char_tokenizer(["".join(map(chr, range(32, 127)))]))


def folder_of(path: Path, args: argparse.Namespace) -> Path:
    """The model, its tokenizer and its processor, which leaves an image of `side` at its size."""
    tokenizer, pixels = tokenizer_of(), args.side**2
    model_of(args.model, tokenizer).to(dtype_of(args)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    tf.Qwen2VLImageProcessorPil(patch_size=PATCH, size={"shortest_edge": pixels // 4, "longest_edge": 4 * pixels}).save_pretrained(path)
    return path


def dtype_of(args: argparse.Namespace) -> torch.dtype:
    return torch.float32 if args.device == "cpu" else torch.bfloat16


def picture(number: int, side: int) -> Any:
    from PIL import Image

    source = torch.Generator().manual_seed(number)
    return Image.fromarray(torch.randint(0, 256, (side, side, 3), dtype=torch.uint8, generator=source).numpy())


def seconds(args: argparse.Namespace) -> dict[str, float]:
    """Of a rollout's parts, by the clock: the second time of each, as the first one imports and allocates."""
    with tempfile.TemporaryDirectory() as place:
        path = folder_of(Path(place), args)
        reader = ImageReader(str(path), trust_remote_code=False)
        ids = tokenizer_of()(f"{SPECIAL[2]}{SPECIAL[0]}{SPECIAL[3]}how many?", add_special_tokens=False)["input_ids"]
        shown = [picture(number, args.side) for number in range(args.prompts)]
        prompts = [Prompt(text="", token_ids=ids, index=number, row={}, answer=None, images=(one,)) for number, one in enumerate(shown)]
        requests = [Request(id=number, prompt_token_ids=ids, seed=number, images=(one,)) for number, one in enumerate(shown)]
        images = PromptImages(reader, world=World.alone())
        engine = engine_of(path, args)
        sampling = SamplingParams(n=args.samples, max_new_tokens=args.new_tokens, min_new_tokens=args.new_tokens)

        found = {"images_s": clock(lambda: images.read(prompts).whole()), "engine_s": clock(lambda: engine.generate(requests, sampling))}
        found |= beside(images, prompts, lambda: engine.generate(requests, sampling))
        tokens = len(images.read(prompts[:1]).whole()[0][0]) - len(ids) + 1
        engine.shutdown()
    hidden = 1.0 - (found["decoding_s"] + found["waiting_s"]) / found["images_s"]
    return found | {"tokens": tokens, "image_ms": 1000 * found["images_s"] / args.prompts, "hidden": min(max(hidden, 0.0), 1.0)}


def beside(images: PromptImages, prompts: list[Prompt], generate: Callable[[], object]) -> dict[str, float]:
    """As a run has them: images are decoded first, their processor goes on beside the engine, and what is left of it is waited for."""
    started = time.perf_counter()
    read = images.read(prompts)
    decoded = time.perf_counter()
    generate()
    generated = time.perf_counter()
    read.whole()
    return {"decoding_s": decoded - started, "beside_s": generated - decoded, "waiting_s": time.perf_counter() - generated}


def engine_of(path: Path, args: argparse.Namespace) -> HFEngine:
    length = 64 + args.new_tokens + (args.side // PATCH) ** 2
    return HFEngine(
        EngineSetup(
            model_path=str(path), dtype=dtype_of(args), device=torch.device(args.device), seed=0, max_model_len=length, max_batch_size=8,
            mem_util=0.5, trust_remote_code=False, rank=0, group_size=1, group=None,
        )
    )  # fmt: skip


def clock(work: Callable[[], object]) -> float:
    work()
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def of_a_process(kind: str, args: argparse.Namespace) -> dict[str, float]:
    words = [word for name in ("model", "device", "side", "prompts") for word in (f"--{name}", str(getattr(args, name)))]
    done = subprocess.run([sys.executable, __file__, *words, "--kind", kind], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def memory_of(kind: str, args: argparse.Namespace) -> dict[str, float]:
    """Bytes at most above what was held, the seconds, and the norm of the gradient of the first weight."""
    device = torch.device(args.device)
    model = model_of(args.model, tokenizer_of()).to(device, dtype_of(args))
    if kind == "recomputed":
        recompute_activations(model)
    processor = tf.Qwen2VLImageProcessorPil(patch_size=PATCH, size={"shortest_edge": args.side**2 // 4, "longest_edge": 4 * args.side**2})
    inputs = processor(images=[picture(number, args.side) for number in range(args.prompts)], return_tensors="pt").to(device)
    reads = model.model.visual
    for parameter in reads.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before, started = held(device, reset=True), time.perf_counter()
    features = reads(inputs["pixel_values"].to(dtype_of(args)), grid_thw=inputs["image_grid_thw"])
    (features if isinstance(features, torch.Tensor) else features.pooler_output).float().square().mean().backward()
    peak = held(device) - before
    first = next(reads.parameters()).grad
    assert first is not None
    return {"peak": peak, "seconds": time.perf_counter() - started, "gradient": float(first.float().norm())}


if __name__ == "__main__":
    sys.exit(main())
