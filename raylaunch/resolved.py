"""What is decided of a launch: each thing once, and handed down from there, to the ranks and to whoever shows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raylaunch.config import LaunchConfig
from raylaunch.errors import ConfigError
from raylaunch.protocol import LaunchPlan, RoundPlan

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

    from raylaunch.group.preloaded import Preloaded
    from raylaunch.model.shape import ModelShape
    from raylaunch.wire import SglangSockets


@dataclass(frozen=True)
class BundleRequest:
    """What is asked of Ray: one bundle per rank or per node, and how to spread them."""

    bundles: tuple[dict[str, float], ...]
    strategy: str

    @property
    def cpus(self) -> float:
        """CPUs of all bundles."""
        return sum(bundle.get("CPU", 0.0) for bundle in self.bundles)


@dataclass(frozen=True, kw_only=True)
class ResolvedLaunch:
    """A launch, as far as it is decided; whoever decides more hands on a copy. :func:`raylaunch.model_check.resolve`
    makes it before anything starts.

    Attributes:
        config: the configuration, with the context said outright where SGLang would take another.
        shape: the model's.
        program: what the ranks run, a key of ``raylaunch_actors.rank.PROGRAMS``.
        device: ``cpu`` or ``cuda``; ``auto`` until Ray is joined.
        request: what is asked of Ray.
        plan: the gates; with the engine ``sglang`` its rounds are there once rank 0 has settled them.
        kv_tokens: tokens that the KV cache of every rank holds; 0 until the ranks have settled that.
        sockets: where the engine ``sglang`` meets its tokenizer and detokenizer; None for other engines, and until the
            ranks have places.
        placement_group: of the user's, to place the ranks in and to leave alone; None makes one.
        preloaded: processes of this node that import already what ranks will; None for none.
    """

    config: LaunchConfig
    shape: ModelShape
    program: str
    device: str
    request: BundleRequest
    plan: LaunchPlan
    kv_tokens: int = 0
    sockets: SglangSockets | None = None
    placement_group: PlacementGroup | None = None
    preloaded: Preloaded | None = None

    @property
    def world_size(self) -> int:
        """Ranks in the group."""
        return self.plan.world_size

    @property
    def revision(self) -> str | None:
        """What every process reads of a model on the Hub: the commit that the driver has found, wherever the branch
        has moved to since. SGLang reads the tokenizer at the same revision: with one of another repository, in which
        the model's commit is none, it is the configured one."""
        model = self.config.model
        beside = model.tokenizer not in (None, model.path) and not Path(model.tokenizer).is_absolute()
        if beside and self.config.engine.kind == "sglang":
            return model.revision
        return self.shape.commit or model.revision

    @property
    def context(self) -> int:
        """Tokens of a prompt and its answer together that the model may have."""
        said = self.config.engine.sglang.args.get("context_length") or self.config.engine.max_context
        return int(said or self.shape.max_positions)

    @property
    def max_context(self) -> int:
        """Tokens of a prompt and its answer together, at most: of the context, and of the cache once that is known."""
        return min(self.context, self.kv_tokens or self.context)


def launch_of(config: LaunchConfig, shape: ModelShape, program: str = "") -> ResolvedLaunch:
    """What follows from the configuration alone. Raises :class:`ConfigError` as :func:`request_for`.

    Args:
        program: what the ranks run, if it is not the configured engine.
    """
    device = config.engine.device
    return ResolvedLaunch(
        config=config,
        shape=shape,
        program=program or config.engine.kind,
        device=device,
        request=request_for(config, device),
        plan=plan_of(config),
    )


def plan_of(config: LaunchConfig) -> LaunchPlan:
    """The gates of a launch."""
    capture, world = config.capture, config.parallel.tensor_parallel_size
    first = None if capture.verify_first == "all" else capture.verify_first
    if config.engine.kind == "sglang":
        return LaunchPlan(world, (), capture.granularity, rounds_from_ranks=True, verify_first=first)
    prefill, decode = RoundPlan("prefill", capture.prefill_tokens), RoundPlan("decode", capture.decode_batch_sizes)
    measures = config.communicator.kind == "auto" and world > 1
    rounds = (prefill, decode) if capture.enabled else ()
    return LaunchPlan(world, rounds, capture.granularity, measures=measures, verify_first=first)


def variables_of_ranks(config: LaunchConfig) -> dict[str, str]:
    """Variables that every rank has, wherever it runs."""
    threads = str(config.engine.threads)
    ours = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    return {**ours, **config.environment}


def gpus_per_rank(config: LaunchConfig, device: str) -> float:
    """GPUs of one rank: one unless the configuration says otherwise, none on a CPU."""
    return config.placement.resources_per_rank.get("GPU", 1.0) if device == "cuda" else 0.0


def request_for(config: LaunchConfig, device: str) -> BundleRequest:
    """The bundles of a launch: ranks of one group packed on a node where they fit, several nodes only when asked.

    Args:
        device: ``auto`` asks for as many CPUs as it will, wherever it leads.

    Raises:
        ConfigError: ranks on GPUs ask for resources without one.
    """
    rank = dict(config.placement.resources_per_rank) or ({"CPU": 1.0, "GPU": 1.0} if device == "cuda" else {"CPU": 1.0})
    if device == "cuda" and "GPU" not in rank:
        expected = "ranks on GPUs need one: add GPU: 1, or set engine.device=cpu"
        raise ConfigError("placement.resources_per_rank", rank, expected)
    world, nodes, strategy = config.parallel.tensor_parallel_size, config.parallel.nodes, config.placement.strategy
    if nodes == 1:
        return BundleRequest((rank,) * world, "STRICT_PACK" if strategy == "auto" else strategy)
    node = {name: amount * (world // nodes) for name, amount in rank.items()}
    return BundleRequest((node,) * nodes, "STRICT_SPREAD" if strategy == "auto" else strategy)
