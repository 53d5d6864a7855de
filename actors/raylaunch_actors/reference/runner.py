"""Runs forward passes: eagerly with the plain model, or by replaying its captured pieces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raylaunch.errors import RankFault
from raylaunch.protocol import RoundName
from raylaunch.wire import StepPlan
from raylaunch_actors.communicator.base import AllReduce
from raylaunch_actors.communicator.streams import wait_for
from raylaunch_actors.graphs import context
from raylaunch_actors.graphs.addresses import FixedAddresses
from raylaunch_actors.graphs.backend import GraphBackend
from raylaunch_actors.graphs.context import ForwardContext, Mode
from raylaunch_actors.graphs.piecewise import PiecewiseGraph
from raylaunch_actors.graphs.split import CompiledOnce
from raylaunch_actors.graphs.whole import WholeModel
from raylaunch_actors.reference.attention import AttentionBatch
from raylaunch_actors.reference.kv_cache import KVCache
from raylaunch_actors.reference.limits import Limits
from raylaunch_actors.reference.model import LoadedModel

if TYPE_CHECKING:
    from raylaunch_actors.reference.decode_attention import StaticDecodeBatch


SCORED_ROWS = 16


@dataclass(frozen=True)
class StaticInputs:
    """The inputs of one round and shape, at addresses that stay.

    Each is a tensor of its own and no slice of a larger one: Dynamo guards the strides of a slice and the
    size of a view's base, so a slice would compile again at another size.

    Attributes:
        ids: int64 ``[1, shape]``.
        positions: int64 ``[1, shape]``, or ``[axes, 1, shape]`` where a token has several.
    """

    ids: Tensor
    positions: Tensor


class ModelRunner:
    """A rank's model, its KV cache and its static inputs.

    ``prepare()`` allocates; ``compile()`` traces, once; ``dummy()`` is a pass over padding for warm-up and
    capture; ``forward()`` runs a step. All of it belongs to one thread; gradients are off and stay off, as
    Dynamo guards that.

    Args:
        loaded: the rank's part of the model.
        cache: its KV cache.
        limits: the rounds' shapes.
        device: where everything lives.
        communicator: sums sharded logits; may be None with one rank.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        cache: KVCache,
        limits: Limits,
        device: torch.device,
        communicator: AllReduce | None = None,
    ) -> None:
        self.loaded, self.cache, self.limits, self.device = loaded, cache, limits, device
        self.communicator = communicator
        self.use_graphs = False  # whether compile() was called: steps are then replayed
        self._inputs: dict[tuple[str, int], StaticInputs] = {}
        self._compiled: Callable[..., Any] = loaded.inner
        self._whole: PiecewiseGraph | None = None
        self._decode_batches: dict[int, StaticDecodeBatch] = {}

    def prepare(self) -> None:
        """Allocates the KV cache and the static inputs. Raises RankFault if memory does not suffice."""
        self.cache.allocate()
        axes = self.loaded.facts.position_axes
        lead = (axes, 1) if axes > 1 else (1,)
        rounds: tuple[RoundName, RoundName] = ("prefill", "decode")
        for round_ in rounds:
            for shape in self.limits.shapes_of(round_):
                self._inputs[round_, shape] = StaticInputs(
                    torch.zeros((1, shape), dtype=torch.long, device=self.device),
                    torch.zeros((*lead, shape), dtype=torch.long, device=self.device),
                )
        if self.device.type == "cuda":
            self._make_decode_batches()

    def _make_decode_batches(self) -> None:
        """On a GPU, decode attention is one kernel over tensors that stay, so that it can be captured."""
        from raylaunch_actors.reference import decode_attention

        if decode_attention.supported(self.loaded.facts.head_dim):
            for shape in self.limits.decode_shapes:
                self._decode_batches[shape] = decode_attention.StaticDecodeBatch(self.cache, shape)

    def whole_decode(
        self, graphs: GraphBackend, addresses: FixedAddresses, compiled: CompiledOnce | None = None
    ) -> PiecewiseGraph | None:
        """The whole model as one piece for decode steps, where attention can be captured; else None.

        Args:
            compiled: run this instead of the plain decoder, because its pieces are faster.
        """
        if not self._decode_batches:
            return None
        name = "inputs_embeds" if self.loaded.facts.uses_embeds else "input_ids"
        return PiecewiseGraph(WholeModel(compiled or self.loaded.inner, name), "decode", graphs, addresses)

    def compile(self, compiled: CompiledOnce, whole: PiecewiseGraph | None = None) -> None:
        """Traces the decoder, wrapped as ``CompiledOnce(loaded.inner, ...)``; from then on steps use graphs.

        Args:
            whole: from :meth:`whole_decode`: what decode steps run instead.

        Traces the largest and then the smallest prefill shape: the second shows that one graph fits all
        sizes. Raises RankFault F20 if it does not.
        """
        self._compiled, self._whole = compiled, whole
        shapes = self.limits.prefill_shapes
        for shape in dict.fromkeys((shapes[-1], shapes[0])):
            self.dummy(Mode.TRACE, "prefill", shape)
        for shape in self._decode_batches:  # builds the kernels of every batch size: not while capturing
            self.dummy(Mode.EAGER, "decode", shape)
        self.use_graphs = True

    def fixed_addresses(self) -> FixedAddresses:
        """Everything graphs may read in place: parameters, buffers, static inputs. After :meth:`prepare`."""
        addresses = FixedAddresses()
        addresses.add_module(self.loaded.model)
        for (round_, shape), inputs in self._inputs.items():
            addresses.add(f"{round_}/{shape} ids", inputs.ids)
            addresses.add(f"{round_}/{shape} positions", inputs.positions)
        return addresses

    def dummy(self, mode: Mode, round_: str, shape: int) -> Tensor:
        """A pass over padding alone: ids and positions 0, the KV cache untouched.

        Returns hidden states ``[1, shape, hidden]``, meaningless and overwritten by the next pass.
        """
        wait_for(self.device)  # as what is copied to the GPU below would, in a place that has a name
        inputs = self._static(round_, shape)
        inputs.ids.zero_()
        inputs.positions.zero_()
        batch = self._decode_batches.get(shape) if round_ == "decode" else None
        if batch is not None:
            batch.fill(())
        return self._run(ForwardContext(mode, round_, shape, batch), inputs)

    def hidden(self, plan: StepPlan, mode: Mode) -> Tensor:
        """Hidden states of all rows of a step, ``[shape, hidden]``; rows past the real ones are padding.

        ``Mode.EAGER`` runs the plain model at the same padded shape, which makes it comparable bit by bit
        with ``Mode.REPLAY``. The result of a replay is overwritten by the next one.
        """
        inputs = self._static(plan.round, plan.shape)
        real = len(plan.tokens)
        inputs.ids.zero_()
        inputs.positions.zero_()
        inputs.ids[0, :real] = torch.tensor(plan.tokens, device=self.device)
        inputs.positions[..., :real] = torch.tensor(plan.positions, device=self.device)
        batch: AttentionBatch | StaticDecodeBatch = self._batch(plan)
        result = self._run(ForwardContext(mode, plan.round, plan.shape, batch), inputs)[0]
        wait_for(self.device)  # as the copy of the rows' numbers to the GPU would, in a place that has a name
        return result

    def forward(self, plan: StepPlan, mode: Mode | None = None) -> Tensor:
        """Runs a step.

        Args:
            plan: what to compute.
            mode: default REPLAY if the model was compiled, else EAGER.

        Returns:
            The hidden state of the last row of each sequence that wants a token, ``[n, hidden]``; a copy.
        """
        return self.forward_scored(plan, mode)[0]

    def forward_scored(self, plan: StepPlan, mode: Mode | None = None) -> tuple[Tensor, list[Tensor]]:
        """The same, and the hidden states of the rows that score a prompt, ``[rows, hidden]`` each, of at most
        :data:`SCORED_ROWS` rows: logits of all of them at once could be larger than the model."""
        hidden = self.hidden(plan, mode or (Mode.REPLAY if self.use_graphs else Mode.EAGER))
        last = [part.start + part.rows - 1 for part in plan.sequences if part.wants_token]
        scored = [part.start + row for part in plan.sequences for row in range(part.scored)]

        def select(rows: list[int]) -> Tensor:
            return hidden.index_select(0, torch.tensor(rows, dtype=torch.long, device=self.device))

        parts = [scored[at : at + SCORED_ROWS] for at in range(0, len(scored), SCORED_ROWS)]
        return select(last), [select(rows) for rows in parts]

    def logits(self, hidden: Tensor) -> Tensor | None:
        """Logits of ``[n, hidden]`` as float32 ``[n, vocab]``.

        Every rank calls it after every forward: where the head is sharded it is a collective. Where it is
        not, only rank 0 computes; the others get None. With n = 0 no rank computes or communicates.
        """
        facts = self.loaded.facts
        rank = self.communicator.rank if self.communicator else 0
        if not facts.lm_head_sharded:
            if rank != 0:
                return None
            with torch.no_grad():
                return self.loaded.logit_rule(self.loaded.lm_head(hidden)).float()
        if self.communicator is None:
            raise RankFault(None, "the head is divided among ranks and the runner has no communicator")
        with torch.no_grad():
            full = hidden.new_zeros((hidden.shape[0], facts.vocab_size))
            if hidden.shape[0]:
                own = self.loaded.logit_rule(self.loaded.lm_head(hidden))
                width = own.shape[-1]
                # Gathering as a sum: every element is nonzero on one rank only, so nothing is rounded.
                full[:, rank * width : (rank + 1) * width] = own
                full = self.communicator.all_reduce(full)
        return full.float()

    def _batch(self, plan: StepPlan) -> AttentionBatch | StaticDecodeBatch:
        static = self._decode_batches.get(plan.shape) if plan.round == "decode" else None
        if static is None:
            return AttentionBatch(self.cache, plan.sequences)
        static.fill(plan.sequences)
        return static

    def _static(self, round_: str, shape: int) -> StaticInputs:
        inputs = self._inputs.get((round_, shape))
        if inputs is None:
            known = sorted(known_shape for known_round, known_shape in self._inputs if known_round == round_)
            raise RankFault(None, f"{shape} is no {round_} shape; there are {known or 'none: call prepare() first'}")
        return inputs

    def _embeddings(self, ids: Tensor) -> Tensor:
        """Token embeddings ``[1, shape, hidden]``. Here is the place for embeddings of images."""
        embeddings: Tensor = self.loaded.embed(ids)
        if context.current().mode is Mode.TRACE:  # else Dynamo takes as many rows as a row has elements for one number
            torch._dynamo.mark_static(embeddings, 2)
        return embeddings

    def _run(self, forward_context: ForwardContext, inputs: StaticInputs) -> Tensor:
        run = self.loaded.inner if forward_context.mode is Mode.EAGER else self._compiled
        whole = self._whole if forward_context.round == "decode" else None
        with context.use(forward_context), torch.no_grad():
            if whole is not None and forward_context.mode is not Mode.EAGER:
                first = self._embeddings(inputs.ids) if self.loaded.facts.uses_embeds else inputs.ids
                result: Tensor = whole(first, inputs.positions)[0]
                return result
            if self.loaded.facts.uses_embeds:
                arguments = {"inputs_embeds": self._embeddings(inputs.ids)}
            else:
                arguments = {"input_ids": inputs.ids}
            out = run(**arguments, position_ids=inputs.positions, use_cache=False)
        hidden: Tensor = out[0]  # of a transformers ModelOutput: last_hidden_state
        return hidden
