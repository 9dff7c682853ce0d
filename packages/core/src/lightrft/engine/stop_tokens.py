"""The tokens that end a completion: one rule for warm-up, engines, evaluation, truncation metrics and masks.

The rule: a completion ends at any token that the tokenizer, `generation_config.json` or `config.json` names as end of sequence, or that
`stop_token_ids` names. Model folders often disagree with themselves (a chat tokenizer over a base model's configuration); whoever stops
at one of the sources only trains completions that run to the limit.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from lightrft.errors import ModelError

TOKENIZER, GENERATION, CONFIG, SETTING = "tokenizer", "generation_config.json", "config.json", "stop_token_ids"
NOT_OF_SAMPLING = (
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "_from_model_config", "transformers_version", "use_cache",
    "cache_implementation", "do_sample", "output_attentions", "output_hidden_states", "output_logits", "output_scores",
    "return_dict_in_generate",
)  # fmt: skip
"""Entries of generation_config.json that change no distribution (`do_sample` alone says nothing: temperature 1 is what is sampled)."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True, kw_only=True)
class StopTokens:
    """Token ids by the source that names them, and their texts (empty where there is no tokenizer).

    `outside` are named too, but the model has no row of the embedding for them: nothing can sample them.
    """

    sources: Mapping[str, tuple[int, ...]]
    texts: Mapping[int, str] = field(default_factory=dict)
    outside: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def ids(self) -> tuple[int, ...]:
        """The union of all sources, in ascending order."""
        return tuple(sorted({token for ids in self.sources.values() for token in ids}))

    def within(self, vocab_size: int) -> StopTokens:
        """Without the ids that a model of `vocab_size` rows cannot sample, which go to `outside`."""
        kept = {name: tuple(i for i in ids if 0 <= i < vocab_size) for name, ids in self.sources.items()}
        left = {name: tuple(i for i in ids if not 0 <= i < vocab_size) for name, ids in self.sources.items()}
        return replace(self, sources=kept, outside={name: ids for name, ids in left.items() if ids})

    def with_setting(self, stop_token_ids: Collection[int], *, ignore_eos: bool) -> StopTokens:
        """Beside what the model names, the recipe's own; with `ignore_eos` those alone."""
        named = {} if ignore_eos else dict(self.sources)
        return replace(self, sources=named | ({SETTING: tuple(stop_token_ids)} if stop_token_ids else {}))

    def described(self) -> str:
        """Each token with its text and the sources that name it, on one line."""
        parts = []
        for token in self.ids:
            names = [name for name, ids in self.sources.items() if token in ids]
            parts.append(f"{token}{self._quoted(token)} ({', '.join(names)})")
        return "; ".join(parts) or "none: every completion runs to its limit"

    def conflict(self) -> str | None:
        """A sentence where two of the model's own sources have no token in common, or one names a token that does not exist."""
        sentences = [
            f"{name} names the end-of-sequence token {', '.join(map(str, ids))}, which the model has no row for"
            for name, ids in self.outside.items()
        ]
        said = [(name, self.sources[name]) for name in (TOKENIZER, GENERATION, CONFIG) if self.sources.get(name)]
        differing = [(one, other) for one, other in combinations(said, 2) if not set(one[1]) & set(other[1])]
        if differing:
            (one, mine), (other, theirs) = differing[0]
            sentences.append(
                f"the sources of end-of-sequence tokens differ: {'the ' if one == TOKENIZER else ''}{one} ends with {self._listed(mine)}, "
                f"{other} with {self._listed(theirs)}; completions end at either of them"
            )
        return "; ".join(sentences) or None

    def _listed(self, ids: Collection[int]) -> str:
        return ", ".join(f"{token}{self._quoted(token)}" for token in ids)

    def _quoted(self, token: int) -> str:
        return f" {self.texts[token]!r}" if token in self.texts else ""


