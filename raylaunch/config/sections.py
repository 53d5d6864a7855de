"""The sections of a launch's settings, a class for each, and what must hold between settings of one section."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, SecretStr, ValidationInfo, field_validator, model_validator

from raylaunch.config.address import CLIENT, NO_CLIENT
from raylaunch.config.faults import EVERYWHERE, FaultAction, place_of
from raylaunch.config.paths import sglang_arguments
from raylaunch.config.types import FileOrText, Float, FolderOrName, Int, LocalPath, PositiveInt, Seconds, Section
from raylaunch.values.api_key import problem_of

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
AllReduceKind = Literal["custom", "auto", "library", "symmetric_memory", "sgl_kernel", "jit"]

REBUILDS_OF_SERVER = 5

ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@A-Z]+")
"""Scheme, host and port, without a path: as browsers send it, in small letters."""


class ModelConfig(Section):
    """Which model.

    Attributes:
        path: a folder or a Hub name such as ``Qwen/Qwen3-8B``. What looks like a folder (``./m``, ``../m``, ``~/m``,
            ``m/``) is one, there or not; another name is if there is a folder of that name.
        dtype: of weights and activations; ``auto`` takes the checkpoint's.
        load_format: how weights are read: ``auto`` and ``safetensors`` read the checkpoint, ``dummy`` draws seeded
            random weights of the configured shapes. With the engine ``sglang`` also what the installed version knows,
            such as ``sharded_state``, ``fastsafetensors``, ``runai_streamer`` and ``remote_instance``.
        tokenizer: folder or Hub name of the tokenizer, if it is not the model's own.
        trust_remote_code: run Python code that comes with the checkpoint.
        revision: of a Hub model.
    """

    path: FolderOrName
    dtype: Dtype = "auto"
    load_format: Annotated[str, Field(pattern="^[a-z_]+$")] = "auto"
    tokenizer: FolderOrName | None = None
    trust_remote_code: bool = False
    revision: str | None = None


class ParallelConfig(Section):
    """How many ranks, on how many nodes.

    Attributes:
        tensor_parallel_size: ranks in the group.
        replicas: groups that serve the model behind one port, each with ranks of its own; while one is lost the others
            go on.
        routing: which of several replicas a request goes to: ``least_loaded``, or that which is likely to have the
            longest beginning of its prompt in its cache (``prefix``), unless it is much more loaded than another.
        nodes: nodes to spread them over, equally; 1 packs them on one node.
        rendezvous_port: TCP port that rank 0 binds; 0 lets the system choose a free one.
    """

    tensor_parallel_size: PositiveInt = 1
    replicas: PositiveInt = 1
    routing: Literal["least_loaded", "prefix"] = "least_loaded"
    nodes: PositiveInt = 1
    rendezvous_port: Annotated[Int, Field(ge=0, le=65_535)] = 0

    @model_validator(mode="after")
    def _ranks_spread_equally(self) -> ParallelConfig:
        if self.tensor_parallel_size % self.nodes:
            raise ValueError(f"nodes must divide tensor_parallel_size = {self.tensor_parallel_size}")
        return self


class SglangConfig(Section):
    """What the engine ``sglang`` is told beyond what the other sections say.

    Attributes:
        args: SGLang's own server arguments by name, such as ``attention_backend: fa3``.
        any_version: try a version of SGLang all the same in which what raylaunch hooks or calls is not as it should be.
            One that raylaunch was never run with is tried anyway where all of it is, with a warning.
        cache_dir: folder of everything that is compiled at run time (kernels, inductor, triton), kept between
            launches; None takes ``~/.cache/raylaunch``. A folder for each set of versions is made inside.
    """

    args: dict[str, Any] = Field(default_factory=dict)
    any_version: bool = False
    cache_dir: LocalPath | None = None

    @field_validator("args")
    @classmethod
    def _absolute_paths(cls, args: dict[str, Any]) -> dict[str, Any]:
        return sglang_arguments(args)


class EngineConfig(Section):
    """Which engine runs inside the ranks.

    Attributes:
        kind: ``reference`` (this package's own, CPU and GPU) or ``sglang``.
        device: ``auto`` takes GPUs if ``placement.resources_per_rank`` names them or, where that is empty, the cluster
            has one for every rank; else CPUs.
        kv_tokens: tokens that the KV cache holds, over all running requests; ``auto`` fills what ``memory_fraction``
            leaves on a GPU, and takes 16,384 on a CPU. At least 2: a token of a prompt, and one of its answer.
        memory_fraction: part of the GPU memory that is free beside the weights that ``auto`` may use, graphs and
            activations included; ranks that share a GPU share it.
        max_context: tokens of prompt and answer together, at most; None takes the model's longest, which is its
            positions, or what rotary scaling in its ``config.json`` (YaRN, linear) makes of them. At least 2.
        max_running_requests: requests that are decoded at the same time.
        max_waiting_requests: requests that may wait beside them; more are refused.
        threads: CPU threads of each rank.
        preload: ranks on the driver's node begin to import before Ray is there, and when a group is lost, where they
            can; with the engine ``sglang``.
        sampling_defaults: where a request says nothing of it, tokens are chosen as the ``model`` wants
            (``generation_config.json``: temperature, top_k, top_p, or greedily), or as ``openai`` does: temperature 1
            over HTTP; in Python greedily. SGLang's argument of that name.
        sglang: settings of the engine ``sglang``.
    """

    kind: Literal["reference", "sglang"] = "reference"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    kv_tokens: int | Literal["auto"] = "auto"
    memory_fraction: Annotated[Float, Field(gt=0, lt=1)] = 0.85
    max_context: Annotated[PositiveInt, Field(ge=2)] | None = None
    max_running_requests: PositiveInt = 32
    max_waiting_requests: PositiveInt = 1024
    threads: PositiveInt = 1
    preload: bool = True
    sampling_defaults: Literal["model", "openai"] = "model"
    sglang: SglangConfig = SglangConfig()

    @field_validator("kv_tokens", mode="before")
    @classmethod
    def _auto_or_tokens(cls, value: Any) -> Any:
        if value == "auto" or (type(value) is int and value >= 2):
            return value
        raise ValueError("must be auto or a number of tokens, at least 2")


class CaptureConfig(Section):
    """What is captured into graphs.

    Attributes:
        enabled: False runs every step eagerly, at the same padded shapes.
        prefill_tokens: token counts that prefill is padded to, each captured; longer prompts are split.
        decode_batch_sizes: batch sizes that decode is padded to, each captured.
        granularity: barriers inside CAPTURE: before every ``iteration``, every ``shape``, or none (``phase``).
        compiler: what becomes of a piece before it is captured: ``eager`` leaves its operations as they are,
            ``inductor`` has torch compile them (GPUs only).
        verify_first: which shapes are verified before the launch is ready: ``all``, or a number. Then it is the edges
            of each round (smallest, largest, where the distance between shapes changes) and so many others; the rest
            is verified while it serves, whenever no request runs. A difference that is found then ends the group, as
            F12. With the engine ``sglang`` models with states or windows have all verified first.
    """

    enabled: bool = True
    prefill_tokens: tuple[PositiveInt, ...] = (32, 128, 512, 1032)
    decode_batch_sizes: tuple[PositiveInt, ...] = (2, 8, 32)
    granularity: Literal["phase", "shape", "iteration"] = "iteration"
    compiler: Literal["eager", "inductor"] = "eager"
    verify_first: int | Literal["all"] = "all"

    @field_validator("verify_first", mode="before")
    @classmethod
    def _all_or_some(cls, value: Any) -> Any:
        if value == "all" or (type(value) is int and value >= 0):
            return value
        raise ValueError("must be all or a number of shapes, at least 0")

    @field_validator("prefill_tokens", "decode_batch_sizes")
    @classmethod
    def _sorted_distinct(cls, shapes: tuple[int, ...]) -> tuple[int, ...]:
        if not shapes:
            raise ValueError("at least one shape is needed, also to pad to when capture.enabled is false")
        if len(set(shapes)) != len(shapes):
            raise ValueError("every shape may be named once")
        return tuple(sorted(shapes))


class CommunicatorConfig(Section):
    """The all-reduce.

    Attributes:
        kind: ``custom`` reads the peers' memory (shared memory on CPUs, ``sgl_kernel`` on GPUs), or takes the
            library where that is impossible; ``library`` is gloo or NCCL; ``auto`` measures what is possible and
            takes the fastest for each message size. ``symmetric_memory`` (PyTorch's) and ``sgl_kernel`` name one for
            GPUs, ``sgl_kernel`` and ``jit`` the two of the engine ``sglang``; where the one that is named is impossible
            the launch ends in CONNECT and says why. With the engine ``sglang`` ``auto`` is ``custom``.
        table_rows: inputs of captured all-reduces that can be registered, on GPUs. Of the engine ``reference``;
            SGLang's own table has a size of its own.
        max_bytes: largest message of the custom all-reduce; larger ones are left to the library, or split. Of the
            engine ``reference``; SGLang has limits of its own.
    """

    kind: AllReduceKind = "custom"
    table_rows: PositiveInt = 131_072
    max_bytes: Annotated[Int, Field(ge=4096, le=1 << 30)] = 8 << 20

    @field_validator("max_bytes")
    @classmethod
    def _aligned(cls, value: int) -> int:
        if value % 4096:
            raise ValueError("must be a multiple of 4096 bytes")
        return value


class PlacementConfig(Section):
    """Where the ranks run.

    Attributes:
        strategy: Ray's placement strategy; ``auto`` packs a group on one node, or spreads it over ``parallel.nodes``.
        resources_per_rank: Ray resources of one rank's bundle; empty takes one CPU, or one GPU and one CPU. On
            GPUs it must name ``GPU``; ranks that ask for less than one share it.
        placement_group: name of an existing placement group to use; its bundles must hold the ranks.
        address: Ray cluster to join; None joins the one of ``RAY_ADDRESS``, or starts a private one, as ``local`` does.
        namespace: Ray namespace of the actors.
    """

    strategy: Literal["auto", "STRICT_PACK", "PACK", "SPREAD", "STRICT_SPREAD"] = "auto"
    resources_per_rank: dict[str, Annotated[Float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    placement_group: str | None = None
    address: str | None = None
    namespace: str = "raylaunch"

    @field_validator("address")
    @classmethod
    def _no_client(cls, value: str | None) -> str | None:
        if value is not None and value.startswith(CLIENT):
            raise ValueError(NO_CLIENT)
        return value


class DeadlineConfig(Section):
    """Seconds that each barrier of a phase may take without progress; a rank that reports progress is waited for.

    Attributes:
        place: for the placement group; the ranks' processes may then take as long once more, and 5 s for each rank.
        stretch: how many times its deadline one barrier may take in all while ranks report progress.
        collective: how long a rank waits for its peers inside one collective.
        health: within how many seconds a rank is lost that answers no more, or is stopped, while serving.
    """

    place: Seconds = 60
    connect: Seconds = 60
    load: Seconds = 300
    warmup: Seconds = 300
    capture: Seconds = 60
    register_: Seconds = Field(default=30, alias="register")
    verify: Seconds = 120
    shutdown: Seconds = 10
    stretch: Annotated[Float, Field(ge=1, le=100)] = 10
    collective: Seconds = 60
    health: Seconds = 10

    model_config = ConfigDict(populate_by_name=True)

    def for_phase(self, phase: str) -> float:
        """Deadline of a phase by its name, such as ``CAPTURE``."""
        return float(getattr(self, "register_" if phase == "REGISTER" else phase.lower()))

    @property
    def stopped(self) -> float:
        """Seconds for which a process may be stopped, as by a debugger, and still go on."""
        return 0.8 * self.health


class ServeConfig(Section):
    """The HTTP server.

    Attributes:
        host: address to listen on; loopback unless told otherwise.
        port: TCP port.
        api_key: what clients must send as ``Authorization: Bearer KEY``; None asks for nothing. One that no client
            can send is refused: empty, with white space at its ends (a file's newline), control characters, or
            characters beyond Latin-1.
        cors_origins: origins whose pages a browser lets ask this server, such as ``http://localhost:5173``; ``*`` is
            any, as SGLang has it, and an empty list none.
        served_model_name: name that clients use for the model; None takes the last part of its path.
        chat_template: Jinja template, or the path of one, for models whose tokenizer has none.
        max_body_bytes: largest request body.
        max_concurrent: requests answered at the same time; more are refused. None is 256 with the engine
            ``reference``, and any number with ``sglang``, which queues them itself.
        drain: seconds that running requests get to end when the server is stopped.
    """

    host: str = "127.0.0.1"
    port: Annotated[Int, Field(ge=0, le=65_535)] = 30_000
    api_key: SecretStr | None = None
    cors_origins: tuple[str, ...] = ("*",)
    served_model_name: str | None = None
    chat_template: FileOrText | None = None
    max_body_bytes: PositiveInt = 4 << 20
    max_concurrent: PositiveInt | None = None
    drain: Seconds = 30

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin not in ("*", "null") and not ORIGIN.fullmatch(origin):
                text = f"{origin!r} is no origin: must be as browsers send it, such as http://localhost:5173, or *"
                raise ValueError(text)
        return origins

    @field_validator("api_key", mode="before")
    @classmethod
    def _can_be_sent(cls, value: Any) -> Any:
        key = value.get_secret_value() if isinstance(value, SecretStr) else value
        if isinstance(key, bool | int | float):
            raise ValueError("is no text to YAML: write it in quotes")
        if isinstance(key, str) and (problem := problem_of(key)):
            raise ValueError(problem)
        return value


class RecoveryConfig(Section):
    """What follows when the group is lost, because a rank or its node is.

    A group that had served is launched again at once. Between launches that never come to serve there is a pause, which
    doubles from 1 s to 30 s; the second of them that fails by the same cause at the same place is the last.

    Attributes:
        rebuilds: how often the group is launched again within ``window_s``; None is 5 for ``raylaunch serve``, and 0
            in Python, for all other commands and for Ray Serve, which replaces the replica.
        window_s: seconds after which a launch no longer counts.
        replay: requests that run when the group is lost wait for the next one, or go to another replica at once, and go
            on there behind the tokens that they have given out; False ends them. Those that cannot go on end in any
            case: with the engine ``sglang`` requests with images or a session, and those that have begun to answer with
            structured output, penalties, a stop expression, embeddings in their prompt, a logit processor, or hidden
            states in their answer.
        while_rebuilding: whether requests that come meanwhile ``wait``, or ``fail`` at once.
        give_up_s: seconds that a request waits for the group at most.
        standby: spare processes for each rank, which wait on its node and have imported everything: the next group
            adopts them, so that it serves sooner. They take memory (``raylaunch doctor`` says how much), no GPU.
        keep_weights: a process on each node holds the files with weights in memory for as long as the engine is there,
            so that a rebuild reads none of them from a disk again. It takes memory of their size; a node that has not
            so much ends the launch.
    """

    rebuilds: Annotated[Int, Field(ge=0, le=100)] | None = None
    window_s: Seconds = 600
    replay: bool = True
    while_rebuilding: Literal["wait", "fail"] = "wait"
    give_up_s: Seconds = 120
    standby: Annotated[Int, Field(ge=0, le=8)] = 0
    keep_weights: bool = False

    @field_validator("standby")
    @classmethod
    def _adopted_by_somebody(cls, standby: int, info: ValidationInfo) -> int:
        if standby and info.data.get("rebuilds") == 0:
            raise ValueError("must be 0 where recovery.rebuilds is 0: no group would adopt them")
        return standby

    @field_validator("keep_weights")
    @classmethod
    def _read_again_by_somebody(cls, keep: bool, info: ValidationInfo) -> bool:
        if keep and info.data.get("rebuilds") == 0:
            raise ValueError("must be false where recovery.rebuilds is 0: no group would read them again")
        return keep

    def of_server(self) -> RecoveryConfig:
        """As it is for ``raylaunch serve``."""
        return self if self.rebuilds is not None else self.model_copy(update={"rebuilds": REBUILDS_OF_SERVER})

    def lets_wait(self, has_output: bool) -> bool:
        """Whether a request waits for the next group, if there is to be one.

        Args:
            has_output: whether tokens of it were given out.
        """
        return self.replay or (not has_output and self.while_rebuilding == "wait")

    def lets_move(self, has_output: bool) -> bool:
        """Whether a request goes on at another replica, if there is one."""
        return self.replay or not has_output


class LogConfig(Section):
    """What driver and ranks log. In Python it concerns the ranks: the driver's process is the application's.

    Attributes:
        format: ``json`` makes one object of each line, with time, level, logger, message, and what is known of the
            launch, the rank and the fault; of a command all that it prints to standard error.
        level: the least that is logged; none is ``info`` in JSON, and warnings in text. Of libraries warnings are the
            least.
    """

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] | None = None


class FaultConfig(Section):
    """A fault to provoke on purpose, to see how the launch ends.

    Attributes:
        action: what to do.
        rank: on which rank.
        at: the gate before which it happens: ``load``, or ``capture``, or ``capture prefill 128 2``. Actions that
            need a shape take one: ``capture prefill 128``; those that have a place of their own take none.
    """

    action: FaultAction
    rank: Annotated[Int, Field(ge=0)] = 0
    at: str = EVERYWHERE

    @field_validator("at")
    @classmethod
    def _can_happen(cls, at: str, info: ValidationInfo) -> str:
        return place_of(info.data["action"], at) if "action" in info.data else at

    def fits(self, shape: int) -> bool:
        """Whether it is to happen to a shape; a fault that names none happens to all."""
        return self.at.split()[2:3] in ([], [str(shape)])
