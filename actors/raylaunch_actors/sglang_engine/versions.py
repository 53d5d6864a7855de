"""How SGLang's objects are made. What differs between its versions is here and in ``seams.py``, nowhere else.

Run with 0.5.17. In 0.5.21 a scheduler takes fewer arguments and its ranks come from ``publish``; that is not done here.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from raylaunch.errors import RankFault
from raylaunch.wire import SglangSockets
from raylaunch_actors.spec import RankSpec

SHOWN = 3  # arguments in an error


def server_args(arguments: Mapping[str, Any]) -> Any:
    """SGLang's ``ServerArgs``. Raises RankFault with SGLang's own words if it refuses them."""
    from sglang.srt.server_args import ServerArgs

    try:
        args = ServerArgs(**arguments)
        args.check_server_args()
        if "auto" in (args.reasoning_parser, args.tool_call_parser):
            # SGLang does this where it starts its schedulers, which take no "auto".
            from sglang.srt.parser.template_detection import resolve_auto_parsers

            resolve_auto_parsers(args)
        generates = args.get_model_config().is_generation
    except (ValueError, TypeError, AssertionError, NotImplementedError, OSError) as error:
        raise RankFault(None, f"SGLang refuses its server arguments: {type(error).__name__}: {error}") from error
    if not generates:
        text = f"{args.model_path} is for embeddings or rewards: only models that generate are supported"
        raise RankFault(None, text)
    if more := [f"{name} = {getattr(args, name)}" for name in OF_OTHER_GROUPS if getattr(args, name) != 1]:
        raise RankFault(None, f"SGLang has settled on {', '.join(more)}: only tensor parallelism is supported")
    return args


OF_OTHER_GROUPS = ("pp_size", "dp_size", "ep_size", "attn_cp_size", "moe_dp_size")
"""Must be 1, as every rank is told that it is the first in such a group. SGLang itself settles on more for some models,
and for ``moe_a2a_backend: deepep``."""


SETTLED_ALONE = (
    "random_seed", "skip_server_warmup", "host", "port", "api_key", "served_model_name", "chat_template",
)  # fmt: skip
"""Arguments that may differ: rank 0 broadcasts its seed; the others are of the server, of which ranks are not told."""


def resolved_arguments(args: Any) -> dict[str, str]:
    """What SGLang has made of its arguments, as text by name; taken before anything changes them."""
    values = {one.name: _as_text(getattr(args, one.name)) for one in dataclasses.fields(args)}
    # A text with an address in it says nothing of the object, and is another in every process.
    return {name: value for name, value in values.items() if name not in SETTLED_ALONE and " at 0x" not in value}


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
    )


def use_store(address: str) -> None:
    """Lets ``init_process_group`` join the store that rank 0 has bound already, as clients of it on every rank.

    This is how torchrun's agents hand their store to workers (``TORCHELASTIC_USE_AGENT_STORE``): nobody binds a port
    that was only looked up before.
    """
    os.environ["SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE"] = f"tcp://{address}"
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "0"


def make_scheduler(spec: RankSpec, args: Any) -> Any:
    """Builds SGLang's scheduler on this thread: connects, loads, warms up and captures, passing the hooked gates."""
    from sglang.srt.environ import envs
    from sglang.srt.managers.scheduler import Scheduler, configure_scheduler_process
    from sglang.srt.runtime_context import publish

    assert spec.sockets is not None  # the driver makes them for this engine
    ranks = {"attn_cp_rank": 0, "moe_dp_rank": 0, "moe_ep_rank": 0, "pp_rank": 0, "dp_rank": None}
    configure_scheduler_process(args, spec.device_index, spec.rank, **ranks)
    if envs.SGLANG_SET_CPU_AFFINITY.get():  # that was for the process's first thread, and this is another
        os.sched_setaffinity(0, os.sched_getaffinity(os.getpid()))
    publish(args, role="scheduler")
    return Scheduler(
        server_args=args, port_args=port_args(spec.sockets), gpu_id=spec.device_index, tp_rank=spec.rank, **ranks
    )


def planned_shapes(runner: Any, model_runner: Any) -> dict[str, list[int]]:
    """Shapes that each round will capture, as SGLang has settled them, by ``prefill`` and ``decode``.

    Args:
        runner: the runner that is about to capture first.
        model_runner: SGLang's.
    """
    from sglang.srt.model_executor.runner.base_cuda_graph_runner import get_batch_sizes_to_capture

    graphs = model_runner.server_args.cuda_graph_config
    shapes: dict[str, list[int]] = {}
    if hasattr(runner, "capture_num_tokens") and hasattr(runner, "prefill_backend_name"):
        shapes["prefill"] = list(runner.capture_num_tokens)
    if graphs.decode.backend != "disabled":
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


class SchedulerCounters:
    """Counters of a scheduler that serves, read on control threads without a lock.

    Args:
        compilers: CPU seconds of compilers at work. It looks through all processes, so it is asked only where requests
            run and no step was made since they were read last.
    """

    def __init__(self, scheduler: Any, compilers: Callable[[], float]) -> None:
        self._scheduler, self._compilers = scheduler, compilers
        self._steps = -1

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
        self._steps = steps
        stands = running and steps == before
        compiling = int(100 * self._compilers()) if stands else 0
        return {"running": running, "waiting": waiting, "steps": steps, "compiling": compiling}


def is_paused(scheduler: Any) -> bool:
    """Whether an operator has stopped its loop (``/pause_generation``): requests are held, and no step is made."""
    return bool(scheduler._engine_paused)


def watch_unless_paused(scheduler: Any) -> None:
    """SGLang's watchdog takes a scheduler that is paused for one that hangs, and would end the rank."""
    watchdog = scheduler.watchdog
    active = watchdog.is_active
    watchdog.is_active = lambda: active() and not is_paused(scheduler)
