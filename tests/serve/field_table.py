"""Every field of SGLang's and OpenAI's requests, and what becomes of it: with a value that is not its default, and the
values of it that ask for nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Row:
    """What becomes of a field.

    Attributes:
        outcome: ``used``: the answer, or what the engine is asked, is another; ``idle``: it is not; ``refused``: 400.
        value: not the default.
        nothing: values that are accepted and change nothing; null always is one.
        beside: fields that it needs beside it.
        status: of the answer to ``value``, where it is used.
    """

    outcome: Literal["used", "idle", "refused"]
    value: Any
    nothing: tuple[Any, ...] = ()
    beside: dict[str, Any] = field(default_factory=dict)
    status: int = 200


def used(value: Any, *nothing: Any, status: int = 200, **beside: Any) -> Row:
    return Row("used", value, nothing, beside, status)


def idle(value: Any) -> Row:
    return Row("idle", value)


def refused(value: Any, *nothing: Any) -> Row:
    return Row("refused", value, nothing)


SAMPLING = {
    "max_new_tokens": used(1, 128),
    "temperature": used(0.5, 1, 1.0),
    "top_p": used(0.5, 1.0),
    "top_k": used(3, -1, 0),
    "n": used(2, 1),
    "stop": used("2", []),
    "stop_token_ids": used([3], []),
    "ignore_eos": used(True, False),
    "logit_bias": used({"3": 1.0}, {}),
    "sampling_seed": used(5),
    "min_p": refused(0.1, 0, 0.0),
    "frequency_penalty": refused(0.1, 0, 0.0),
    "presence_penalty": refused(0.1, 0, 0.0),
    "repetition_penalty": refused(1.1, 1, 1.0),
    "min_new_tokens": refused(1, 0),
    "json_schema": refused("{}", ""),
    "regex": refused("a", ""),
    "ebnf": refused("a", ""),
    "structural_tag": refused("{}", ""),
    "stop_regex": refused("a", "", []),
    "skip_special_tokens": refused(False, True),
    "spaces_between_special_tokens": refused(False, True),
    "no_stop_trim": refused(True, False),
    "stream_interval": refused(5, 1),
    "custom_params": refused({"a": 1}, {}),
    # SGLang's own, of which its class has fields and its interface none
    "stop_strs": refused("a"),
    "stop_regex_strs": refused("a"),
    "stop_str_max_len": refused(1),
    "stop_regex_max_len": refused(1),
    "is_normalized": refused(True),
}
"""SGLang's sampling parameters."""

GENERATE = {
    "text": used("1+1="),
    "input_ids": used([3]),
    "sampling_params": used({"temperature": 0.5}, {}),
    "stream": used(True, False),
    "rid": used("mine"),
    "return_logprob": used(True, False),
    "top_logprobs_num": used(2, 0, return_logprob=True),
    "return_text_in_logprobs": used(True, False, return_logprob=True),
    "session_id": idle("a"),
    "extra_key": idle("a"),
    "no_logs": idle(True),
    "routing_key": idle("a"),
    "conversation_id": idle("a"),
    "input_embeds": refused([[0.5]], []),
    "image_data": refused("a.png", []),
    "video_data": refused("a.mp4", []),
    "audio_data": refused("a.wav", []),
    "modalities": refused(["image"], []),
    "mm_hashes": refused(["a"], []),
    "use_audio_in_video": refused(True, False),
    "max_dynamic_patch": refused(1),
    "min_dynamic_patch": refused(1),
    "image_max_dynamic_patch": refused(1),
    "video_max_dynamic_patch": refused(1),
    "images_config": refused({"a": 1}, {}),
    "mm_data_mooncake": refused([1], []),
    "need_wait_for_mm_inputs": refused(True, False),
    "num_items_assigned": refused({"a": [1]}, {}),
    "encoder_urls": refused(["a"], []),
    "logprob_start_len": refused(0, -1),
    "token_ids_logprob": refused([3], []),
    "return_sampling_mask": refused(True, False),
    "return_flat_raw_top_logprobs": refused(True, False),
    "return_flat_raw_top_logprobs_b64": refused(True, False),
    "return_hidden_states": refused(True, False),
    "return_routed_experts": refused(True, False),
    "routed_experts_start_len": refused(1, 0),
    "return_indexer_topk": refused(True, False),
    "return_bytes": refused(True, False),
    "return_entropy": refused(True, False),
    "return_prompt_token_ids": refused(True, False),
    "log_metrics": refused(False, True),
    "session_params": refused({"id": "a"}, {}),
    "lora_path": refused("a", "", []),
    "lora_id": refused("a"),
    "custom_logit_processor": refused("a", ""),
    "positional_embed_overrides": refused([1]),
    "multi_item_delimiter_indices": refused([1], []),
    "bootstrap_host": refused("a"),
    "bootstrap_port": refused(1),
    "bootstrap_room": refused(1),
    "bootstrap_pair_key": refused("a"),
    "decode_tp_size": refused(2),
    "routed_dp_rank": refused(1, 0),
    "disagg_prefill_dp_rank": refused(1),
    "http_worker_ipc": refused("a"),
    "background": refused(True, False),
    "require_reasoning": refused(True, False),
    "max_thinking_tokens": refused(5),
    "priority": refused(5, 0),
    "custom_labels": refused({"a": "b"}, {}),
    "external_trace_header": refused({"a": 1}, {}),
    "received_time": refused(1.5),
}
"""SGLang's ``/generate``."""

