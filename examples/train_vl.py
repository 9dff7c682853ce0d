"""The guide's script for models that read images: `train.py` beside it, under the name that the guide uses.

    python examples/train_vl.py --fsdp --engine_type vllm --mixed_mm_data --model_name_or_path FOLDER --prompt_data rows.jsonl ...

Nothing has to be added for images: where rows name some, the processor, the engine and the trainer read them, and a check at the
first rollout stops a run in which one of them does not (docs/how-to/images.md). For a script of one's own, start from `train.py`.
"""

from train import main

if __name__ == "__main__":
    main()
