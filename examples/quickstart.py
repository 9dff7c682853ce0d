"""Training in plain Python: one process, from a model's name to a trained folder."""

import sys

import lightrft


def brevity(samples):
    """A reward is a function: one number for each completion."""
    return [-float(sample.num_tokens) for sample in samples]


if __name__ == "__main__":
    model, prompts, folder = sys.argv[1:4]  # such as Qwen/Qwen2.5-0.5B-Instruct prompts.jsonl runs/quickstart
    config = lightrft.make_config({
        "model_name_or_path": model, "prompt_data": prompts, "label_key": "", "output_dir": folder,
        "strategy": "single", "engine_type": "hf", "reward": [f"{__file__}:brevity"],
        "rollout_batch_size": 4, "n_samples_per_prompt": 4, "train_batch_size": 16, "prompt_max_len": 64, "generate_max_len": 32,
        "max_steps": 2,
    })  # fmt: skip
    print("trained model:", lightrft.train(config)["model_dir"])
