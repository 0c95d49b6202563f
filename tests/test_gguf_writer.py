"""The GGUF writer: what gguf-py reads from its files, byte-exact copies, and nothing half-written."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import model_bytes, write
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_tools.formats import FORMATS
from gguf_tools.meta_value import MetaValue, ValueType, array, scalar, stored_values, string
from gguf_tools.quantize import quantize
from gguf_tools.reader import GGUFFile
from gguf_tools.writer import GGUFWriter, TensorPlan

F32 = FORMATS["F32"]
ONE = TensorPlan("a", (2, 4), F32)
ROWS = np.arange(32, dtype=np.uint8).reshape(2, 16)

EVERY_TYPE = {
    "general.architecture": string("llama"),
    "u8": scalar(ValueType.UINT8, 255),
    "i8": scalar(ValueType.INT8, -128),
    "u16": scalar(ValueType.UINT16, 65535),
    "i16": scalar(ValueType.INT16, -32768),
    "u32": scalar(ValueType.UINT32, 2**32 - 1),
    "i32": scalar(ValueType.INT32, -(2**31)),
    "u64": scalar(ValueType.UINT64, 2**64 - 1),
    "i64": scalar(ValueType.INT64, -(2**63)),
    "f32": scalar(ValueType.FLOAT32, 0.5),
    "f64": scalar(ValueType.FLOAT64, 1e300),
    "yes": scalar(ValueType.BOOL, True),
    "text": string("Grüße\n"),
    "empty text": string(""),
    "words": array(ValueType.STRING, ["", "a", "日本"]),
    "numbers": array(ValueType.INT32, np.array([1, -2, 3], np.int32)),
    "floats": array(ValueType.FLOAT32, [0.5, -0.25]),
    "flags": array(ValueType.BOOL, [True, False]),
    "nothing": array(ValueType.UINT32, []),
}
EVERY_VALUE = {
    "general.architecture": "llama",
    "u8": 255,
    "i8": -128,
    "u16": 65535,
    "i16": -32768,
    "u32": 2**32 - 1,
    "i32": -(2**31),
    "u64": 2**64 - 1,
    "i64": -(2**63),
    "f32": 0.5,
    "f64": 1e300,
    "yes": True,
    "text": "Grüße\n",
    "empty text": "",
    "words": ["", "a", "日本"],
    "numbers": [1, -2, 3],
    "floats": [0.5, -0.25],
    "flags": [True, False],
    "nothing": [],
}


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def write_all(path: Path, plans: list[TensorPlan], data: Iterable[tuple[str, np.ndarray]]) -> None:
    with GGUFWriter(path, {}, plans) as writer:
        for name, rows in data:
            writer.write_tensor(name, rows)


def interrupted() -> Iterator[tuple[str, np.ndarray]]:
    yield "a", ROWS
    raise KeyboardInterrupt


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_gguf_py_reads_every_type_and_shape(tmp_path: Path) -> None:
    from gguf import GGUFReader

    tensors = {
        "one.weight": ("F32", weights(7)),
        "two.weight": ("Q8_0", weights(3, 64)),
        "three.weight": ("Q4_0", weights(2, 3, 32)),
        "four.weight": ("F16", weights(2, 1, 3, 5)),
    }
    plans = [TensorPlan(name, x.shape, FORMATS[kind]) for name, (kind, x) in tensors.items()]
    path = tmp_path / "x.gguf"
    with GGUFWriter(path, EVERY_TYPE, plans) as writer:
        for name, (kind, x) in tensors.items():
            writer.write_tensor(name, quantize(x, kind))
    theirs = GGUFReader(path)
    values = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert values == EVERY_VALUE
    for tensor, (name, (kind, x)) in zip(theirs.tensors, tensors.items(), strict=True):
        assert (tensor.name, tensor.tensor_type.name) == (name, kind)
        assert tensor.shape.tolist() == list(reversed(x.shape))
        assert np.array_equal(tensor.data.reshape(-1).view(np.uint8), quantize(x, kind).reshape(-1))
    with GGUFFile(path) as ours:
        assert dict(ours.metadata) == EVERY_VALUE


@pytest.mark.parametrize("alignment", [32, 64, 8])
def test_same_bytes_as_gguf_py(tmp_path: Path, alignment: int) -> None:
    from gguf import GGMLQuantizationType
    from gguf import GGUFWriter as Theirs

    a, b = weights(3, 5), weights(2, 32)
    theirs = Theirs(tmp_path / "theirs.gguf", "llama")
    if alignment != 32:
        theirs.add_custom_alignment(alignment)
    theirs.add_name("x")
    theirs.add_array("tokenizer.ggml.tokens", ["a", "b"])
    theirs.add_tensor("a", a)
    theirs.add_tensor("b", quantize(b, "Q8_0"), raw_dtype=GGMLQuantizationType.Q8_0)
    theirs.write_header_to_file()
    theirs.write_kv_data_to_file()
    theirs.write_tensors_to_file()
    theirs.close()

    values: dict[str, MetaValue] = {"general.architecture": string("llama")}
    if alignment != 32:
        values["general.alignment"] = scalar(ValueType.UINT32, alignment)
    values |= {"general.name": string("x"), "tokenizer.ggml.tokens": array(ValueType.STRING, ["a", "b"])}
    plans = [TensorPlan("a", a.shape, F32), TensorPlan("b", b.shape, FORMATS["Q8_0"])]
    with GGUFWriter(tmp_path / "ours.gguf", values, plans) as writer:
        writer.write_tensor("a", quantize(a, "F32"))
        writer.write_tensor("b", (quantize(row, "Q8_0") for row in b))
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_stored_values_copy_byte_for_byte(tmp_path: Path) -> None:
    # Nested arrays, an unusual integer type and bytes that are no UTF-8 all survive.
    metadata = {"general.architecture": "llama", "deep": [[1, 2], [3]], "raw": b"\xff\xfe", "small": -1}
    source = write(tmp_path / "a.gguf", model_bytes(metadata, {"a": ("F32", weights(2, 4))}))
    with GGUFFile(source) as file:
        plans = [TensorPlan(t.name, t.shape, t.format) for t in file.tensors.values()]
        with GGUFWriter(tmp_path / "b.gguf", stored_values(file.metadata), plans) as writer:
            writer.write_tensor("a", file.tensors["a"].data)
    assert (tmp_path / "b.gguf").read_bytes() == source.read_bytes()


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20),
        st.one_of(
            st.text().map(string),
            st.integers(-(2**63), 2**63 - 1).map(lambda n: scalar(ValueType.INT64, n)),
            st.floats().map(lambda x: scalar(ValueType.FLOAT64, x)),
            st.lists(st.text(), max_size=5).map(lambda words: array(ValueType.STRING, words)),
            st.lists(st.integers(0, 65535), max_size=5).map(lambda n: array(ValueType.UINT16, n)),
        ),
        max_size=6,
    ).filter(lambda values: "general.alignment" not in values),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 40)), max_size=4),
    st.sampled_from([8, 16, 32, 128]),
)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    values: dict[str, MetaValue],
    shapes: list[tuple[int, int]],
    alignment: int,
) -> None:
    path = tmp_path_factory.mktemp("w") / "x.gguf"
    data = {f"t{i}": np.full((rows, 4 * cols), i, np.uint8) for i, (rows, cols) in enumerate(shapes)}
    plans = [TensorPlan(name, (x.shape[0], x.shape[1] // 4), F32) for name, x in data.items()]
    with GGUFWriter(path, values, plans, alignment) as writer:
        for name, x in data.items():
            writer.write_tensor(name, x)
    with GGUFFile(path) as file:
        assert file.alignment == alignment
        read = stored_values(file.metadata)
        assert {k: (v.type, bytes(v.stored)) for k, v in values.items()} == {
            k: (read[k].type, bytes(read[k].stored)) for k in values
        }
        assert all(np.array_equal(file.tensors[name].data, x) for name, x in data.items())
        assert list(file.tensors) == list(data)


def test_pieces_of_a_generator_are_taken_one_at_a_time(tmp_path: Path) -> None:
    alive = 0

    def pieces() -> Iterator[np.ndarray]:
        nonlocal alive
        for _ in range(64):
            alive += 1
            yield np.zeros(1 << 16, np.uint8)

    plan = TensorPlan("big", (64, 1 << 14), F32)
    with GGUFWriter(tmp_path / "x.gguf", {}, [plan]) as writer:
        writer.write_tensor("big", pieces())
    assert alive == 64
    assert (tmp_path / "x.gguf").stat().st_size >= 64 << 16


def test_a_failure_leaves_nothing_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_all(path, [ONE], interrupted())
    assert path.read_bytes() == b"old"
    assert left_over(tmp_path) == ["x.gguf"]
    with GGUFWriter(path, {}, [ONE]) as writer:
        writer.write_tensor("a", ROWS)
        assert path.read_bytes() == b"old"
    assert path.read_bytes()[:4] == b"GGUF"
    assert left_over(tmp_path) == ["x.gguf"]


def test_ctrl_c_before_the_context_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the file is just made, and when the writer is."""
    real = Path.open

    def interrupted_open(path: Path, *args: Any, **how: Any) -> Any:
        real(path, *args, **how)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", interrupted_open)
        with pytest.raises(KeyboardInterrupt):
            GGUFWriter(tmp_path / "x.gguf", {}, [ONE])
    gc.collect()
    assert left_over(tmp_path) == []
    writer = GGUFWriter(tmp_path / "x.gguf", {}, [ONE])
    assert len(left_over(tmp_path)) == 1
    del writer
    gc.collect()
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("writes", "error"),
    [
        ([], "0 of 2 tensors were written"),
        ([("a", ROWS)], "1 of 2 tensors were written"),
        ([("b", ROWS)], "out of order; the next one of the plan is 'a'"),
        ([("a", ROWS), ("b", ROWS), ("c", ROWS)], "the next one of the plan is 'none'"),
        ([("a", ROWS[:1])], "got 16 bytes; F32 of shape"),
        ([("a", itertools.repeat(ROWS))], "got at least 64 bytes"),
        ([("a", ROWS.view(np.float32))], "give its stored bytes, uint8"),
    ],
)
def test_data_that_do_not_follow_the_plan(
    tmp_path: Path, writes: list[tuple[str, np.ndarray]], error: str
) -> None:
    plans = [ONE, TensorPlan("b", (2, 4), F32)]
    with pytest.raises(ValueError, match=error):
        write_all(tmp_path / "x.gguf", plans, writes)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("values", "plans", "alignment", "error"),
    [
        ({}, [ONE, ONE], None, "'a' occurs twice among the tensors"),
        ({"k" * 70000: scalar(ValueType.UINT8, 1)}, [], None, "longer than 65535 bytes"),
        ({"general.alignment": scalar(ValueType.UINT32, 64)}, [], 32, "says 64, but 32 is asked for"),
        ({"general.alignment": string("64")}, [], None, "it must be UINT32"),
        ({}, [], 48, "48 is not a power of two"),
        ({}, [], 4, "4 is not a power of two from 8"),
        ({}, [TensorPlan("a", (1 << 30, 1 << 30), F32)], None, "are free in this directory"),
    ],
)
def test_plans_that_no_file_can_hold(
    tmp_path: Path, values: dict[str, MetaValue], plans: list[TensorPlan], alignment: int | None, error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        GGUFWriter(tmp_path / "x.gguf", values, plans, alignment)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (1, 2, 3, 4, 5), (2, 33)])
