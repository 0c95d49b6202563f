"""Valid GGUF files: against gguf-py's reader, lazily decoded metadata, views, release, splits."""

from __future__ import annotations

import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import assemble, model_bytes, pair, write

from gguf_tools.dequantize import dequantize
from gguf_tools.formats import FORMATS
from gguf_tools.reader import GGUFError, GGUFFile
from gguf_tools.split import SplitFile, open_split, part_paths

METADATA: dict[str, object] = {
    "general.architecture": "llama",
    "general.name": "Ünïcode 模型",
    "a.true": True,
    "a.number": 42,
    "a.negative": -(2**40),
    "a.real": 0.5,
    "a.tokens": ["<unk>", "", "Ġthe", "🙂"],
    "a.scores": [0.0, -1.5, 2.25],
    "a.flags": [True, False],
    "a.empty": [],
    "a.nested": [["a", "b"], [], ["c"]],
}


def tensors() -> dict[str, tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return {
        "norm.weight": ("F32", rng.standard_normal(48).astype(np.float32)),
        "w.q8": ("Q8_0", rng.standard_normal((5, 64)).astype(np.float32)),
        "w.bf16": ("BF16", rng.standard_normal((3, 7)).astype(np.float32)),
        "w.experts": ("Q4_0", rng.standard_normal((2, 3, 32)).astype(np.float32)),
        "w.f16": ("F16", rng.standard_normal((2, 2, 2, 3)).astype(np.float32)),
    }


@pytest.mark.parametrize("version", [2, 3])
def test_values_and_tensors(tmp_path: Path, version: int) -> None:
    path = write(tmp_path / "m.gguf", model_bytes(METADATA, tensors(), version=version))
    with GGUFFile(path) as file:
        assert file.version == version
        assert list(file.metadata) == list(METADATA)
        assert dict(file.metadata) == METADATA
        assert len(file.metadata) == len(METADATA)
        assert "absent" not in file.metadata
        assert file.metadata.get("absent") is None
        with pytest.raises(KeyError):
            file.metadata["absent"]
        assert list(file.tensors) == list(tensors())
        for name, (kind, x) in tensors().items():
            tensor = file.tensors[name]
            assert tensor.shape == x.shape
            assert tensor.format is FORMATS[kind]
            assert tensor.data.shape == (*x.shape[:-1], FORMATS[kind].row_bytes(x.shape[-1]))
            assert not tensor.data.flags.writeable
            close = {"F32": 0, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 0.03, "Q4_0": 0.5}[kind]
            assert np.max(np.abs(dequantize(tensor.data, kind) - x)) <= close


def test_against_gguf_py(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(28)
    writer.add_custom_alignment(64)
    writer.add_uint8("t.u8", 200)
    writer.add_int8("t.i8", -100)
    writer.add_uint16("t.u16", 60000)
    writer.add_int16("t.i16", -30000)
    writer.add_int32("t.i32", -(2**31))
    writer.add_uint64("t.u64", 2**64 - 1)
    writer.add_int64("t.i64", -(2**63))
    writer.add_float64("t.f64", 0.1)
    writer.add_bool("t.bool", True)
    writer.add_token_list([b"<s>", b"a", b"\xff\xfe"])
    writer.add_token_scores([0.5, -1.0, 0.0])
    writer.add_token_types([3, 1, 6])
    rng = np.random.default_rng(1)
    writer.add_tensor("a", rng.standard_normal((4, 6)).astype(np.float32))
    writer.add_tensor("b", rng.standard_normal(10).astype(np.float16))
    blocks = rng.integers(0, 256, (2, 3, 2 * 144), np.uint8)
    writer.add_tensor("c", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    reference = gguf.GGUFReader(path)
    with GGUFFile(path) as file:
        keys = [key for key in reference.fields if not key.startswith("GGUF.")]
        assert list(file.metadata) == keys
        assert file.metadata["tokenizer.ggml.tokens"] == ["<s>", "a", "��"]
        for key in keys:
            if key != "tokenizer.ggml.tokens":
                assert file.metadata[key] == reference.fields[key].contents(), key
        assert file.alignment == 64
        assert [t.name for t in reference.tensors] == list(file.tensors)
        for expected in reference.tensors:
            tensor = file.tensors[expected.name]
            assert list(tensor.shape) == expected.shape.tolist()[::-1]
            assert tensor.format.name == expected.tensor_type.name
            assert np.array_equal(
                tensor.data.reshape(-1), np.asarray(expected.data).view(np.uint8).reshape(-1)
            )


def test_no_tensors_and_no_padding(tmp_path: Path) -> None:
    content = assemble([pair("a", 1)])
    for end in (len(content), len(content.rstrip(b"\0")) + 3):
        with GGUFFile(write(tmp_path / "m.gguf", content[:end])) as file:
            assert dict(file.metadata) == {"a": 1}
            assert file.tensors == {}


def test_data_outlives_release_and_close(tmp_path: Path) -> None:
    x = np.arange(100_000, dtype=np.float32).reshape(100, 1000)
    path = write(tmp_path / "m.gguf", model_bytes({}, {"a": ("F32", x), "b": ("F32", -x)}))
    file = GGUFFile(path)
    a, b = file.tensors["a"], file.tensors["b"]
    assert np.array_equal(a.data.view(np.float32), x)
    a.release()
    assert np.array_equal(a.data.view(np.float32), x)
    file.close()
    file.close()
    assert file.tensors == {}
    assert dict(file.metadata) == {}
    b.release()
    assert np.array_equal(b.data.view(np.float32), -x)


def test_a_large_vocabulary_is_walked_quickly(tmp_path: Path) -> None:
    tokens = [f"token{i}" for i in range(152_000)]
    path = write(tmp_path / "m.gguf", model_bytes({"t": tokens, "m": tokens[:151_000]}, {}))
    took = []
    for _ in range(3):
        start = time.perf_counter()
        with GGUFFile(path):
            took.append(time.perf_counter() - start)
    with GGUFFile(path) as file:
        assert file.metadata["t"] == tokens
    # Typically 0.04 s; the margin is for a busy machine.
    assert min(took) < 0.3


def split_paths(folder: Path, n_parts: int = 3, **wrong: int) -> list[Path]:
    items = list(tensors().items())
    paths = []
    for i in range(n_parts):
        meta: dict[str, object] = {"split.no": i, "split.count": n_parts, "split.tensors.count": len(items)}
        meta |= {"general.architecture": "llama"} if i == 0 else {}
        meta |= {f"split.{k}": v for k, v in wrong.items() if i == 1}
        path = folder / f"m-{i + 1:05d}-of-{n_parts:05d}.gguf"
        paths.append(write(path, model_bytes(meta, dict(items[i::n_parts]))))
    return paths


def test_split_files(tmp_path: Path) -> None:
    paths = split_paths(tmp_path)
    for path in paths:
        assert part_paths(path) == tuple(paths)
    with open_split(paths) as model:
        assert isinstance(model, SplitFile)
        assert model.metadata["general.architecture"] == "llama"
        assert set(model.tensors) == set(tensors())
        kept = model.tensors["w.q8"]
    assert model.tensors == {}
    assert kept.data.shape == (5, 68)


def test_one_whole_file_is_a_split_of_one(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", model_bytes(METADATA, tensors()))
    assert part_paths(path) == (path,)
    with open_split([path]) as model:
        assert isinstance(model, GGUFFile)
        assert len(model.tensors) == 5


def test_wrong_splits(tmp_path: Path) -> None:
    paths = split_paths(tmp_path)
    with pytest.raises(GGUFError, match="one of 3 parts, but 1 are here"):
        open_split(paths[:1])
    with pytest.raises(GGUFError, match="holds part 2, expected part 1"):
        open_split([paths[0], paths[2], paths[1]])
    with pytest.raises(GGUFError, match="1 to 4096 parts, not 0"):
        open_split([])
    for wrong in ({"no": 2}, {"count": 7}):
        with pytest.raises(GGUFError, match="part"):
            open_split(split_paths(tmp_path, **wrong))
    twice = split_paths(tmp_path)
    meta: dict[str, object] = {"split.no": 1, "split.count": 3}
    write(twice[1], model_bytes(meta, dict(list(tensors().items())[:1])))
    with pytest.raises(GGUFError, match=r"'norm\.weight' is in an earlier part too"):
        open_split(twice)
    write(twice[1], model_bytes(meta, {}))
    with pytest.raises(GGUFError, match="5 tensors announced, the parts hold 3"):
        open_split(twice)
    twice[1].unlink()
    with pytest.raises(GGUFError, match=r"00002-of-00003.gguf: this part of the model is missing"):
        part_paths(twice[0])
    with pytest.raises(GGUFError, match="part 4 of 3"):
        part_paths("m-00004-of-00003.gguf")
    with pytest.raises(OSError, match=r"00002-of-00003"):
        open_split(twice)
