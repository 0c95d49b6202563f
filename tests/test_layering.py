"""The house rules a reader relies on: imports point downwards, slow imports stay lazy, files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_LINES = 300
FORBIDDEN_NAMES = {"utils", "helpers", "common", "base", "misc"}

# The layers of DESIGN.md from top to bottom: a module imports its own layer and those below it.
# A name stands for the module and for everything in the package of that name.
LAYERS: tuple[tuple[str, str], ...] = (
    ("entry", "__main__"),
    (
        "verbs",
        """generate chat serve batch perplexity kl_divergence eval tokenize models pull cuda_kernels
        plan plan_text calibration prediction
        bench bench_arguments bench_records bench_facts record_formats value_lists
        transfer machine_facts trace_file trace_events
        cli_arguments grammar_arguments machine_arguments device_arguments cli_parsing unknown_flags
        prompt_cache prompt_text terminal""",
    ),
    (
        "text",
        """engine chunk_size session turns session_origin session_file saved_session
        sequence generation request request_trace scheduler scheduler_state step_loop waiting_line slot_choice
        prefix_cache radix_tree sampler
        memory_plan modelled_step step_times step_timing model_source runner
        device cpu_device cuda_device
        grammar grammar_check constraint
        tool_calls tool_call_text tool_prompt
        tokenizer no_tokenizer tokenizer_files end_tokens gguf_tokenizer gguf_vocabulary stream_decoder
        chat_template template_budget template_metering template_sandbox""",
    ),
    (
        "model",
        """model weights weight_shapes kvcache config config_fields rope_scaling
        gguf_source safetensors_source dummy_weights
        hub hub_repo package_index model_files model_names download_progress""",
    ),
    ("ops", "ops draw backend cpu cuda trace_log trace_records trace_store"),
    ("kernels", "kernels"),
    (
        "leaf",
        "gguf_tools whole_file cache_directory tuning control_group free_memory higgs_grids kernel_build",
    ),
)
# Names of the package itself (yakvrt.load, yakvrt.__version__): for the verbs, and nobody below them.
PACKAGE = "yakvrt"
NUMBA = {"numba", "llvmlite"}
PLACED = frozenset(unit for _, units in LAYERS for unit in units.split())


@dataclass(frozen=True, slots=True)
class Import:
    """One import: the module asked for, whether it runs when the file is imported, and its line."""

    target: str
    at_module_level: bool
    line: int


def source_files() -> list[Path]:
    return sorted([*(ROOT / "yakvrt").rglob("*.py"), *(ROOT / "gguf_tools").rglob("*.py")])


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[Import]:
    """Every import of the file, relative ones made absolute; under `if TYPE_CHECKING` deferred."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]

    def visit(node: ast.AST, at_module_level: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, at_module_level, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*origin, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", at_module_level, node.lineno)
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        )
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_module_level and not deferred)

    yield from visit(ast.parse(path.read_text(encoding="utf-8"), str(path)), True)


def unit_of(module: str) -> str:
    """The entry of the table a module belongs to: its top-level name, or PACKAGE for yakvrt itself."""
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return parts[0]
    if len(parts) == 1 or not is_module(parts[1]):
        return PACKAGE
    return parts[1]


def is_module(name: str) -> bool:
    return (ROOT / PACKAGE / name).is_dir() or (ROOT / PACKAGE / f"{name}.py").is_file()


def depth_of(unit: str) -> int:
    """The layer's number, 0 on top."""
    for depth, (_, units) in enumerate(LAYERS):
        if unit in units.split():
            return depth
    raise KeyError(unit)


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_has_a_place_in_the_layers(path: Path) -> None:
    unit = unit_of(module_name(path))
    assert unit in {PACKAGE, *PLACED}, (
        f"yakvrt/{unit} is in no layer: name it in DESIGN.md's house and in LAYERS of tests/test_layering.py"
    )


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_imports_point_downwards(path: Path) -> None:
    unit = unit_of(module_name(path))
    if unit == PACKAGE:
        return  # yakvrt/__init__.py hands out public names of every layer, lazily (checked below)
    assert unit in PLACED, "see test_has_a_place_in_the_layers"
    wrong = []
    for found in imports_of(path):
        target = unit_of(found.target)
        if target == PACKAGE:
            allowed = depth_of(unit) <= 1 or found.target.endswith("__version__")
        elif target in PLACED:
            # The one way up: a kernel builder asks the CPU backend for its SIMD vocabulary.
            builder = unit == "kernels" and target == "cpu"
            builder = builder and not found.at_module_level
            allowed = builder or depth_of(target) >= depth_of(unit)
        else:
            allowed = True
        if not allowed:
            wrong.append(f"{where(path, found.line)} imports {found.target}")
    assert not wrong, "imports must point downwards (DESIGN.md, The house): " + "; ".join(wrong)


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_only_the_backends_import_numba(path: Path) -> None:
    # gguf_tools is faster with them where they are installed, and works without
    optional = {"quantize_numba", "dequantize_compiled", "dequantize_vectors"}
    if (
        unit_of(module_name(path)) in ("cpu", "cuda")
        or module_name(path).removeprefix("gguf_tools.") in optional
    ):
        return
    wrong = [where(path, found.line) for found in imports_of(path) if found.target.split(".")[0] in NUMBA]
    assert not wrong, f"only yakvrt/cpu and yakvrt/cuda import numba or llvmlite, found at {', '.join(wrong)}"


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_only_the_cuda_backend_imports_nvidias_packages(path: Path) -> None:
    if unit_of(module_name(path)) == "cuda":
        return
    wrong = [where(path, found.line) for found in imports_of(path) if found.target.split(".")[0] == "cuda"]
    assert not wrong, f"only yakvrt/cuda imports cuda.core and cuda.bindings, found at {', '.join(wrong)}"


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_file_is_small_and_named_after_something(path: Path) -> None:
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert n_lines <= MAX_LINES, f"{path.name} has {n_lines} lines, at most {MAX_LINES}: give it one concept"
    vague = FORBIDDEN_NAMES.intersection(path.relative_to(ROOT).with_suffix("").parts)
    assert not vague, f"{path.relative_to(ROOT)}: name it after what it does, not {vague.pop()}"


def modules_after(statement: str) -> set[str]:
    """The top-level modules a fresh interpreter holds after running the statement."""
    shown = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(shown.stdout.split())


@pytest.mark.parametrize("module", ["yakvrt", "yakvrt.__main__", "gguf_tools", "gguf_tools.__main__"])
def test_start_up_imports_nothing_slow(module: str) -> None:
    slow = {"numpy", "numba", "llvmlite", "huggingface_hub", "tokenizers", "jinja2", "rich", "gguf"}
    loaded = slow & modules_after(f"import {module}")
    assert not loaded, (
        f"import {module} loads {', '.join(sorted(loaded))}: import it inside the function that needs it"
    )


def test_kernels_and_kv_methods_and_the_cuda_backend_import_without_numba() -> None:
    modules = [module_name(path) for path in source_files()]
    held = [name for name in modules if name.startswith(("yakvrt.kernels", "yakvrt.kvcache", "yakvrt.cuda"))]
    held = [name for name in held if not name.startswith("yakvrt.cuda.device_ops")]
    assert held, "yakvrt/kernels, yakvrt/kvcache and yakvrt/cuda hold no module"
    loaded = (NUMBA | {"cuda"}) & modules_after("\n".join(f"import {name}" for name in held))
    assert not loaded, f"importing kernels, KV methods or the CUDA backend loads {', '.join(sorted(loaded))}"
