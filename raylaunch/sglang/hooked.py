"""What the driver's side calls, replaces and reads of SGLang's, by name and parameters; looked for before a launch."""

from __future__ import annotations

from raylaunch.sglang.source import Hook

SRT = "sglang.srt"
MANAGER = f"{SRT}.managers.tokenizer_manager"
HTTP = f"{SRT}.entrypoints.http_server"

EVERY = (
    Hook(f"{SRT}.entrypoints.engine", "init_tokenizer_manager", "server_args, port_args, ..."),
    Hook(MANAGER, "TokenizerManager.generate_request", "self, obj, request"),
    Hook(MANAGER, "TokenizerManager.abort_request", "self, rid, abort_all, ..."),
    Hook(MANAGER, "TokenizerManager.create_abort_task", "self, obj"),
    Hook(MANAGER, "TokenizerManager.handle_loop", "self, ..."),
    Hook(MANAGER, "TokenizerManager.set_startup_time", "self, startup_time, ..."),
    Hook(MANAGER, "TokenizerManager._handle_abort_req", "self, recv_obj, ..."),
    Hook(MANAGER, "TokenizerManager._handle_batch_output", "self, recv_obj"),
    Hook(MANAGER, "TokenizerManager._dispatch_to_scheduler", "self, obj"),
    *(
        Hook(MANAGER, f"TokenizerManager.{name}")
        for name in (
            "rid_to_state", "event_loop", "recv_from_detokenizer", "send_to_scheduler", "load_snapshot_reader",
            "last_receive_tstamp", "server_status", "max_req_input_len", "sampling_params_class", "context_len",
            "incremental_streaming_output", "mm_processor", "model_config", "tokenizer", "_result_dispatcher",
        )
    ),
    *(Hook(MANAGER, f"ReqState.{name}") for name in ("obj", "finished", "out_list", "event")),
    Hook(MANAGER, "ServerStatus"),
    *(
        Hook(f"{SRT}.managers.io_struct", name)
        for name in (
            "GenerateReqInput", "AbortReq.finished_reason", "SessionParams", "RpcReqInput.method",
            "RpcReqInput.parameters",
        )
    ),
    Hook(f"{SRT}.managers.utils", "is_health_check_generate_req", "recv_req, ..."),
    *(
        Hook(f"{SRT}.managers.communicator", f"FanOutCommunicator.{name}")
        for name in ("_mode", "_result_event", "_result_values")
    ),
    Hook(
        f"{SRT}.observability.startup_time", "build_engine_startup_time",
        "scheduler_startup_times, *, tokenizer_e2e, ...",
    ),
    Hook(f"{SRT}.utils.network", "get_zmq_socket", "context, socket_type, endpoint, bind"),
    Hook(f"{SRT}.managers.mm_utils", "_is_default_tensor_transport"),
    Hook(f"{SRT}.managers.load_snapshot", "ZmqShmLoadSnapshotReader._socket"),
    Hook(f"{SRT}.constants", "HEALTH_CHECK_RID_PREFIX"),
    Hook(
        f"{SRT}.multimodal.processors.base_processor", "BaseMultimodalProcessor._fast_image_processor_device",
        "self, processor",
    ),
    Hook(f"{SRT}.managers.detokenizer_manager", "DetokenizerManager.__init__", "self, server_args, port_args, ..."),
    Hook(f"{SRT}.managers.detokenizer_manager", "DetokenizerManager.event_loop", "self, ..."),
    Hook(f"{SRT}.utils.common", "configure_logger", "server_args, prefix, ..."),
    Hook(HTTP, "_GlobalState"),
    Hook(HTTP, "set_global_state", "global_state, ..."),
    Hook(HTTP, "app"),
    Hook(HTTP, "HEALTH_CHECK_TIMEOUT"),
    Hook(f"{SRT}.utils.auth", "_get_auth_level_from_app_and_scope", "app, scope, ..."),
    Hook(f"{SRT}.utils.auth", "AuthLevel.NORMAL"),
    Hook(f"{SRT}.entrypoints.openai.protocol", "ChatCompletionRequest"),
    Hook(f"{SRT}.entrypoints.openai.protocol", "CompletionRequest"),
)  # fmt: skip
