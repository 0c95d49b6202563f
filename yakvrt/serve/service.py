"""The model behind the server: loading, ready, failed or shutting down."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from yakvrt.constraint import MAX_CHECKS
from yakvrt.serve.errors import ApiError
from yakvrt.serve.settings import PROMPT_THREADS, TEXT_THREADS, Settings
from yakvrt.serve.workers import Workers

if TYPE_CHECKING:
    from yakvrt.engine import Engine
    from yakvrt.prompt_text import AnyTokenizer
    from yakvrt.sampler import SamplingParams
    from yakvrt.scheduler import Scheduler


class Model:
    """A loaded model: what answers come from."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        *,
        tokenizer: AnyTokenizer | None = None,
        defaults: SamplingParams | None = None,
    ) -> None:
        from yakvrt.scheduler import Scheduler

        self.engine = engine
        self.name = settings.name or engine.name
        self.tokenizer = tokenizer or engine.tokenizer
        self.defaults = defaults or engine.sampling_defaults
        self.created = int(time.time())
        self.scheduler: Scheduler = Scheduler(
            engine,
            stall_ms=settings.stall_ms,
            max_waiting=settings.max_waiting,
            cache_bytes=settings.cache_bytes,
        )

    def close(self) -> None:
        """Ends what is under way."""
        self.scheduler.close()
        self.engine.close()


class Service:
    """Loads the model in a thread of its own; until then `model` refuses.

    What takes long has threads by its kind: `prompts` of answers are rendered and encoded, `grammars`
    compile, other `texts` are encoded and decoded, slots go to `files` and come back.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.failure: Exception | None = None
        self.is_draining = False
        self._model: Model | None = None
        self._loaded = threading.Condition()
        most = settings.max_waiting
        self.prompts = Workers("prompts", PROMPT_THREADS, most)
        self.grammars = Workers("grammars", MAX_CHECKS, most)
        self.texts = Workers("texts", TEXT_THREADS, most)
        self.files = Workers("slot files", 1, most)  # one at a time: what they take is counted

    def load(self, load: Callable[[], Model], on_failure: Callable[[], None]) -> None:
        """Begins to load."""

        def work() -> None:
            try:
                model = load()
            except Exception as error:
                self.failure = error
                on_failure()
                return
            self.provide(model)

        threading.Thread(target=work, name="yakvrt-load", daemon=True).start()

    def provide(self, model: Model) -> None:
        """It is ready; one that comes too late is closed."""
        with self._loaded:
            if not self.is_draining:
                self._model = model
                return
        model.close()

    @property
    def model(self) -> Model:
        """Raises: ApiError, as llama.cpp's server says it, while it loads; others once it has failed."""
        if self.is_draining:
            raise ApiError("the server is shutting down", status=503, code="shutting_down")
        if self._model is None:
            if self.failure:
                raise ApiError(f"the model cannot be loaded: {self.failure}", status=503, code="load_failed")
            raise ApiError("Loading model", status=503, code=503)
        if failure := self._model.scheduler.failure:
            raise ApiError(f"the model has failed: {failure}", status=503, code="model_failed")
        return self._model

    @property
    def loaded(self) -> Model | None:
        return self._model

    def drain(self) -> None:
        """No further request is taken."""
        with self._loaded:
            self.is_draining = True

    def close(self) -> None:
        """Ends what is under way and gives the model's memory back; further calls do nothing."""
        self.drain()
        for workers in (self.prompts, self.grammars, self.texts, self.files):
            workers.close()
        if self._model:
            self._model.close()
