"""How SGLang's objects are made and read. What differs between its versions on a rank is here, and nowhere else.

A way is chosen by what SGLang has, never by its number. The versions that are named are those that brought a change.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from raylaunch.errors import RankFault
from raylaunch.wire import SglangSockets
from raylaunch_actors.spec import RankSpec

if TYPE_CHECKING:
    import torch

SHOWN = 3  # arguments in an error


def server_args(arguments: Mapping[str, Any]) -> Any:
    """SGLang's ``ServerArgs``, settled. Raises RankFault with SGLang's own words if it refuses them."""
    from sglang.srt.parser.template_detection import resolve_auto_parsers
    from sglang.srt.server_args import ServerArgs

    try:
        args = ServerArgs(**arguments)
        if hasattr(args, "resolve_once"):  # 0.5.19; before, it is done by now
            args.resolve_once()
        args.check_server_args()
        resolve_auto_parsers(args)  # SGLang does this where it starts its schedulers, which take no "auto"
        generates = _model_config(args).is_generation
    except (ValueError, TypeError, AssertionError, NotImplementedError, OSError) as error:
        raise RankFault(None, f"SGLang refuses its server arguments: {type(error).__name__}: {error}") from error
    if not generates:
        text = f"{args.model_path} is for embeddings or rewards: only models that generate are supported"
        raise RankFault(None, text)
    sizes = {name: value(args, name) for name in OF_OTHER_GROUPS}
    if more := [f"{name} = {size}" for name, size in sizes.items() if size not in (1, None)]:
        raise RankFault(None, f"SGLang has settled on {', '.join(more)}: only tensor parallelism is supported")
    return args


def _model_config(args: Any) -> Any:
    if hasattr(args, "get_model_config"):
        return args.get_model_config()
    from sglang.srt.arg_groups.model_override_base import model_config_of  # 0.5.19

    return model_config_of(args)


def value(args: Any, name: str) -> Any:
    """A settled argument; None if this version has none of the name."""
    try:
        from sglang.srt.arg_groups.overrides import resolution_result  # 0.5.19: the fields stay as they were given
    except ImportError:
        return getattr(args, name, None)
    return resolution_result(args, name)


OF_OTHER_GROUPS = ("pp_size", "dp_size", "ep_size", "attn_cp_size", "moe_dp_size", "attn_dp_size", "dcp_size")
"""Must be 1, as every rank is told that it is the first in such a group. SGLang itself settles on more for some models,
and for ``moe_a2a_backend: deepep``."""


SETTLED_ALONE = (
    "random_seed", "node_rank", "skip_server_warmup", "host", "port", "api_key", "served_model_name", "chat_template",
)  # fmt: skip
"""Arguments that may differ: rank 0 broadcasts its seed; the others are of the server, of which ranks are not told."""


def resolved_arguments(args: Any, alone: Collection[str] = SETTLED_ALONE) -> dict[str, str]:
    """What SGLang has made of its arguments, as text by name, but for some; taken before anything changes them."""
    # 0.5.20: a class of msgspec, and no data class.
    fields = getattr(args, "__struct_fields__", None) or [one.name for one in dataclasses.fields(args)]
    values = {name: _as_text(value(args, name)) for name in fields}
    # A text with an address in it says nothing of the object, and is another in every process.
    return {name: value for name, value in values.items() if name not in alone and " at 0x" not in value}


def _as_text(value: Any) -> str:
    # Sets of text come in another order in every process.
    return repr(sorted(value, key=repr) if isinstance(value, set | frozenset) else value)


def unlike(theirs: Mapping[str, str], here: Mapping[str, str]) -> str:
    """The first of their arguments that are settled differently here, in words; "" if there are none."""
    names = [name for name, value in theirs.items() if value != here.get(name)]
    return ", ".join(f"{name} ({theirs[name]} and {here.get(name)})" for name in names[:SHOWN])


def port_args(sockets: SglangSockets) -> Any:
    """SGLang's ``PortArgs`` with these sockets. The rendezvous is set by :func:`use_store`, not by a port."""
    from sglang.srt.server_args import PortArgs

    return PortArgs(
        tokenizer_ipc_name=sockets.tokenizer,
        scheduler_input_ipc_name=sockets.scheduler_input,
        detokenizer_ipc_name=sockets.detokenizer,
        nccl_port=0,
        rpc_ipc_name=sockets.rpc,
        metrics_ipc_name=sockets.metrics,
        tokenizer_worker_ipc_name=None,
        decoupled_spec_ipc_config=None,
        instance_id=sockets.instance,
        load_collector_ipc_name=sockets.loads,
    )


