"""A loaded model: sessions over its KV slots, and text generation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as IdSequence
from dataclasses import fields, replace
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from .chunk_size import MAX_CHUNK
from .ops import ELEMENT_BYTES
from .runner import Runner
from .sampler import SamplingParams
from .sequence import Sequence
from .session import Session
from .session_origin import session_origin
from .trace_log import NO_TRACE
from .turns import Turns

if TYPE_CHECKING:
    from .backend import Backend
    from .config import ModelConfig
    from .cpu.affinity import Affinity
    from .device import Device, LoadProgress
    from .kvcache.contract import KvMethod, StepBytes
    from .model_source import ModelSource
    from .no_tokenizer import NoTokenizer
    from .tokenizer import Tokenizer
    from .trace_log import TraceLog

Message = Mapping[str, Any]


class Engine:
    """A model ready to run. Made by yakvrt.load(); close() ends its threads, and gives back a GPU's memory.

    Owns: the device with its threads; weights and KV cache go with the last reference. Calls from several
    threads take turns.
    """

    def __init__(
        self,
        source: ModelSource,
        device: Device,
        backend: Backend,
        runner: Runner,
        kv: KvMethod,
        kv_name: str,
        ctx_size: int,
        load_ms: float,
        weight_bytes: int,
        origin: Callable[[], Mapping[str, str]],
        step_bytes: Callable[[int], StepBytes],
    ) -> None:
        """step_bytes: of keys and values, for a decode step of one slot that then holds so many tokens."""
        self.name = source.name
        self.config: ModelConfig = source.config
        self.tokenizer: Tokenizer | NoTokenizer = source.tokenizer
        self.sampling_defaults: SamplingParams = source.sampling_defaults
        self.ctx_size = ctx_size
        self.load_ms = load_ms
        self.weight_bytes, self.step_bytes = weight_bytes, step_bytes
        self._device, self._backend, self.runner, self._kv, self._origin = device, backend, runner, kv, origin
        self._kv_name, self._turns = kv_name, Turns()

    @property
    def n_threads(self) -> int:
        return self._backend.n_threads

    @property
    def n_slots(self) -> int:
        return int(self._kv.stats()["n_slots"])

    @property
    def free_bytes(self) -> int:
        """What is free now of the memory in which KV caches lie."""
        return self._device.free_bytes()

    def session(self) -> Session:
        """Opens a KV slot. Raises: RuntimeError when all are in use."""
        with self._turns.take():
            held = self._kv, self._kv_name, self.ctx_size, self.config.vocab_size
            return Session(self.runner, *held, self._turns, self._origin)

    def generate(
        self,
        prompt: str | IdSequence[int] | IdSequence[Message],
        params: SamplingParams | None = None,
        *,
        raw: bool = False,
        session: Session | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        progress: Callable[[int, int], None] | None = None,
        **overrides: Any,
    ) -> Sequence:
        """Starts a generation; iterate the result for pieces of text.

        A string is a user's turn where the model has a chat template (`raw` bypasses it), a list of messages
        a conversation, a list of integers token ids. `overrides` replace fields of the sampling parameters.
        Without a `session` one is opened, and closed with the result.

        Raises: ValueError for an empty prompt, one longer than the context, or parameters out of range;
            TypeError for an unknown keyword.
        """
        params = self.sampling_params(params, **overrides)
        ids = self.prompt_ids(prompt, raw=raw, chat_template_kwargs=chat_template_kwargs)
        return Sequence(
            session or self.session(),
            self.tokenizer,
            ids,
            params,
            owns_session=session is None,
            progress=progress,
        )

    def sampling_params(self, params: SamplingParams | None = None, **overrides: Any) -> SamplingParams:
        """The parameters, by default the model's, with some fields replaced.

        Raises: ValueError for a value out of range, TypeError for an unknown field.
        """
        names = [field.name for field in fields(SamplingParams)]
        for name in overrides:
            if name not in names:
                from difflib import get_close_matches

                near = get_close_matches(name, names, 1, 0.4)
                hint = f"did you mean {near[0]!r}?" if near else f"sampling takes {', '.join(names)}"
                raise TypeError(f"generate() got an unexpected keyword argument {name!r}; {hint}")
        return replace(params or self.sampling_defaults, **overrides)

    def prompt_ids(
        self,
        prompt: str | IdSequence[int] | IdSequence[Message],
        *,
        raw: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The token ids generate() would feed."""
        if not isinstance(prompt, str):
            items = list(prompt)
            messages = [item for item in items if isinstance(item, Mapping)]
            tokens = [item for item in items if isinstance(item, (int, np.integer))]
            if len(messages) == len(items) > 0:
                return self.tokenizer.encode_chat(messages, **(chat_template_kwargs or {}))
            if len(tokens) == len(items):
                return [int(token) for token in tokens]
            raise ValueError("a prompt is a text, a list of token ids or a list of messages, not a mixture")
        if not prompt:
            raise ValueError("the prompt is empty; give some text")
        if raw or not self.tokenizer.has_chat_template:
            return self.tokenizer.encode(prompt)
        turn = [{"role": "user", "content": prompt}]
        return self.tokenizer.encode_chat(turn, **(chat_template_kwargs or {}))

    def trace(self, log: TraceLog | None) -> None:
        """Notes from now on what runs when; None ends that."""
        with self._turns.take():
            self._backend.trace(log)
            self.runner.trace = log or NO_TRACE

    def close(self) -> None:
        """Ends the threads and gives a GPU back; what still uses the engine then gets a RuntimeError."""
        self._device.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(
    model: str,
    *,
    ctx_size: int = 0,
    threads: int | None = None,
    dtype: str = "auto",
    cache_type: str = "f16",
    kv: str = "full",
    kv_args: Mapping[str, str] | None = None,
    n_slots: int = 1,
    cache_bytes: int = 0,
    ubatch_size: int | None = None,
    device: str = "cpu",
    cubins: str | Path | None = None,
    kv_device: str = "auto",
    load_format: str = "auto",
    offline: bool = False,
    affinity: Affinity | None = None,
    tile_cache: bool = False,
    mmap: bool = True,
    mlock: bool = False,
    progress: LoadProgress | None = None,
    download_progress: bool = False,
) -> Engine:
    """Loads a model by alias, hub repository, directory or file.

    ctx_size 0 takes the model's context, or what fits in memory. threads None takes the physical cores. dtype
    "auto" computes on the stored formats, "f32" is the exact path, "bf16", "q8_0" and "q4_0" convert at load.
    cache_type is the number format of exact KV rows: "f32", "f16" or "bf16". kv names a KV method, kv_args
    its parameters as text. cache_bytes of host memory are left for a Scheduler's cache. ubatch_size None
    takes what suits the device. device is "cpu", or "cuda" or "cuda:1" for a GPU, whose kernels lie in the
    directory cubins or are compiled; kv_device says where rows rest that a KV method keeps on the host: there
    ("cpu"), on the GPU ("gpu"), or where they fit ("auto").
    load_format "dummy" makes random weights from the configuration alone. For the CPU: affinity says which
    CPUs and NUMA nodes the threads run on; tile_cache keeps the repacked weights on disk, as many bytes again
    as the model, and maps them at the next start (reads them, without mmap); mlock keeps the weights in
    memory when it gets short.

    Raises: ValueError and RuntimeError with a sentence that says what to do.
    """
    from .config import rope_frequencies
    from .device import gpu_number, open_gpu
    from .kernel_build.compilers import kept_helpers
    from .kvcache import open_method
    from .kvcache.contract import KvSetting
    from .memory_plan import Wanted

    number = gpu_number(device)
    method, parameters = open_method(kv, kv_args or {}, on_gpu=number is not None)
    if cache_type not in ELEMENT_BYTES:
        raise ValueError(
            f"KV cache type {cache_type!r} is not known; choose one of {', '.join(ELEMENT_BYTES)}"
        )
    if ubatch_size is not None and not 1 <= ubatch_size <= MAX_CHUNK:
        raise ValueError(f"--ubatch-size {ubatch_size} is out of range; 1 to {MAX_CHUNK}")
    if ctx_size < 0 or not 1 <= n_slots <= 4096:
        raise ValueError(f"--ctx-size {ctx_size} with {n_slots} slots is out of range; 0 or more, 1 to 4096")
    if cache_bytes < 0:
        raise ValueError(f"cache_bytes={cache_bytes} is negative")
    from .cpu_device import CpuDevice
    from .model_source import open_model
    from .weight_shapes import DTYPES
    from .weights import check_tensors

    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known; choose auto, {', '.join(DTYPES)}")
    started = time.perf_counter()
    opened: Device = (
        CpuDevice(threads, affinity, tile_cache=tile_cache, mmap=mmap, mlock=mlock)
        if number is None
        else open_gpu(number, cubins, kv_device)
    )
    try:
        with (
            kept_helpers(),
            open_model(model, load_format=load_format, offline=offline, progress=download_progress) as source,
        ):
            config = source.config
            check_tensors(config, source.tensors)
            chunk = ubatch_size or opened.default_chunk
            pools = partial(method.pools, config, parameters, cache_type)
            wanted = Wanted(config, source.tensors, dtype, chunk, pools, n_slots, ctx_size, cache_bytes)
            context = opened.plan(wanted).context(ctx_size)
            backend = opened.open(progress)
            weights = opened.load(source, dtype, partial(progress, "loading weights") if progress else None)
            factors = source.rope_factors()
            rope = rope_frequencies(config, factors)
            setting = KvSetting(backend, config, weights, n_slots, context, cache_type, *rope)
            cache: KvMethod = method.build(setting, parameters)
            runner = Runner(backend, config, weights, cache, chunk=chunk, rope_factors=factors)
            runner.warm_up()
        load_ms = (time.perf_counter() - started) * 1e3
        method_name = str(cache.stats()["method"])
    except BaseException:
        opened.close()
        raise
    origin = lru_cache(partial(session_origin, source.name, method_name, parameters, setting))
    step_bytes = partial(method.step_bytes, config, parameters, cache_type)
    return Engine(
        source, opened, backend, runner, cache, kv, context, load_ms, weights.n_bytes, origin, step_bytes
    )
