"""A small tensor-parallel decoder, compiled and cut at attention, with everything it needs to be captured."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from raylaunch_actors.communicator.base import AllReduce
from raylaunch_actors.graphs import context, ops
from raylaunch_actors.graphs.addresses import FixedAddresses
from raylaunch_actors.graphs.capture import CaptureRunner
from raylaunch_actors.graphs.context import ForwardContext, Mode
from raylaunch_actors.graphs.piecewise import PiecewiseGraph
from raylaunch_actors.graphs.recorded import RecordedGraphs
from raylaunch_actors.graphs.split import CompiledOnce, PieceBackend
from torch import nn

HEADS, HEAD, HIDDEN, INNER, VOCAB = 4, 8, 32, 64, 50


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(HIDDEN)), 1e-6

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


class Layer(nn.Module):
    def __init__(self, index: int, group: str, world_size: int, experts: bool):
        super().__init__()
        self.index, self.group, self.experts = index, group, experts
        self.heads, inner = HEADS // world_size, INNER // world_size
        self.norm1, self.norm2 = Norm(), Norm()
        self.qkv = nn.Linear(HIDDEN, 3 * self.heads * HEAD)
        self.out = nn.Linear(self.heads * HEAD, HIDDEN, bias=False)
        self.gate_up = nn.Linear(HIDDEN, 2 * inner)
        self.down = nn.Linear(inner, HIDDEN, bias=False)
        if experts:
            self.router = nn.Linear(HIDDEN, 4)
            self.expert_gate_up = nn.Parameter(torch.randn(4, 2 * inner, HIDDEN))
            self.expert_down = nn.Parameter(torch.randn(4, HIDDEN, inner))

    def forward(self, x, positions):
        y = self.norm1(x) + torch.sin(positions.to(x.dtype) * 0.01)[..., None]
        q, k, v = self.qkv(y).view(1, -1, 3 * self.heads, HEAD).transpose(1, 2).chunk(3, 1)
        a = torch.ops.raylaunch.attention(q, k, v, HEAD**-0.5, self.index)
        x = x + torch.ops.raylaunch.all_reduce(self.out(a.flatten(2)), self.group)
        y = self.norm2(x)
        if self.experts:
            weight, chosen = self.router(y[0]).softmax(-1).topk(2)
            z = torch.ops.raylaunch.experts(y[0], chosen, weight, self.expert_gate_up, self.expert_down)[None]
        else:
            gate, up = self.gate_up(y).chunk(2, -1)
            z = self.down(F.silu(gate) * up)
        return x + torch.ops.raylaunch.all_reduce(z, self.group)


class Decoder(nn.Module):
    def __init__(self, group: str, rank: int, world_size: int, layers: int, dtype: torch.dtype, experts: bool):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(Layer(i, group, world_size, experts) for i in range(layers))
        self.norm = Norm()
        generator = torch.Generator()
        for name, parameter in self.named_parameters():
            sharded = any(part in name for part in ("qkv", "out", "gate_up", "down"))
            generator.manual_seed(len(name) * 1000 + sum(name.encode()) + (rank + 1 if sharded else 0))
            parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.2).to(dtype)

    def forward(self, ids, positions):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, positions)
        return self.norm(x)


class CausalBatch:
    """Attention without a cache."""

    def attend(self, q, k, v, scale, layer):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(1, 2)


class KeptBackend(PieceBackend):
    """One whose split model is kept, so that its pieces can be renewed."""

    def __call__(self, module, example_inputs):
        self.split = super().__call__(module, example_inputs)
        return self.split

    def renew(self, graphs: RecordedGraphs, addresses: FixedAddresses):
        """Puts pieces that were never captured in the places of those that were."""
        places = {piece: name for name, piece in self.split.named_children()}
        names = [places[piece] for piece in self.pieces]
        self.pieces[:] = [PiecewiseGraph(piece.module, piece.name, graphs, addresses) for piece in self.pieces]
        for name, piece in zip(names, self.pieces, strict=True):
            setattr(self.split, name, piece)


class Engine:
    """A decoder on one rank, and the verbs of a launch."""

    def __init__(
        self, communicator: AllReduce, layers=3, dtype=torch.float32, experts=False, iterations=2, **compiling
    ):
        self.group = f"test-{id(self)}"
        self.model = Decoder(self.group, communicator.rank, communicator.world_size, layers, dtype, experts)
        self._begin(communicator, iterations)
        self.backend = KeptBackend(self.graphs, self.addresses, **compiling)
        self.compiled = CompiledOnce(self.model, self.backend)

    def _begin(self, communicator: AllReduce, iterations: int):
        ops.bind_group(self.group, communicator)
        self.communicator, self.iterations = communicator, iterations
        self.addresses = FixedAddresses()
        self.addresses.add_module(self.model)
        self.graphs = RecordedGraphs(communicator)
        self.inputs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def renew(self, communicator: AllReduce, iterations=2):
        """As it was after the trace, with another communicator: compiling again would take a second."""
        ops.unbind_group(self.group)
        self._begin(communicator, iterations)
        self.backend.renew(self.graphs, self.addresses)

    def forward(self, mode: Mode, round: str, shape: int, seed: int | None = None, plain: bool = False):
        if shape not in self.inputs:
            self.inputs[shape] = torch.zeros(1, shape, dtype=torch.long), torch.arange(shape)[None].clone()
            for name, tensor in zip(("ids", "positions"), self.inputs[shape], strict=True):
                self.addresses.add(f"{name} of shape {shape}", tensor)
        ids, positions = self.inputs[shape]
        if seed is not None:
            ids.copy_(torch.randint(VOCAB, ids.shape, generator=torch.Generator().manual_seed(seed)))
        batch = None if mode in (Mode.TRACE, Mode.WARM, Mode.CAPTURE) else CausalBatch()
        with torch.inference_mode(), context.use(ForwardContext(mode, round, shape, batch)):
            return (self.model if plain else self.compiled)(ids, positions)

    def trace(self, *shapes: int):
        for shape in shapes:
            self.forward(Mode.TRACE, "prefill", shape)

    def runner(self) -> CaptureRunner:
        return CaptureRunner(
            self.communicator,
            self.forward,
            dict.fromkeys(("prefill", "decode"), self.backend.pieces),
            self.iterations,
            self.graphs.memory,
        )

    def same(self, round: str, shape: int, seed: int) -> bool:
        """Whether replay equals the plain model bit by bit, on pools full of NaN."""
        eager = self.forward(Mode.EAGER, round, shape, seed, plain=True).clone()
        for piece in self.backend.pieces:
            piece.pool.poison()
        return torch.equal(self.forward(Mode.REPLAY, round, shape, seed), eager) and not eager.isnan().any()

    def close(self):
        ops.unbind_group(self.group)
        if self.backend.compiles:
            torch._dynamo.reset()