ABORT = {
    "rid": used("a"),
    "abort_all": used(True, False),
    "abort_message": refused("why", ""),
    "finished_reason": refused({"type": "abort"}),
    "http_worker_ipc": refused("a"),
}
"""SGLang's ``/abort_request``."""

STREAM_OPTIONS = {
    "include_usage": used(True, False),
    "continuous_usage_stats": used(True, False),
    "include_obfuscation": refused(True, False),
}

COMMON = {
    "model": used("other", "default", "tiny-adder", status=404),
    "max_tokens": used(1),
    "temperature": used(0.5, 1, 1.0),
    "top_p": used(0.5, 1.0),
    "n": used(2, 1),
    "stop": used("2", []),
    "seed": used(5),
    "stream": used(True, False),
    "stream_options": used({"include_usage": True}, {}, stream=True),
    "top_k": used(3, -1, 0),
    "stop_token_ids": used([3], []),
    "ignore_eos": used(True, False),
    "rid": used("mine"),
    "logit_bias": used({"3": 1}, {}),
    "user": idle("a"),
    "session_id": idle("a"),
    "extra_key": idle("a"),
    "cache_salt": idle("a"),
    "frequency_penalty": refused(0.1, 0, 0.0),
    "presence_penalty": refused(0.1, 0, 0.0),
    "min_p": refused(0.1, 0.0),
    "min_tokens": refused(1, 0),
    "repetition_penalty": refused(1.1, 1.0),
    "regex": refused("a", ""),
    "ebnf": refused("a", ""),
    "structural_tag": refused("{}", ""),
    "stop_regex": refused("a", "", []),
    "no_stop_trim": refused(True, False),
    "skip_special_tokens": refused(False, True),
    "response_format": refused({"type": "json_object"}, {"type": "text"}),
    "lora_path": refused("a", "", []),
    "session_params": refused({"id": "a"}, {}),
    "custom_params": refused({"a": 1}, {}),
    "custom_logit_processor": refused("a", ""),
    "images_config": refused({"a": 1}, {}),
    "custom_labels": refused({"a": "b"}, {}),
    "priority": refused(5, 0),
    "return_hidden_states": refused("last", False),
    "return_routed_experts": refused(True, False),
    "routed_experts_start_len": refused(1, 0),
    "return_cached_tokens_details": refused(True, False),
    "return_token_ids": refused(True, False),
    "bootstrap_host": refused("a"),
    "bootstrap_port": refused(1),
    "bootstrap_room": refused(1),
    "routed_dp_rank": refused(1, 0),
    "disagg_prefill_dp_rank": refused(1),
    "data_parallel_rank": refused(1, 0),
}

COMPLETION = COMMON | {
    "prompt": used("1+1="),
    "logprobs": used(0),
    "best_of": refused(2, 1),
    "echo": used(True, False),
    "suffix": refused("a", ""),
    "json_schema": refused("{}", ""),
}
"""OpenAI's ``/v1/completions``, and SGLang's additions."""

