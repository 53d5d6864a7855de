"""What a rank does at SGLang's capture rounds: stops at gates, notes what is recorded, refuses what must not happen."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from raylaunch.errors import RankFault
from raylaunch.protocol import (
    CaptureFacts,
    Gate,
    IterationFacts,
    RegisterFacts,
    RoundPlan,
    WarmupFacts,
)
from raylaunch.protocol.rounds import RoundName
from raylaunch_actors.gate import RankGate
from raylaunch_actors.sglang_engine import communicators
from raylaunch_actors.sglang_engine.pieces import Pieces
from raylaunch_actors.sglang_engine.recorded import Recorded
from raylaunch_actors.sglang_engine.versions import graph_backend, planned_shapes, settled_graphs
from raylaunch_actors.spec import RankSpec

ITERATIONS = {"tc_piecewise": 2, "breakable": 3, "full": 3}
"""Forward passes of a shape by SGLang's backend: warm-ups, and one that is captured. None replays."""


class Rounds:
    """The rank's state between WARMUP and READY. Its methods are called by the hooks of ``seams.py``."""

    def __init__(self, spec: RankSpec, gate: RankGate) -> None:
        self.spec, self.gate = spec, gate
        self.recorded, self.pieces = Recorded(), Pieces()
        self.model_runner: Any = None
        self.runner: Any = None
        self.fused: str | None = None  # FlashInfer's backend, if its all-reduce was reported
        self.plans: tuple[RoundPlan, ...] | None = None
        self.replays = 0
        self.replays_allowed = self.graphs_final = False
        self._graphs: weakref.WeakSet[Any] = weakref.WeakSet()  # those that were begun in a round
        self._round: RoundPlan | None = None
        self._shape = self._iteration = 0
        self._plain = True  # of the shape's variants, only the plain one stops at gates

    # ---- WARMUP

    def warmed(self) -> None:
        """WARMED, once: what will be captured is known, nothing has been."""
        if self.plans is not None:
            return
        communicators.require_fused(self.fused)
        shapes = planned_shapes(self.runner, self.model_runner) if self.runner is not None else {}
        graphs = settled_graphs()
        names: tuple[RoundName, RoundName] = ("prefill", "decode")
        backends = {name: graph_backend(graphs, name) for name in names if shapes.get(name)}
        self.plans = tuple(
            RoundPlan(name, tuple(sorted(shapes[name])), ITERATIONS[backend]) for name, backend in backends.items()
        )
        self.gate.set_rounds(self.plans)
        pieces = self.pieces.indexes
        facts = WarmupFacts(
            pieces=len(pieces),
            eager_pieces=self.pieces.eager(),
            whole_rounds=tuple(name for name, backend in backends.items() if backend != "tc_piecewise"),
            compiles=1 if pieces else 0,
            planned_inputs=self._planned_inputs(),
            replays=self.replays,
            kv_tokens=int(self.model_runner.max_total_num_tokens),
            rounds=self.plans,
        )
        self.gate.arrive(Gate.WARMED, facts)

    def _planned_inputs(self) -> int:
        """Inputs that sgl_kernel's table will have to hold at most: two all-reduces a layer, and the embedding's."""
        limits = [one.max_size for one in communicators.active() if not hasattr(one, "_graph_inputs")]
        if not limits or self.plans is None:
            return 0
        config = self.model_runner.model_config
        row = config.hidden_size * self.model_runner.dtype.itemsize
        shapes = [shape for plan in self.plans for shape in plan.shapes if shape * row <= limits[0]]
        return len(shapes) * (2 * int(config.num_hidden_layers) + 1)

    # ---- CAPTURE

    def begin(self, name: RoundName) -> None:
        """Before SGLang enters its capture context."""
        self.warmed()
        self._round = next((plan for plan in self.plans or () if plan.name == name), None)
        if self._round is None:
            raise RankFault("F03", f"SGLang captures a {name} round that it did not plan")
        self.pieces.use(name, self.runner.backend)

    def begin_shape(self, size: int, plain: bool) -> None:
        """Before a shape's first iteration."""
        self._shape, self._iteration, self._plain = size, 0, plain
        self._arrive(1)

    def iteration(self) -> None:
        """A forward pass begins; one too many is reported to the driver, which refuses it."""
        self._iteration += 1
        if self._round is not None and self._iteration > self._round.iterations:
            self._arrive(self._iteration)

    def between(self) -> None:
        """After a forward pass that was not captured: the next one needs the driver's leave."""
        if self._round is not None and self._iteration < self._round.iterations:
            self._arrive(self._iteration + 1)

    def end_shape(self) -> None:
        """After a shape's last iteration. Raises RankFault F01 if it had too few or too many."""
        wanted = self._round.iterations if self._round else 0
        if self._iteration != wanted:
            raise RankFault("F01", f"{self.where()}: SGLang ran {self._iteration} iterations, {wanted} were planned")
        self._shape = 0

    def _arrive(self, iteration: int) -> None:
        assert self._round is not None
        name = self._round.name
        if not self._plain:
            self.gate.progress(f"capturing a variant of {name} {self._shape}")
            return
        facts = IterationFacts(self.recorded.facts(name), self.replays)
        self.gate.arrive(Gate.ITERATION, facts, round=name, shape=self._shape, iteration=iteration)

    def where(self) -> str:
        """Such as ``rank 1: prefill 1152, iteration 2``."""
        name = self._round.name if self._round else "no round"
        return f"rank {self.spec.rank}: {name} {self._shape}, iteration {self._iteration}"

    # ---- what happens inside an iteration

    def record(self, nbytes: int, shape: Sequence[int], dtype: object) -> None:
        """An all-reduce whose input peers will read is captured. Raises RankFault F02 outside of a round."""
        if self._round is None or not self._shape:
            raise RankFault("F02", f"rank {self.spec.rank}: an all-reduce is captured outside of a capture round")
        self.recorded.add(self._round.name, self._shape, nbytes, shape, str(dtype))

    def reduces(self, pointer: int, captured: bool, staged: bool) -> None:
        """sgl_kernel's all-reduce of this address is called. Raises RankFault F02 outside of its capture context.

        There it runs also in an iteration that warms up, where that of its peers only looks as if it did: they would
        never meet. And captured as if it ran at once, its address would never be recorded.
        """
        in_iteration = self._round is not None and self._shape
        if (captured and staged) or (in_iteration and not communicators.in_capture_context(pointer)):
            raise RankFault(
                "F02",
                f"{self.where()}: an all-reduce outside the custom all-reduce's capture context: its input would "
                "never be registered with the peers",
            )

    def before_piece(self, piece: Any, *arguments: Any) -> None:
        """A piece is called. Raises RankFault F20 if it warms where it must be captured.

        At the end of the round that would be too late: an all-reduce that runs here waits on the GPU for a peer that
        only captures it.
        """
        capturing = self._round is not None and self._shape and self._iteration == self._round.iterations
        if capturing and self.pieces.warms(piece, arguments):
            raise RankFault(
                "F20",
                f"{self.where()}: piece {piece.piecewise_compile_index} warms again where it must be captured, as if "
                "it was compiled anew: the first request would capture it, outside of the capture context",
            )

    def before_replay(self, graph: Any) -> None:
        """Counts a replay of a round's graph. Raises RankFault F01 before it is launched if it is too early.

        Other graphs hold no all-reduce whose input peers read. SGLang makes such to time something while it connects
        (``enable_mscclpp``, ``SGLANG_DETECT_SLOW_RANK``), and replays them at once.
        """
        if graph not in self._graphs:
            return
        if not self.replays_allowed:
            raise RankFault(
                "F01",
                f"{self.where()}: a graph is replayed before its all-reduce inputs are registered with the peers",
            )
        self.replays += 1

    def before_graph(self, graph: Any, *_: Any) -> None:
        """A stream begins to capture a graph. Raises RankFault F20 once the graphs are final."""
        if self.graphs_final:
            raise RankFault(
                "F20", f"rank {self.spec.rank}: a graph is captured after REGISTER: it would never be registered"
            )
        if self._round is not None:
            self._graphs.add(graph)

    # ---- the end of a round

    def captured(self) -> None:
        """CAPTURED: all shapes are captured; SGLang's context has not exchanged anything yet."""
        plan = self._round
        assert plan is not None
        recorded, waiting = self.recorded.count(plan.name), communicators.pending()
        if waiting != recorded:
            raise RankFault(
                "F02",
                f"rank {self.spec.rank}: {waiting} inputs wait for registration and {recorded} were recorded in the "
                f"{plan.name} round",
            )
        facts = self.recorded.facts(plan.name)
        self.gate.arrive(
            Gate.CAPTURED,
            CaptureFacts(
                recorded=facts,
                sizes=self.recorded.sizes(plan.name),
                in_graphs={shape: inputs.count for shape, inputs in facts.items()},
                missing={shape: self.pieces.missing(plan.name, shape) for shape in plan.shapes},
                replays=self.replays,
            ),
            round=plan.name,
        )

    def failed(self, error: BaseException) -> None:
        """An exception inside the round: said first, and the exchange at the context's exit is switched off."""
        self.gate.fail(error)
        communicators.switch_off()

    def registered(self) -> None:
        """REGISTERED: SGLang's context has been left."""
        plan = self._round
        assert plan is not None
        self.gate.arrive(
            Gate.REGISTERED,
            RegisterFacts(communicators.pending(), self.recorded.count(), self.replays),
            round=plan.name,
        )
        self._round = None
        if self.plans and plan is self.plans[-1]:
            self.replays_allowed = self.graphs_final = True
