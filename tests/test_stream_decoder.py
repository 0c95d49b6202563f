from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from yakvrt.stream_decoder import StreamDecoder, byte_level_piece, sentencepiece_piece

TEXTS = st.text(max_size=40)


def cut(data: bytes, lengths: list[int]) -> list[bytes]:
    """Cut bytes into pieces of the given lengths, the last piece taking the rest."""
    pieces = []
    for length in lengths:
        pieces.append(data[:length])
        data = data[length:]
    return [*pieces, data]


@given(TEXTS, st.lists(st.integers(0, 5), max_size=60))
def test_any_cut_of_a_text_streams_whole_characters(text: str, lengths: list[int]) -> None:
    pieces = cut(text.encode(), lengths)
    stream = StreamDecoder(pieces.__getitem__, strip_space=False)
    parts = [stream.push(index) for index in range(len(pieces))]
    assert "".join(parts) == text
    assert stream.flush() == ""


@given(st.lists(st.binary(max_size=4), max_size=20))
def test_bytes_that_are_not_text_decode_as_a_whole_would(pieces: list[bytes]) -> None:
    stream = StreamDecoder(pieces.__getitem__, strip_space=False)
    text = "".join([stream.push(index) for index in range(len(pieces))]) + stream.flush()
    assert text == b"".join(pieces).decode("utf-8", errors="replace")


def test_a_cut_character_waits_and_a_lost_one_is_flushed() -> None:
    stream = StreamDecoder([b"\xf0\x9f", b"\x99\x82", b"\xe6\xbc"].__getitem__, strip_space=False)
    assert [stream.push(0), stream.push(1), stream.push(2)] == ["", "🙂", ""]
    assert stream.flush() == "�"


def test_only_the_first_space_is_dropped() -> None:
    stream = StreamDecoder([b"", b"  a", b" b"].__getitem__, strip_space=True)
    assert [stream.push(0), stream.push(1), stream.push(2)] == ["", " a", " b"]


def test_pieces_of_both_alphabets() -> None:
    assert byte_level_piece("Ġcafé") == b" caf\xe9"
    assert byte_level_piece("Ċ") == b"\n"
    assert byte_level_piece("<｜end｜>") == "<｜end｜>".encode()
    assert sentencepiece_piece("▁the") == b" the"
    assert sentencepiece_piece("<0xE6>") == b"\xe6"
    assert sentencepiece_piece("<0xZZ>") == b"<0xZZ>"