def use_store(address: str) -> None:
    """Lets ``init_process_group`` join the store that rank 0 has bound already, as clients of it on every rank.

    This is how torchrun's agents hand their store to workers (``TORCHELASTIC_USE_AGENT_STORE``): nobody binds a port
    that was only looked up before.
    """
    host, _, port = address.rpartition(":")
    shown = f"[{host}]" if ":" in host else host  # torch reads it as a URL
    os.environ["SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE"] = f"tcp://{shown}:{port}"
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "0"
    # Since torch 2.14 only if these name the same address.
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = host, port


def make_scheduler(spec: RankSpec, args: Any) -> Any:
    """Builds SGLang's scheduler on this thread: connects, loads, warms up and captures, passing the hooked gates."""
    from sglang.srt.environ import envs
    from sglang.srt.managers.scheduler import Scheduler, configure_scheduler_process
    from sglang.srt.runtime_context import publish

    assert spec.sockets is not None  # the driver makes them for this engine
    others = {"attn_cp_rank": 0, "moe_dp_rank": 0, "moe_ep_rank": 0, "pp_rank": 0, "dp_rank": None}
    ranks: dict[str, Any] = {"gpu_id": spec.device_index, "tp_rank": spec.rank, **others}
    placed: dict[str, Any] = {}
    if "ranks" in inspect.signature(publish).parameters:  # 0.5.21: what is published says which rank this is
        from sglang.srt.runtime_context import SpawnRanks

        placed = {"ranks": SpawnRanks(world_rank=spec.rank, dp_rank=None, gpu_id=spec.device_index)}
        ranks = {"gpu_id": spec.device_index}
    publish(args, role="scheduler", **placed)
    configure_scheduler_process(args, **ranks)
    if envs.SGLANG_SET_CPU_AFFINITY.get():  # that was for the process's first thread, and this is another
        os.sched_setaffinity(0, os.sched_getaffinity(os.getpid()))
    return Scheduler(server_args=args, port_args=port_args(spec.sockets), **({} if placed else ranks))


def settled_graphs() -> Any:
    """SGLang's ``cuda_graph_config``, as this process has published it."""
    from sglang.srt.runtime_context import get_exec

    return get_exec().graph.cuda_graph_config


def settled_communication() -> Any:
    """Its arguments of the group ``exec.comm``, as this process has published them."""
    from sglang.srt.runtime_context import get_exec

    return get_exec().comm


def model_context(runner: Any) -> AbstractContextManager[Any]:
    """Around what a runner does for its model: 0.5.23 has something to say there."""
    return runner.model_context() if hasattr(runner, "model_context") else nullcontext()


def forward_context(model_runner: Any, batch: Any = None) -> AbstractContextManager[Any]:
    """Around a forward pass, of a batch where it is known: what 0.5.23 reads of it there, others do not ask for."""
    from sglang.srt.model_executor import forward_context as theirs

    takes_batch = "forward_batch" in inspect.signature(theirs.forward_context).parameters
    options = {"forward_batch": batch} if takes_batch else {}
    context: AbstractContextManager[Any] = theirs.forward_context(
        theirs.ForwardContext(attn_backend=model_runner.attn_backend), **options
    )
    return context


def planned_shapes(runner: Any, model_runner: Any) -> dict[str, list[int]]:
    """Shapes that each round will capture, as SGLang has settled them, by ``prefill`` and ``decode``.

    Args:
        runner: the runner that is about to capture first.
        model_runner: SGLang's.
    """
    from sglang.srt.model_executor.runner.base_cuda_graph_runner import get_batch_sizes_to_capture

    shapes: dict[str, list[int]] = {}
    if hasattr(runner, "capture_num_tokens") and hasattr(runner, "prefill_backend_name"):
        shapes["prefill"] = list(runner.capture_num_tokens)
    if settled_graphs().decode.backend != "disabled":
        shapes["decode"] = list(get_batch_sizes_to_capture(model_runner)[0])
    return shapes


