"""What a rank hooks, calls and reads of SGLang's, by name and parameters. ``seams.py`` says what each hook is for.

Before a launch all of it is looked for in the SGLang that is installed. What differs between versions and has a way
around is in ``versions.py``.
"""

from __future__ import annotations

from raylaunch.sglang.source import Hook

SRT = "sglang.srt"
RUNNERS = f"{SRT}.model_executor.runner"
BACKENDS = f"{SRT}.model_executor.runner_backend"
PREFILL = f"{RUNNERS}.prefill_cuda_graph_runner"
DECODE = f"{RUNNERS}.decode_cuda_graph_runner"
IN_PIECES = f"{BACKENDS}.tc_piecewise_cuda_graph_backend"
ALL_REDUCES = f"{SRT}.distributed.device_communicators"
SCHEDULER = f"{SRT}.managers.scheduler"
ONE_SHAPE = "self, shape_key, forward_fn, capture_inputs, post_warmup_hook"

# ---- hooked

CONNECT = Hook(f"{SRT}.model_executor.model_runner", "ModelRunner.init_torch_distributed", "self, ...")
MAKE_GROUPS = Hook(f"{SRT}.distributed.bootstrap", "init_parallel_runtime", optional=True)  # since 0.5.21, before that
LOAD = Hook(f"{SRT}.model_executor.model_runner", "ModelRunner.load_model", "self, ...")
WATCHDOG = Hook(f"{SRT}.utils.watchdog", "WatchdogRaw.__init__", "self, ...")
CAPTURE_PREFILL = Hook(PREFILL, "PrefillCudaGraphRunner.capture", "self, ...")
CAPTURE_DECODE = Hook(DECODE, "DecodeCudaGraphRunner.capture", "self, ...")
PREFILL_CONTEXT = Hook(PREFILL, "graph_capture")
DECODE_CONTEXT = Hook(DECODE, "graph_capture")
REPLAY = Hook("torch.cuda.graphs", "CUDAGraph.replay")
BEGIN_GRAPH = Hook("torch.cuda.graphs", "CUDAGraph.capture_begin")
MAKE_PIECE = Hook(
    f"{SRT}.compilation.cuda_piecewise_backend", "CUDAPiecewiseBackend.__init__", "self, ...", only_with=IN_PIECES
)
CALL_PIECE = Hook(MAKE_PIECE.module, "CUDAPiecewiseBackend.__call__", "self, *args", only_with=IN_PIECES)
CAPTURE_ONE = (
    Hook(IN_PIECES, "TcPiecewiseCudaGraphBackend.capture_one", ONE_SHAPE, only_with=IN_PIECES),
    Hook(f"{BACKENDS}.breakable_cuda_graph_backend", "BreakableCudaGraphBackend.capture_one", ONE_SHAPE),
    Hook(f"{BACKENDS}.full_cuda_graph_backend", "FullCudaGraphBackend.capture_one", ONE_SHAPE),
)
"""Where each graph backend captures one shape."""
SGL_KERNEL = Hook(f"{ALL_REDUCES}.custom_all_reduce_ops", "all_reduce", "fa, inp, out, reg_buffer, reg_buffer_sz_bytes")
JIT = Hook(f"{ALL_REDUCES}.custom_all_reduce_v2", "CustomAllReduceV2._allocate_graph_row", "self, input, nbytes")
SOCKETS = Hook(f"{SRT}.managers.scheduler_components.ipc_channels", "get_zmq_socket")
LOADS = Hook(SCHEDULER, "create_load_snapshot_writer")
POOLS = Hook(SCHEDULER, "Scheduler.init_memory_pools", "self, ...")
ATTENTION = Hook(SCHEDULER, "Scheduler.init_all_attention_backends", "self, ...")
GRAPHS = Hook(SCHEDULER, "Scheduler.init_all_cuda_graphs", "self, ...")
DUMMY = Hook(PREFILL, "PrefillCudaGraphRunner._run_dummy_forward", "self, num_tokens")
TOKENIZERS = tuple(
    Hook(module, name, optional=True)
    for module in (SCHEDULER, f"{SRT}.managers.tp_worker")
    for name in ("get_tokenizer", "get_processor")
)
COLLECTIONS = tuple(Hook(module, "freeze_gc", optional=True) for module in (PREFILL, DECODE))
KERNELS = tuple(Hook("tvm_ffi.cpp", name, optional=True) for name in ("load_inline", "load"))

# ---- called, and read