def stop_tokens(
    model_path: str | Path, *, tokenizer: Any = None, trust_remote_code: bool = False, also: Collection[int] = ()
) -> StopTokens:
    """The end-of-sequence tokens of a model folder or hub name, source by source; a source that is not there names none.

    `tokenizer` saves loading it again; `also` are tokens whose texts are wanted beside. What a class of transformers has for a default is
    no source: only what the files say counts.

    Raises:
        ModelError: a file is no JSON object, the tokenizer cannot be loaded, or an entry is no token id and no list of them.
    """
    config = read_json(model_path, CONFIG)
    text = config.get("text_config")
    found = {
        GENERATION: as_ids(read_json(model_path, GENERATION).get("eos_token_id"), where=f"{model_path}/{GENERATION}"),
        CONFIG: (
            *as_ids(config.get("eos_token_id"), where=f"{model_path}/{CONFIG}"),
            *(as_ids(text.get("eos_token_id"), where=f"{model_path}/{CONFIG}, text_config") if isinstance(text, dict) else ()),
        ),
    }
    tokenizer = tokenizer if tokenizer is not None else _tokenizer(model_path, trust_remote_code=trust_remote_code)
    own = {} if tokenizer is None else {TOKENIZER: as_ids(tokenizer.eos_token_id, where=f"{model_path}, tokenizer")}
    sources = {name: tuple(dict.fromkeys(ids)) for name, ids in (own | found).items() if ids}
    texts = {} if tokenizer is None else {i: text_of(tokenizer, i) for ids in [*sources.values(), also] for i in ids}
    return StopTokens(sources=sources, texts=texts)


def folder_stop_tokens(
    model_path: str | Path, *, tokenizer: Any = None, trust_remote_code: bool = False, also: Collection[int] = ()
) -> StopTokens:
    """As `stop_tokens`, without the ids that the model of the folder has no row for."""
    rows = embedding_rows(model_path)
    stops = stop_tokens(model_path, tokenizer=tokenizer, trust_remote_code=trust_remote_code, also=also)
    return stops if rows is None else stops.within(rows)


def embedding_rows(model_path: str | Path) -> int | None:
    """How many tokens the model has a row for, as its config.json says; None where it does not."""
    config = read_json(model_path, CONFIG)
    text = config.get("text_config")
    rows = (text if isinstance(text, dict) else config).get("vocab_size", config.get("vocab_size"))
    return rows if isinstance(rows, int) and not isinstance(rows, bool) else None


def unused_generation(model_path: str | Path) -> dict[str, Any]:
    """What generation_config.json says of sampling. Nothing of it is used, on any engine: the distribution that is trained has to be the
    one that is sampled, and that is the settings'.
    """
    said = read_json(model_path, GENERATION)
    return {name: value for name, value in said.items() if name not in NOT_OF_SAMPLING and value is not None}


def as_ids(value: Any, *, where: str) -> tuple[int, ...]:
    """Configurations say null, one id, or a list. Raises ModelError for anything else, naming the file."""
    ids = [] if value is None else value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise ModelError(f"{where}: eos_token_id={value!r} is no token id and no list of them; write a number, a list of numbers or null")
    return tuple(ids)


def text_of(tokenizer: Any, token: int) -> str:
    """The token as text, special ones included; empty where the tokenizer does not know it."""
    if not 0 <= token < len(tokenizer):
        return ""
    return str(tokenizer.decode([token], skip_special_tokens=False))


def read_json(model_path: str | Path, name: str) -> dict[str, Any]:
    """A JSON file of a model folder or hub name; empty where it has none. Raises ModelError where it is no JSON object."""
    file = _file(model_path, name)
    if file is None:
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} holds a {type(found).__name__}, expected a JSON object")
    return found


def _file(model_path: str | Path, name: str) -> Path | None:
    folder = Path(model_path)
    if folder.is_dir() or not _is_hub_name(model_path):
        return folder / name if (folder / name).is_file() else None
    from transformers.utils.hub import cached_file  # slow to import, and only hub names need it

    try:
        found = cached_file(str(model_path), name)
    except OSError:  # the repository has none
        return None
    return None if found is None else Path(found)


def _tokenizer(model_path: str | Path, *, trust_remote_code: bool) -> Any:
    """None where the folder holds no tokenizer."""
    if not _is_hub_name(model_path) and not any((Path(model_path) / name).is_file() for name in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(model_path), trust_remote_code=trust_remote_code)
    except Exception as error:  # a damaged file raises what its parser likes; the cause is chained
        reason = " ".join(str(error).split())
        raise ModelError(f"tokenizer {str(model_path)!r} cannot be loaded: {type(error).__name__}: {reason:.300}") from error


def _is_hub_name(model_path: str | Path) -> bool:
    text = str(model_path)
    return not Path(text).is_dir() and text.count("/") == 1 and not text.startswith((".", "/", "~"))
