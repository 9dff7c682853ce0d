"""New weights for the engines of all ranks: given, counted, and compared by checksums with what the engines hold afterwards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from lightrft.distributed.collectives import gather_objects, in_words, raise_together
from lightrft.distributed.mesh import Axis
from lightrft.distributed.world import World
from lightrft.engine.base import InferenceEngine, WakeTag
from lightrft.errors import WeightSyncError
from lightrft.plugins.specs import EngineSpec
from lightrft.types import EngineStatus
from lightrft.weights.buckets import WeightBucket
from lightrft.weights.checksum import WeightChecksum
from lightrft.weights.verify import SentChecksums, first_names, over_group, shape_problems

T = TypeVar("T")


@dataclass(frozen=True)
class SyncKind:
    """`method` of an engine takes the buckets, `says` gives the checksums of what it holds then: with `whole` of all that was sent."""

    method: str
    says: str
    whole: bool = False

    def give(self, engine: InferenceEngine, buckets: Iterator[WeightBucket], version: int) -> None:
        getattr(engine, self.method)(buckets, version=version)

    def checksums(self, engine: InferenceEngine) -> Mapping[tuple[str, ...], WeightChecksum]:
        found: Mapping[tuple[str, ...], WeightChecksum] = getattr(engine, self.says)()
        return found


ALL_WEIGHTS = SyncKind("update_weights", "weight_checksums")
ADAPTERS = SyncKind("update_adapters", "adapter_checksums", whole=True)


class WeightSync(ABC):
    """The half of `RolloutController` that brings weights. Methods are collective over the world."""

    spec: EngineSpec
    engine: InferenceEngine | None
    group: Axis
    version: int
    gives_checksums: bool
    unverified: list[str]
    sent_fingerprint: int | None
    _world: World
    _status: EngineStatus
    _verify_checksums: bool
    _unverified_base: list[str]
    _base_is_compared: bool = False
    sent_bytes: int = 0
    """Of the weights of the last sync, for each engine."""

    @abstractmethod
    def _usable(self) -> None: ...

    @abstractmethod
    def _wake(self, tags: tuple[WakeTag, ...]) -> None: ...

    @abstractmethod
    def _together(self, doing: str, work: Callable[[], T]) -> T: ...

    @abstractmethod
    def _agree(self, error: Exception | None, doing: str, *, number: int = 0) -> list[int]: ...

    def update_weights(self, buckets: Iterable[WeightBucket], *, shapes: Mapping[tuple[str, ...], tuple[int, ...]] | None = None) -> None:
        """Wakes the weights, gives the engine every bucket, resets its caches; `version` rises by one. `buckets` is collective: all ranks
        read it to the end even where an engine raises.

        `shapes` (all names of each weight, its full shape) is compared with what the engine needs before the first bucket is asked for;
        afterwards the engine's own tensors with what was sent, by checksums. `unverified` names the weights that it gives no checksum for.

        Raises:
            WeightSyncError: names or shapes do not fit (nothing has changed); or the engine refused the weights; or does not hold them
                (UNUSABLE from then on).
        """
        self._usable()
        self._together("comparing names and shapes", lambda: self._check_shapes(shapes))
        self._unverified_base, self._base_is_compared = [], False
        self._give(buckets, ALL_WEIGHTS)

    def compare_base(self, base: Callable[[], Iterable[WeightBucket]]) -> None:
        """Once in a run, where syncs are verified: whether the engine was built with the weights that the actor's adapters are added to.

        Raises:
            WeightSyncError: it was not (UNUSABLE from then on).
        """
        self._usable()
        if self._base_is_compared or not self._verify_checksums:
            return
        self._wake(("weights",))
        sent = SentChecksums()
        deque(sent.watch(base()), maxlen=0)
        self._verify(
            sent, self._held_checksums(), "the weights that the actor's adapters are added to; set --lora_sync merged, which sends all"
        )
        self._unverified_base, self._base_is_compared = self.unverified, True

    def update_adapters(self, buckets: Iterable[WeightBucket], *, modules: Collection[str]) -> None:
        """As `update_weights`, of the adapters alone: A and B of each of `modules`, as `InferenceEngine.update_adapters` takes them.

        Raises:
            WeightSyncError: the engine cannot adapt one of the modules (nothing has changed), or as `update_weights`.
        """
        self._usable()
        self._together("comparing modules", lambda: self._check_modules(modules))
        self._give(buckets, ADAPTERS)

    def differing_weights(self, buckets: Iterable[WeightBucket], *, adapters: bool = False) -> list[str] | None:
        """The names of the engine's tensors that do not hold these weights, identical on every rank; None where it gives no checksums.

        `buckets` is collective and is read to the end; with `adapters` they are those of `update_adapters`.
        """
        self._usable()
        self._wake(("weights",))
        sent = SentChecksums()
        deque(sent.watch(buckets) if self.gives_checksums else buckets, maxlen=0)
        if not self.gives_checksums:
            return None
        held = self._held_checksums(ADAPTERS if adapters else ALL_WEIGHTS)
        found = gather_objects(sent.differing(held) if self.engine is not None else [], group=self._world.group)
        return list(dict.fromkeys(name for names in found for name in names))

    # ---- parts ---------------------------------------------------------------------------------------------------------------------------

    def _check_shapes(self, shapes: Mapping[tuple[str, ...], tuple[int, ...]] | None) -> None:
        held = self.engine.weight_shapes() if self.engine is not None and shapes is not None else {}
        problems = shape_problems(shapes or {}, held) if held else []
        if problems:
            raise WeightSyncError(f"the actor's weights do not fit engine {self.spec.name!r}, the old ones stay: {'; '.join(problems)}")

    def _check_modules(self, modules: Collection[str]) -> None:
        lacking = self.engine.unadaptable(modules) if self.engine is not None else []
        if lacking:
            raise WeightSyncError(
                f"engine {self.spec.name!r} cannot adapt {first_names(lacking)}; set --lora_sync merged, or leave "
                f"{', '.join(dict.fromkeys(name.rpartition('.')[2] for name in lacking))} out of lora_target_modules"
            )

    def _give(self, buckets: Iterable[WeightBucket], kind: SyncKind) -> None:
        """The buckets to the engine, and the comparison with what it holds then."""
        self._wake(("weights",))
        sent = SentChecksums()
        stream = self._counted(sent.watch(buckets) if self._verify_checksums and self.engine is not None else iter(buckets))
        error: Exception | None = None
        try:
            if self.engine is not None:
                kind.give(self.engine, stream, self.version + 1)
                left = sum(1 for _ in stream)
                if left:
                    raise WeightSyncError(f"engine {self.spec.name!r} returned from {kind.method} with {left} buckets unread")
                self.engine.reset_cache()
        except Exception as caught:  # raised below, on all ranks together, once the collective iterator is drained
            error = caught
        deque(stream, maxlen=0)
        self._agree(error, "updating the engine's weights")
        if self._verify_checksums:
            self._verify(sent, self._held_checksums(kind), f"the actor after sync {self.version + 1}", whole=kind.whole)
            self.unverified = self._unverified_base + self.unverified
            self.sent_fingerprint = sent.fingerprint() if self.engine is not None else None
        self.version += 1

    def _counted(self, buckets: Iterator[WeightBucket]) -> Iterator[WeightBucket]:
        self.sent_bytes = 0
        for bucket in buckets:
            self.sent_bytes += sum(weight.tensor.numel() * weight.tensor.element_size() for weight in bucket)
            yield bucket

    def _verify(self, sent: SentChecksums, held: Mapping[tuple[str, ...], WeightChecksum], what: str, *, whole: bool = False) -> None:
        """`whole`: what it gives no checksum for is not there."""
        wrong = sent.differing(held) if self.engine is not None else []
        self.unverified = sent.unverified(held) if self.engine is not None else []
        if whole:
            wrong, self.unverified = wrong + self.unverified, []
        error = (
            WeightSyncError(
                f"engine {self.spec.name!r} does not hold {what}: the checksum differs of {first_names(wrong)}; compared were {len(held)} "
                "tensors"
            )
            if wrong
            else None
        )
        words = gather_objects(in_words(error), group=self._world.group)
        if any(words):
            self._status = EngineStatus.UNUSABLE
        raise_together(error, words, doing="verifying the engine's weights")

    def _held_checksums(self, kind: SyncKind = ALL_WEIGHTS) -> Mapping[tuple[str, ...], WeightChecksum]:
        """The engine's, of the whole group; nothing on ranks without an engine."""
        engine = self.engine
        mine = self._together("reading the engine's checksums", lambda: kind.checksums(engine) if engine is not None else {})
        if self.spec.topology == "spmd":
            return over_group(gather_objects(mine, group=self.group.group))
        return mine