USED = (
    Hook(SCHEDULER, "Scheduler.__init__", "self, server_args, port_args, ..."),
    Hook(SCHEDULER, "Scheduler.get_init_info", "self, ..."),
    Hook(SCHEDULER, "Scheduler.run_event_loop", "self, ..."),
    Hook(SCHEDULER, "Scheduler.handle_rpc_request", "self, recv_req"),
    Hook(SCHEDULER, "Scheduler.is_fully_idle", "self, ..."),
    Hook(f"{SRT}.mem_cache.common", "evict_from_tree_cache", "tree_cache, num_tokens"),
    Hook(SCHEDULER, "configure_scheduler_process", "server_args, gpu_id, ..."),
    *(
        Hook(SCHEDULER, f"Scheduler.{name}")
        for name in (
            "gracefully_exit",
            "running_batch",
            "cur_batch_for_debug",
            "waiting_queue",
            "forward_ct",
            "watchdog",
            "_engine_paused",
            "token_to_kv_pool_allocator",
            "tree_cache",
            "weight_updater",
        )
    ),
    Hook(WATCHDOG.module, "WatchdogRaw.parent_process"),
    Hook(WATCHDOG.module, "WatchdogRaw.is_active"),
    Hook(f"{SRT}.runtime_context", "publish", "server_args, *, role, ..."),
    Hook(f"{SRT}.runtime_context", "get_exec", ""),
    Hook(f"{SRT}.server_args", "ServerArgs.check_server_args", "self, ..."),
    Hook(f"{SRT}.server_args", "PortArgs.load_collector_ipc_name"),
    Hook(f"{SRT}.managers.load_snapshot", "create_load_snapshot_writer"),
    Hook(f"{SRT}.parser.template_detection", "resolve_auto_parsers", "server_args, ..."),
    Hook(f"{RUNNERS}.base_cuda_graph_runner", "get_batch_sizes_to_capture", "model_runner, ..."),
    Hook(PREFILL, "PrefillCudaGraphRunner.capture_num_tokens"),
    Hook(PREFILL, "PrefillCudaGraphRunner.prefill_backend_name"),
    Hook(PREFILL, "PrefillCudaGraphRunner.capture_prepare", "self, num_tokens, ..."),
    Hook(PREFILL, "PrefillCudaGraphRunner.capture_one_shape", "self, size, ..."),
    Hook(PREFILL, "PrefillCudaGraphRunner.execute", "self, forward_batch, ..."),
    Hook(DECODE, "DecodeCudaGraphRunner.capture_prepare", "self, size, ..."),
    Hook(DECODE, "DecodeCudaGraphRunner.execute", "self, forward_batch, ..."),
    Hook(f"{RUNNERS}.eager_runner", "EagerRunner.execute", "self, forward_batch, ..."),
    Hook(f"{RUNNERS}.shape_key", "ShapeKey.size"),
    *(Hook(one.module, one.path.replace("capture_one", "_graphs")) for one in CAPTURE_ONE[1:]),
    Hook(f"{SRT}.model_executor.forward_context", "forward_context", "ctx, ..."),
    *(
        Hook(f"{SRT}.model_executor.forward_batch_info", f"ForwardBatch.{name}")
        for name in (
            "input_ids",
            "positions",
            "req_pool_indices",
            "seq_lens",
            "seq_lens_cpu",
            "seq_lens_sum",
            "orig_seq_lens",
            "out_cache_loc",
            "extend_seq_lens_cpu",
            "next_token_logits_buffer",
            "mrope_positions",
        )
    ),
    *(
        Hook(CONNECT.module, f"ModelRunner.{name}")
        for name in ("eager_runner", "prefill_cuda_graph_runner", "decode_cuda_graph_runner")
    ),
    *(
        Hook(MAKE_PIECE.module, f"CUDAPiecewiseBackend.{name}", only_with=IN_PIECES)
        for name in (
            "piecewise_compile_index",
            "sym_shape_indices",
            "concrete_size_entries",
            "first_run_finished",
        )
    ),
    Hook(f"{SRT}.mem_cache.memory_pool", "ReqToTokenPool.req_to_token"),
    Hook(f"{SRT}.mem_cache.memory_pool", "HybridReqToTokenPool.req_index_to_mamba_index_mapping"),
    Hook(f"{SRT}.mem_cache.memory_pool", "MambaPool.clear_slots", "self, indices, ..."),
    Hook(f"{SRT}.mem_cache.swa_memory_pool", "SWAKVPool.full_to_swa_index_mapping"),
    Hook(f"{SRT}.mem_cache.swa_memory_pool", "SWAKVPool.size_swa"),
    Hook(f"{SRT}.distributed.parallel_state", "GroupCoordinator.ca_comm"),
    Hook(f"{ALL_REDUCES}.custom_all_reduce", "CustomAllreduce.rank_data"),
    Hook(f"{ALL_REDUCES}.custom_all_reduce", "CustomAllreduce.register_graph_buffers", "self, ..."),
    Hook(SGL_KERNEL.module, "get_graph_buffer_ipc_meta", "fa, ..."),
    Hook(JIT.module, "CustomAllReduceV2._graph_inputs"),
    Hook(f"{SRT}.layers.flashinfer_comm_fusion", "_get_workspace_manager", "use_attn_tp_group, ..."),
    Hook(f"{SRT}.layers.flashinfer_comm_fusion", "FlashInferWorkspaceManager.initialized"),
)

EVERY = (
    CONNECT, MAKE_GROUPS, LOAD, WATCHDOG, CAPTURE_PREFILL, CAPTURE_DECODE, MAKE_PIECE, CALL_PIECE, *CAPTURE_ONE,
    SGL_KERNEL, JIT, POOLS, ATTENTION, GRAPHS, DUMMY, *USED,
)  # fmt: skip
"""All that is looked for in SGLang's source; what is torch's is not, nor names that a module has from another."""