def test_tensors_that_no_file_can_hold(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="tensor 'a'"):
        TensorPlan("a", shape, FORMATS["Q8_0"])


def test_a_folder_or_device_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a regular file"):
        GGUFWriter(tmp_path, {}, [])
    with pytest.raises(ValueError, match="not a regular file"):
        GGUFWriter("/dev/null", {}, [])


def test_a_link_keeps_pointing_at_the_file_that_is_written(tmp_path: Path) -> None:
    (tmp_path / "link.gguf").symlink_to(tmp_path / "real.gguf")
    with GGUFWriter(tmp_path / "link.gguf", {}, []):
        pass
    assert (tmp_path / "link.gguf").is_symlink()
    assert (tmp_path / "real.gguf").read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(
    ("value_type", "value"),
    [(ValueType.UINT8, 256), (ValueType.INT8, -129), (ValueType.UINT32, -1), (ValueType.UINT32, 1.5)],
)
def test_numbers_that_do_not_fit_their_type(value_type: ValueType, value: float) -> None:
    with pytest.raises(ValueError, match=f"does not fit the metadata type {value_type.name}"):
        scalar(value_type, value)
    with pytest.raises(ValueError, match="does not fit"):
        array(value_type, [value])


def test_no_scalars_of_composite_types() -> None:
    with pytest.raises(ValueError, match="ARRAY is not a fixed-size type"):
        scalar(ValueType.ARRAY, 1)
    with pytest.raises(ValueError, match="ARRAY is not a fixed-size type"):
        array(ValueType.ARRAY, [[1]])