FUNCTION = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CHAT = COMMON | {
    "messages": used([{"role": "user", "content": "1+1="}]),
    "max_completion_tokens": used(1),
    "logprobs": used(True, False),
    "top_logprobs": used(2, 0, logprobs=True),
    "tools": used([FUNCTION], []),
    "tool_choice": used("none", "auto", tools=[FUNCTION]),
    "reasoning_effort": used("low"),
    "chat_template_kwargs": used({"terse": True}, {}),
    "continue_final_message": used(
        True, False, messages=[{"role": "user", "content": "1+"}, {"role": "assistant", "content": "1="}]
    ),
    "add_generation_prompt": used(False, True),
    "metadata": idle({"a": "b"}),
    "safety_identifier": idle("a"),
    "prompt_cache_key": idle("a"),
    "prompt_cache_options": idle({"mode": "explicit"}),
    "prompt_cache_retention": idle("24h"),
    "separate_reasoning": idle(False),
    "stream_reasoning": idle(False),
    "functions": refused([{"name": "weather"}], []),
    "function_call": refused({"name": "weather"}, "none", "auto"),
    "parallel_tool_calls": refused(False, True),
    "audio": refused({"voice": "a", "format": "wav"}),
    "modalities": refused(["text", "audio"], ["text"]),
    "moderation": refused({"model": "a"}),
    "prediction": refused({"type": "content", "content": "a"}),
    "service_tier": refused("priority", "auto", "default"),
    "store": refused(True, False),
    "verbosity": refused("low", "medium"),
    "web_search_options": refused({}),
    "task": refused("query"),
    "reasoning": refused({"effort": "low"}),
    "input_ids": refused([3]),
    "chat_template": refused("{{ 1 }}"),
    "documents": refused([{"text": "a"}], []),
    "max_dynamic_patch": refused(1),
    "min_dynamic_patch": refused(1),
    "use_audio_in_video": refused(True, False),
    "return_prompt_token_ids": refused(True, False),
    "return_meta_info": refused(True, False),
}
"""OpenAI's ``/v1/chat/completions``, and SGLang's additions."""

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
_TURN = {
    "role": used("system", status=200),
    "content": used("1+1="),
    "name": used("ann"),
    "annotations": refused([{"type": "url_citation"}], []),
    "tools": refused([FUNCTION], []),
    "type": refused("image", "text", "message"),
}
_NOT_THE_ASSISTANTS = {name: refused(value) for name, value in {"tool_calls": [CALL], "reasoning_content": "a"}.items()}
_NOT_A_TOOLS = {"tool_call_id": refused("c1")}
_NEVER = {
    "refusal": refused("no"),
    "audio": refused({"id": "a"}),
    "function_call": refused({"name": "weather", "arguments": "{}"}),
}
SPEAKER = _TURN | _NOT_THE_ASSISTANTS | _NOT_A_TOOLS | _NEVER
MESSAGES = {
    "system": SPEAKER | {"role": used("user")},
    "developer": SPEAKER | {"role": used("user")},
    "user": SPEAKER,
    "assistant": _TURN | _NOT_A_TOOLS | _NEVER | {"tool_calls": used([CALL], []), "reasoning_content": used("so")},
    "tool": _TURN | _NOT_THE_ASSISTANTS | _NEVER | {"tool_call_id": used("c1")},
    "function": SPEAKER,
}
"""Fields of messages, by their role."""

TEXT_PART = {
    "type": refused("input_text", "text"),
    "text": used("1+1="),
    "prompt_cache_breakpoint": idle({"mode": "explicit"}),
}
OTHER_PARTS = [
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
    {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
    {"type": "file", "file": {"file_id": "a"}},
    {"type": "refusal", "refusal": "no"},
    {"type": "thinking", "thinking": "so"},
    {"type": "video_url", "video_url": {"url": "a.mp4"}},
    {"type": "audio_url", "audio_url": {"url": "a.wav"}},
    {"type": "tool_reference", "name": "weather"},
]
"""Parts of a message's content that are refused by their type."""

TOOL_CALL = {
    "id": used("c2"),
    "type": refused("custom", "function"),
    "function": used({"name": "weather", "arguments": '{"city": "Rome"}'}),
    "index": idle(1),
    "custom": refused({"name": "a", "input": "b"}),
}
CALLED_FUNCTION = {"name": used("time"), "arguments": used('{"city": "Rome"}', '{"city": "Paris"}', {"city": "Paris"})}
TOOL = {
    "type": refused("custom", "function"),
    "function": used({"name": "time"}),
    "defer_loading": refused(True, False),
    "custom": refused({"name": "a"}),
}
TOOL_FUNCTION = {
    "name": used("time"),
    "description": used("tells it"),
    "parameters": used({"type": "object", "properties": {}}),
    "strict": refused(True, False),
    "defer_loading": refused(True, False),
}