def graph_backend(graphs: Any, round_name: str) -> str:
    """Name of the backend that captures a round. SGLang makes no pieces of decode: who asks for them gets whole passes.

    Args:
        graphs: SGLang's ``cuda_graph_config``.
    """
    asked = str(getattr(graphs, round_name).backend)
    return "full" if (round_name, asked) == ("decode", "tc_piecewise") else asked


def leave_loop(scheduler: Any) -> None:
    """Asks a scheduler that serves to leave its loop before its next turn; from any thread."""
    scheduler.gracefully_exit = True


def is_idle(scheduler: Any) -> bool:
    """Whether a scheduler that serves has nothing to do, and all that it has is in memory."""
    return scheduler.is_fully_idle() and not is_paused(scheduler) and not scheduler.weight_updater.offload_tags


def lends_rows(model_runner: Any) -> bool:
    """Whether rows of its cache can be had for a while, and are all that a token needs: one pool, no states."""
    plain = type(model_runner.token_to_kv_pool_allocator).__name__ in PLAIN_POOLS
    return plain and not hasattr(model_runner.req_to_token_pool, "req_index_to_mamba_index_mapping")


@contextmanager
def lent_rows(scheduler: Any, wanted: int) -> Iterator[torch.Tensor]:
    """Rows of its cache that nobody uses, in whole pages: as many as are wanted, or as there are once nothing is kept
    that no request uses."""
    from sglang.srt.mem_cache.common import evict_from_tree_cache

    pool = scheduler.token_to_kv_pool_allocator
    evict_from_tree_cache(scheduler.tree_cache, wanted)
    there = min(wanted, int(pool.available_size())) // int(pool.page_size) * int(pool.page_size)
    rows = pool.alloc(there)
    assert rows is not None  # it has just said so
    try:
        yield rows
    finally:
        pool.free(rows)


PLAIN_POOLS = ("TokenToKVPoolAllocator", "PagedTokenToKVPoolAllocator")


class SchedulerCounters:
    """Counters of a scheduler that serves, read on control threads without a lock.

    Args:
        compilers: CPU seconds of compilers at work. It looks through all processes, so it is asked only where requests
            run and no step was made since they were read last.

    Attributes:
        verifying: whether a shape is verified now, which counts as a request that runs: it may not hang either.
    """

    def __init__(self, scheduler: Any, compilers: Callable[[], float]) -> None:
        self._scheduler, self._compilers = scheduler, compilers
        self._steps = -1
        self.verifying = False

    def read(self) -> dict[str, int]:
        """``running``, ``waiting``, ``steps``, and ``compiling``: a number that changes while a step has to wait for a
        kernel to be compiled."""
        scheduler, before = self._scheduler, self._steps
        batch = scheduler.running_batch
        running = len(batch.reqs) if batch is not None else 0
        if not running and scheduler.cur_batch_for_debug is not None:
            running = len(scheduler.cur_batch_for_debug.reqs)
        waiting, steps = len(scheduler.waiting_queue), int(scheduler.forward_ct)
        if is_paused(scheduler):
            running, waiting = 0, waiting + running
        running += self.verifying
        self._steps = steps
        stands = running and steps == before
        compiling = int(100 * self._compilers()) if stands else 0
        return {"running": running, "waiting": waiting, "steps": steps, "compiling": compiling}


def is_paused(scheduler: Any) -> bool:
    """Whether an operator has stopped its loop (``/pause_generation``): requests are held, and no step is made."""
    return bool(scheduler._engine_paused)


def watch_unless_paused(scheduler: Any) -> None:
    """SGLang's watchdog (0.5.17, 0.5.23) takes a scheduler that is paused for one that hangs, and ends the rank."""
    watchdog = scheduler.watchdog
    active = watchdog.is_active
    watchdog.is_active = lambda: active() and not is_paused(scheduler)
