"""What makes a run the same run after a resume, beside models and optimizers. A registry of parts that save and load themselves."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from lightrft.distributed.collectives import gather_objects
from lightrft.errors import CheckpointError
from lightrft.strategy.strategy_base import StrategyBase

State = dict[str, Any]


class Stateful(Protocol):
    """`state_dict` holds numbers, strings, tensors and containers of them, and shares nothing that changes later. Local, both."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str] | None: ...


class RunState:
    """The parts by name. `register` yours, and it is saved and restored with the run."""

    def __init__(self, strategy: StrategyBase) -> None:
        self.strategy = strategy
        self._parts: dict[str, Stateful] = {}
        self._per_rank: set[str] = set()

    def register(self, name: str, part: Any, *, per_rank: bool = False) -> None:
        """`per_rank`: its state differs from rank to rank, else rank 0's is everyone's. Raises ValueError for a name twice."""
        if name in self._parts:
            raise ValueError(f"a part {name!r} of the run's state is registered already")
        self._parts[name] = part
        if per_rank:
            self._per_rank.add(name)

    def snapshot(self) -> State:
        """The state of every part now, of this rank. Local."""
        return {name: dict(part.state_dict()) for name, part in self._parts.items()}

    def gathered(self, snapshot: State) -> State:
        """What is saved: a snapshot with the states of all ranks, in rank order, where they differ. Collective."""
        mine = {name: snapshot[name] for name in sorted(self._per_rank)}
        ranks = gather_objects(mine, group=self.strategy.world.group)
        return snapshot | {name: [rank[name] for rank in ranks] for name in mine}

    def load(self, saved: Mapping[str, Any]) -> list[str]:
        """Restores every part; returns what they say of it, and a sentence for each that is of another number of ranks and left out.

        Raises:
            CheckpointError: a part is missing, or does not take its state.
        """
        world, told = self.strategy.world, list[str]()
        missing = [name for name in self._parts if name not in saved]
        if missing:
            raise CheckpointError(f"the checkpoint has no state of {', '.join(missing)}; another version or trainer saved it")
        for name, part in self._parts.items():
            state = saved[name]
            if name not in self._per_rank:
                told += part.load_state_dict(state) or []
            elif len(state) == world.world_size:
                part.load_state_dict(state[world.rank])
            else:
                told.append(f"{name} of {len(state)} ranks does not fit {world.world_size} and starts anew")
        return told


class RandomState:
    """The global random generators of this process: Python's, numpy's, torch's and the device's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def state_dict(self) -> State:
        import numpy

        name, keys, position, has_gauss, cached = numpy.random.get_state(legacy=True)
        state: State = {
            "python": random.getstate(),
            "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
            "torch": torch.get_rng_state(),
        }
        if self._device.type == "cuda":
            state["device"] = torch.cuda.get_rng_state(self._device)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        import numpy

        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, position, has_gauss, cached = state["numpy"]
        numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, cached))
        torch.set_rng_state(state["torch"])
        if self._device.type == "cuda" and "device" in state:
            torch.cuda.set_rng_state(state["device"], self._device)


class EngineState:
    """The engine's weight version and the number of its calls, from which its seeds follow.

    After `load_state_dict` the next sync gives the saved version; `synced` then forgets the calls that proving that sync took.
    """

    def __init__(self, strategy: StrategyBase) -> None:
        self._strategy = strategy
        self._saved: State | None = None

    def state_dict(self) -> State:
        return {"version": self._strategy.weight_version, "calls": self._strategy.engine_calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._saved = dict(state)
        self._strategy.restore_engine(weight_version=state["version"] - 1, calls=state["calls"])

    def synced(self) -> None:
        """After the first sync of a resumed run. Local."""
        if self._saved is not None:
            self._strategy.restore_engine(weight_version=self._saved["version"], calls=self._saved["calls"])
            self._saved = None


class SkippedSteps:
    """How many optimizer steps were skipped, by model."""

    def __init__(self, strategy: StrategyBase) -> None:
        self._strategy = strategy

    def state_dict(self) -> State:
        return dict(self._strategy.skipped_steps)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._strategy.skipped_steps.clear()
        self._strategy.skipped_steps.update(state)
