"""The settings. The one typed source; flags, recipes and the saved configuration are generated from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lightrft.config.value_types import (
    AboveOne,
    AtLeastOne,
    Count,
    CountOrOff,
    Decay,
    Fraction,
    Fraction01,
    NoBool,
    Number,
    OneToTwo,
    PathText,
    PathWord,
    Positive,
    PositiveOrOff,
    RegularExpression,
    Seed,
    Sources,
    StopString,
    TokenId,
    json_object,
    numbers,
    one_alone,
    one_or_more,
)


def _field(default: Any, group: str, description: str) -> Any:
    return Field(default, description=description, json_schema_extra={"group": group})


PLUGINS = "plugins"
"""The group of the one setting that is no flag: each plugin's settings are flags of their own."""


class Config(BaseModel):
    """The settings of one run, flat and frozen. Counts of samples are global (over all ranks) unless the text says "per rank".

    Example::

        >>> import lightrft
        >>> lightrft.Config(strategy="single").model_copy(update={"seed": 7}).seed
        7
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @property
    def corrects(self) -> bool:
        """Whether the policy loss of each token is weighed by importance sampling, for which the engine gives all log-probs."""
        return self.logprob_gap_action == "correct" or self.max_version_lag > 0

    # Training backend
    strategy: str = _field("", "strategy", "any installed strategy by name; empty: --fsdp gives fsdp, else deepspeed")
    fsdp: bool = _field(False, "strategy", "use FSDP instead of DeepSpeed")
    zero_stage: Annotated[Literal[0, 1, 2, 3], NoBool] = _field(2, "strategy", "DeepSpeed ZeRO stage")
    fsdp_cpu_offload: bool = _field(False, "strategy", "keep FSDP's optimizer state on the CPU outside the update")
    offload_frozen: bool = _field(False, "strategy", "keep the reference model and reward models on the CPU but for their passes")
    fsdp_reshard_after_forward: bool = _field(
        True, "strategy", "gather FSDP's parameters again in the backward pass; no: keep them from the forward, for more memory"
    )
    adam_offload: bool = _field(False, "strategy", "keep Adam's state and run Adam on the CPU (DeepSpeed, zero_stage 2 or 3)")
    sp_size: Count = _field(1, "strategy", "sequence parallel size, in ranks")
    bf16: bool = _field(False, "strategy", "compute in bfloat16")
    use_mp_opt: bool = _field(False, "strategy", "hold bfloat16 parameters, and float32 masters in the optimizer (FSDP, with bf16)")
    gradient_checkpointing: bool = _field(
        False, "strategy", "compute the activations of each block again in the backward pass instead of keeping them"
    )
    compile: Literal["auto", "yes", "no"] = _field(
        "auto",
        "strategy",
        "compile each block of a model by torch.compile; auto: on CUDA, but for experts, models below 10 M "
        "parameters, DeepSpeed's stage 3 and sp_size above 1",
    )
    packing_samples: bool = _field(False, "strategy", "pack several samples into one row, without padding")
    max_tokens_per_micro_batch: Count = _field(
        16384, "strategy", "tokens of one packed row at most (packing_samples); a longer sample goes alone"
    )
    fused_linear_logprob: bool = _field(False, "strategy", "compute log-probs by blocks of tokens and vocabulary, in less memory")
    chunk_size: Count = _field(4096, "strategy", "tokens at a time of the fused log-probs")

    # Inference engine
    engine_type: str = _field("vllm", "engine", "any installed engine by name")
    engine_tp_size: Count = _field(1, "engine", "ranks of one engine (tensor parallel)")
    engine_mem_util: Fraction = _field(0.85, "engine", "fraction of the GPU's memory for the engine")
    engine_args: Annotated[dict[str, Any], BeforeValidator(json_object)] = _field(
        {}, "engine", "options of the engine's library: a mapping, JSON, or --engine_args.NAME VALUE for each"
    )
    deterministic_rollout: bool = _field(
        False, "engine", "a completion depends on nothing else in its batch: the engine's batch-invariant kernels, which are slower"
    )
    enable_engine_sleep: bool = _field(True, "engine", "put the engine to sleep while training")
    engine_sleep_level: Annotated[Literal[1, 2], NoBool] = _field(
        1, "engine", "1 keeps the weights in host memory, 2 drops them until the next sync"
    )
    generate_timeout_s: PositiveOrOff = _field(
        0.0, "engine", "seconds after which a rank whose engine has not returned from generate ends the run; 0 = wait for ever"
    )
    weight_bucket_mb: Count = _field(256, "engine", "bound on one bucket of a weight sync, MiB")
    verify_sync_every: CountOrOff = _field(
        10,
        "engine",
        "verify that the engine holds the actor: checksums at every sync where it can give them, fixed prompts at the first and every so "
        "many rollouts; 0 = none",
    )
    logprob_gap_prompts: CountOrOff = _field(
        2, "engine", "prompts per rank and rollout whose log-probs the engine is asked for; 0 = no check"
    )
    logprob_gap_threshold: PositiveOrOff = _field(
        0.0,
        "engine",
        "mean |engine - trainer| log-prob, nats per token, beyond which to act; 0 = what rounding explains: 0.0001 in float32 on CPUs, "
        "0.0125 there on GPUs, 0.05 in bfloat16",
    )
    logprob_gap_action: Literal["warn", "correct", "stop"] = _field(
        "warn",
        "engine",
        "beyond the threshold warn, or stop; correct: warn, and always weigh every token by truncated importance sampling "
        "(asks the engine for the log-probs of all prompts)",
    )
    mismatch_level: Literal["token", "sequence"] = _field("token", "engine", "importance weights of tokens or of whole completions")
    mismatch_cap: AtLeastOne = _field(2.0, "engine", "bound on an importance weight; tokens beyond it are counted as clipped")
    mismatch_beyond: Literal["truncate", "mask"] = _field(
        "truncate", "engine", "what is beyond the bounds gets the bound, or no weight at all"
    )
    mismatch_floor: Fraction01 = _field(0.0, "engine", "with mask: importance weights below this get no weight either")

    # Model
    model_name_or_path: PathText = _field("", "model", "HF folder or hub name of the actor (and of the initial model)")
    trust_remote_code: bool = _field(False, "model", "let the model's repository run its own code")
    save_dtype: Literal["source", "float32", "bfloat16", "float16"] = _field(
        "source", "model", "dtype of the weights in `model/` and `ema_model/`; source: of each tensor as in the model's own folder"
    )
    lora_rank: CountOrOff = _field(0, "model", "train low-rank adapters of this rank instead of the weights (LoRA); 0 = the weights")
    lora_alpha: Positive = _field(16.0, "model", "scale of the adapters times their rank")
    lora_sync: Literal["auto", "adapters", "merged"] = _field(
        "auto", "model", "a sync gives the engine adapters alone, which keeps the base weights, or merged weights; auto: its cheaper way"
    )
    lora_target_modules: list[str] = _field(["all-linear"], "model", "ends of the names of the layers that get adapters, or all-linear")
    freeze: RegularExpression = _field("", "model", "regular expression; the actor's parameters with a matching name are not trained")
    scratch_tokenizer: Literal["none", "char", "bpe"] = _field(
        "none", "model", "make a small random model and this tokenizer from the data instead of loading one"
    )
    scratch_vocab_size: Count = _field(2048, "model", "vocabulary of the scratch bpe tokenizer")
    scratch_layers: Count = _field(2, "model", "layers of the scratch model")
    scratch_hidden: Count = _field(128, "model", "hidden size of the scratch model")
    scratch_heads: Count = _field(4, "model", "query heads of the scratch model")
    scratch_kv_heads: Count = _field(4, "model", "key-value heads of the scratch model")
    sft_steps: CountOrOff = _field(0, "model", "supervised warm-up steps at most, on rank 0 before the run; 0 = none")
    sft_batch_size: Count = _field(64, "model", "rows of one supervised step")
    sft_learning_rate: Positive = _field(1e-3, "model", "learning rate of the warm-up")
    sft_key: str = _field("", "model", "column with the text to imitate; empty: label_key")
    sft_strip: RegularExpression = _field("", "model", "regular expression; what it matches is taken out of the text to imitate")
    sft_target_reward: Number = _field(0.0, "model", "stop the warm-up at this greedy reward on the evaluation data; 0 = run all steps")

    # Data
    prompt_data: Sources = _field(
        "",
        "data",
        "training prompts: .jsonl, .parquet, a `datasets` folder, or a dataset of the hub, OWNER/NAME:SUBSET:SPLIT; of several sources a "
        "list with commas, each PATH or NAME=PATH",
    )
    prompt_data_weights: Annotated[list[Positive], BeforeValidator(numbers)] = _field(
        [], "data", "fraction of each source among the prompts, in any unit; empty: the rows of all sources are one set"
    )
    eval_data: Annotated[list[PathWord], BeforeValidator(one_or_more)] = _field(
        [], "data", "evaluation prompts, likewise: one or several sources, each PATH or NAME=PATH; none: no evaluation"
    )
    input_key: str = _field("prompt", "data", "column of the prompt: text, a list of chat messages, or a list of token ids")
    label_key: str = _field(
        "answer", "data", "column of the reference answer, or of a list of accepted ones; a field of a struct: COLUMN.FIELD; empty: none"
    )
    prompt_template: str = _field("{prompt}", "data", "text around the prompt; {prompt} stands for it")
    apply_chat_template: bool = _field(False, "data", "put the prompt into the tokenizer's chat template as the user's turn")
    system_prompt: str = _field("", "data", "system turn of every conversation that has none of its own (with apply_chat_template)")
    images_key: str = _field(
        "images",
        "data",
        "column of a row's images: paths, bytes, base64 data URIs, or as `datasets` keeps them; rows may lack it; empty: none",
    )
    videos_key: str = _field(
        "videos", "data", "column of a row's videos: animations as images are given, or lists of frames; rows may lack it; empty: none"
    )
    images_folder: PathText = _field(
        "", "data", "folder where relative paths of images start, and which no path leaves; empty: the data file's"
    )
    max_image_pixels: CountOrOff = _field(
        0, "data", "pixels of an image at most; larger ones are made smaller in proportion; 0 = as the model's processor does"
    )
    tools_key: str = _field("", "data", "column of the tools that the chat template prints: a list of objects, or JSON text; empty: none")
    chat_template_kwargs: Annotated[dict[str, Any], BeforeValidator(json_object)] = _field(
        {}, "data", 'variables for the chat template, such as {"enable_thinking": false}: a mapping, or JSON'
    )
    special_tokens_in_prompts: Literal["text", "tokens"] = _field(
        "text", "data", "read special tokens that stand in the words of the data as plain text, or (a column rendered before) as tokens"
    )
    prompt_max_len: Count = _field(1024, "data", "longer prompts, in tokens, are left out and counted")
    max_eval_samples: CountOrOff = _field(0, "data", "evaluate on the first rows of each file only; 0 = all")
    eval_n: CountOrOff = _field(0, "data", "samples of each evaluation prompt beside the greedy one, drawn as in a rollout; 0 = none")
    eval_temperature: PositiveOrOff = _field(0.0, "data", "temperature of those samples; 0 = that of a rollout")
    eval_top_p: Fraction01 = _field(0.0, "data", "nucleus sampling of those samples; 0 = that of a rollout")
    eval_top_k: Annotated[int, Field(ge=-1), NoBool] = _field(
        -1, "data", "k of those samples, which are drawn among the k most likely tokens; 0 = off, -1 = that of a rollout"
    )
    eval_max_len: CountOrOff = _field(
        0, "data", "tokens of one completion of an evaluation at most, greedy or sampled; 0 = generate_max_len"
    )
    eval_k: list[Count] = _field([], "data", "k of pass@k, maj@k and avg@k, each at most eval_n; none: 1 and eval_n")
    eval_right_at: Number = _field(1.0, "data", "reward from which on a completion counts as right (pass@k, maj@k)")
    eval_out: PathText = _field("", "data", "file for all completions of `lightrft eval` (.jsonl); train writes eval_samples-STEP.jsonl")

    # Rollout
    rollout_batch_size: Count = _field(128, "rollout", "prompts of one rollout")
    micro_rollout_batch_size: Count = _field(
        8, "rollout", "prompts per rank in one forward of the reference engine, samples in one log-prob pass"
    )
    n_samples_per_prompt: Count = _field(8, "rollout", "completions drawn for each prompt")
    generate_max_len: Count = _field(1024, "rollout", "tokens of one completion at most")
    temperature: Positive = _field(1.0, "rollout", "sampling temperature of a rollout")
    top_p: Fraction = _field(1.0, "rollout", "nucleus sampling of a rollout")
    top_k: CountOrOff = _field(0, "rollout", "sample among the k most likely tokens; 0 = off")
    min_p: Annotated[float, Field(ge=0, lt=1), NoBool] = _field(
        0.0, "rollout", "sample among tokens at least this likely, relative to the likeliest one; 0 = off"
    )
    stop: Annotated[list[StopString], BeforeValidator(one_alone)] = _field(
        [], "rollout", "texts that end a completion, in rollouts and evaluations; they stay in it"
    )
    stop_token_ids: Annotated[list[TokenId], BeforeValidator(one_alone)] = _field(
        [], "rollout", "token ids that end a completion, beside those that tokenizer, generation_config.json and config.json name"
    )
    min_new_tokens: CountOrOff = _field(0, "rollout", "tokens of one completion at least; 0 = none")
    ignore_eos: bool = _field(
        False, "rollout", "let nothing but stop, stop_token_ids and generate_max_len end a completion of a rollout or an evaluation"
    )
    dynamic_sampling: bool = _field(
        False, "rollout", "sample on until every prompt of the rollout has completions with different rewards (DAPO)"
    )
    dynamic_sampling_tries: Count = _field(4, "rollout", "rollouts for one step at most; then prompts without a signal fill it up")
    oversample: OneToTwo = _field(
        1.0, "rollout", "prompts in flight, in rollout_batch_size; above 1 a step ends before its longest answers (max_version_lag)"
    )
    max_version_lag: CountOrOff = _field(
        0, "rollout", "updates that an unfinished answer may go on through (oversample), its policy loss corrected; 0 = none"
    )
    slice_max_len: CountOrOff = _field(
        0,
        "rollout",
        "tokens that every answer, or turn, grows by between two looks at how many are finished (oversample); 0 = generate_max_len / 8",
    )
    overlong_filter: bool = _field(False, "rollout", "leave completions that generate_max_len cut off out of the loss (DAPO)")
    overlong_buffer: CountOrOff = _field(
        0, "rollout", "last tokens before generate_max_len over which the reward sinks by overlong_penalty (DAPO); 0 = off"
    )
    overlong_penalty: Positive = _field(1.0, "rollout", "how far the reward sinks at generate_max_len")
    balance_ranks: bool = _field(
        False, "rollout", "move completions between ranks, so that each has about as many tokens in every optimizer step"
    )
    environment: PathWord = _field(
        "", "rollout", "what answers the model's turns: plugin name, path/to/file.py:Class or module:Class; empty: one completion is all"
    )
    max_turns: Count = _field(8, "rollout", "turns of the model in one episode at most")
    turn_max_len: CountOrOff = _field(
        0, "rollout", "tokens of one turn at most; 0 = generate_max_len, which bounds the whole episode, divided by max_turns"
    )
    rewritten_turns: Literal["refuse", "split"] = _field(
        "refuse", "rollout", "a chat template that writes earlier turns of an episode anew: refuse it, or split episodes there"
    )
    environment_timeout_s: Positive = _field(60.0, "rollout", "seconds for one call of an environment; then its episode ends")
    environment_concurrency: Count = _field(32, "rollout", "calls of environments at a time, per rank")
    mixed_mm_data: bool = _field(False, "rollout", "text and image prompts in one batch")

    # Rewards
    reward: list[PathWord] = _field(
        ["exact_match"],
        "reward",
        "rewards: plugin name, [name=]path/to/file.py:function, [name=]module:function, a server: [name=]http://host:port/path, or a "
        "model: [name=]model:FOLDER (sequence classifier with one output); without name= a function's own name",
    )
    reward_weights: list[Number] = _field([], "reward", "weight of each reward in the sum; empty: all 1")
    allow_code_execution: bool = _field(
        False, "reward", "let the reward `code` and the environment `python` run the model's programs, sandboxed"
    )
    code_sandbox: Literal["full", "weak"] = _field(
        "full", "reward", "their sandbox; weak: go on where the system gives no namespaces, without protection of files and network"
    )
    reward_key: str = _field(
        "", "reward", "column of the data that names the rewards which count for a row, one or a list; empty, or no value: all of them"
    )
    reward_shard_size: CountOrOff = _field(0, "reward", "ranks that share one copy of a reward model; 0 = the strategy's choice")
    reward_max_len: CountOrOff = _field(0, "reward", "tokens of a reward model's input; longer ones lose their start; 0 = its own limit")
    reward_while_generating: bool = _field(
        False,
        "reward",
        "reward prompts that have ended while the engine goes on with others; a reward then sees whole prompts, any number at once",
    )
    reward_timeout_s: Positive = _field(60.0, "reward", "seconds for one request to a reward server")
    reward_retries: CountOrOff = _field(5, "reward", "how often a reward server that failed is asked again before the run stops")
    reward_backoff_s: Positive = _field(
        1.0, "reward", "seconds before a reward server is asked again; doubled each time up to 30, with jitter"
    )
    reward_concurrency: Count = _field(8, "reward", "requests to one reward server at a time, per rank")
    reward_batch_size: Count = _field(32, "reward", "samples in one request to a reward server")
    reward_auth_env: str = _field(
        "", "reward", "environment variable with the value of the Authorization header for reward servers; empty: none"
    )
    dead_reward_steps: Count = _field(5, "reward", "rollouts without any signal after which the console says so")

    # Algorithm
    advantage_estimator: str = _field("grpo", "algorithm", "any installed advantage estimator by name")
    gamma: Fraction01 = _field(1.0, "algorithm", "discount of later rewards, per token (gae, reinforce_pp)")
    lambd: Fraction01 = _field(0.95, "algorithm", "lambda of gae: 1 trusts the rewards alone, 0 the critic's next value")
    turn_credit: Literal["episode", "turn"] = _field(
        "episode",
        "algorithm",
        "where rewards of an environment stand: at an episode's end, or at that of the turn that earned them (gae, reinforce_pp)",
    )
    whiten_advantages: Literal["auto", "yes", "no"] = _field(
        "auto", "algorithm", "advantages to mean 0, deviation 1 over all tokens of a rollout; auto: where the estimator asks for it"
    )
    normalize_rewards: bool = _field(False, "algorithm", "rewards to mean 0, deviation 1 of all rewards of the run so far")
    critic_model_name_or_path: PathText = _field("", "algorithm", "HF folder or hub name of the critic's start (gae); empty: the actor's")
    critic_learning_rate: Positive = _field(1e-5, "algorithm", "peak learning rate of the critic's AdamW")
    critic_warmup_steps: CountOrOff = _field(0, "algorithm", "first rollouts in which the critic learns alone")
    value_clip: PositiveOrOff = _field(0.2, "algorithm", "how far values may move in an update before their loss is clipped; 0 = off")
    policy_loss: str = _field("ppo_clip", "algorithm", "any installed policy loss by name")
    loss_aggregation: Literal["", "token_mean", "sequence_mean", "constant"] = _field(
        "",
        "algorithm",
        "mean over all tokens, or over completions of each one's mean, or sum over tokens by completions x generate_max_len (Dr. GRPO); "
        "empty: that of policy_loss, mostly token_mean",
    )
    eps_clip: PositiveOrOff = _field(0.0, "algorithm", "clip of the probability ratio; 0 = the bounds of policy_loss, mostly 0.2")
    eps_clip_low: Fraction01 = _field(0.0, "algorithm", "its bound below, 1 - this, at most 1; 0 = eps_clip")
    eps_clip_high: PositiveOrOff = _field(0.0, "algorithm", "its bound above, 1 + this (clip-higher); 0 = eps_clip")
    dual_clip: PositiveOrOff = _field(0.0, "algorithm", "bound above 1 on the loss of a negative advantage, times it (ppo_clip); 0 = off")
    entropy_coef: PositiveOrOff = _field(0.0, "algorithm", "weight of the entropy bonus, exact over the vocabulary; 0 = off")
    router_balance_coef: PositiveOrOff = _field(0.0, "algorithm", "weight of the loss that balances a model's experts; 0 = off")
    kl_coef: PositiveOrOff = _field(0.0, "algorithm", "weight of the KL to the initial model; 0 = no initial model")
    kl_estimator: Literal["k1", "k2", "k3"] = _field("k3", "algorithm", "estimator of the KL")
    kl_in: Literal["loss", "reward"] = _field("loss", "algorithm", "KL as a term of the loss or of the reward")
    kl_target: PositiveOrOff = _field(0.0, "algorithm", "move kl_coef so that the KL stays here, nats per completion; 0 = fixed")
    kl_horizon: Positive = _field(10000.0, "algorithm", "completions over which the adaptive kl_coef moves")

    # Update
    train_batch_size: Count = _field(128, "update", "samples of one update (optimizer step)")
    micro_train_batch_size: Count = _field(4, "update", "samples per rank in one forward and backward")
    max_epochs: Count = _field(1, "update", "passes over each rollout's completions (PPO's epochs)")
    num_episodes: Count = _field(1, "update", "passes over the prompts")
    max_steps: CountOrOff = _field(0, "update", "rollouts of the run, whatever num_episodes says; 0 = as num_episodes says")
    learning_rate: Positive = _field(1e-6, "update", "peak learning rate of AdamW")
    lr_scheduler: Literal["constant_with_warmup", "linear", "cosine"] = _field("constant_with_warmup", "update", "learning-rate schedule")
    lr_warmup_steps: CountOrOff = _field(0, "update", "updates (optimizer steps, not rollouts) of linear warm-up")
    adam_beta1: Decay = _field(0.9, "update", "AdamW")
    adam_beta2: Decay = _field(0.95, "update", "AdamW")
    weight_decay: PositiveOrOff = _field(0.0, "update", "AdamW")
    max_norm: PositiveOrOff = _field(1.0, "update", "clip of the gradient norm; 0 = off")
    ema_beta: Decay = _field(
        0.0, "update", "fraction of the past in a moving average of the actor's weights, moved by every update; 0 = no average"
    )

    # Run
    hang_timeout_s: PositiveOrOff = _field(
        1800.0,
        "run",
        "seconds that a rank may stand still in a phase before it is named and the run ends; less where the past allows; 0 = off",
    )
    phase_timeouts: list[str] = _field([], "run", "other seconds for single phases, each PHASE=SECONDS (rollout=7200), 0 for no limit")
    heartbeat_timeout_s: Positive = _field(60.0, "run", "seconds without a sign of life after which a rank counts as stopped")
    seed: Seed = _field(42, "run", "of everything random")
    output_dir: PathText = _field("runs/lightrft", "run", "the run folder: configuration, metrics, plots, the model")
    overwrite_output_dir: bool = _field(False, "run", "allow a run folder that holds another run, and replace it")
    log_dir: PathText = _field("", "run", "folder of logs and plots; empty: the run folder")
    plot_every: CountOrOff = _field(10, "run", "rollouts between two plots: distributions of lengths and rewards, curves; 0 = none")
    save_samples: CountOrOff = _field(3, "run", "completions of each rollout kept in samples.jsonl: best, worst and median first; 0 = none")
    eval_every: CountOrOff = _field(0, "run", "rollouts between two evaluations; 0 = only before and after")
    save_every: CountOrOff = _field(0, "run", "rollouts between two checkpoints; 0 = one only where the run is stopped or fails")
    async_save: bool = _field(False, "run", "go on training while the checksums of a checkpoint are made and it is brought to the disk")
    save_every_minutes: PositiveOrOff = _field(0.0, "run", "minutes after which the next rollout ends with a checkpoint as well; 0 = off")
    stop_grace_s: PositiveOrOff = _field(
        0.0, "run", "seconds that a run which was told to stop may take to save; then it is ended; 0 = as long as it takes"
    )
    keep_checkpoints: CountOrOff = _field(3, "run", "newest checkpoints that stay; 0 = all")
    keep_best: CountOrOff = _field(0, "run", "checkpoints that stay beside the newest: the best ones by best_metric")
    best_metric: str = _field("eval/reward", "run", "metric that the best checkpoints are chosen by, where it was measured")
    best_mode: Literal["max", "min"] = _field("max", "run", "whether more or less of it is better")
    early_stop_patience: CountOrOff = _field(
        0, "run", "end the run once best_metric has been measured that many times in a row without a better value; 0: never"
    )
    resume_from: PathText = _field("", "run", "go on from this checkpoint (RUN/checkpoints/step-N), or from the run folder's `latest`")
    loggers: list[str] = _field(["console", "jsonl"], "run", "any installed loggers by name")
    monitor_steps: Count = _field(
        5,
        "run",
        "rollouts in a row that entropy, the critic's explained variance or the update (gradient 0, updates skipped, weights unmoved, "
        "everything cut off) must look wrong before the run says so",
    )
    on_warning: Literal["continue", "stop"] = _field(
        "continue", "run", "stop: a warning ends the run at the end of its rollout, with a checkpoint, a summary and exit code 2"
    )
    length_factor: AboveOne = _field(
        2.5, "run", "how many times longer, or shorter, completions may become than in the first 3 rollouts before the run says so"
    )
    entropy_fraction: PositiveOrOff = _field(
        0.05, "run", "fraction of the entropy of the first 3 rollouts below which the run says so; 0 = never"
    )
    kl_limit: Positive = _field(1.0, "run", "nats per token from the initial model beyond which the run says so")

    plugins: dict[str, dict[str, Any]] = _field({}, PLUGINS, "settings that plugins bring, by the plugin's name")
