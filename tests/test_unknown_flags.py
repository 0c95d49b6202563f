"""Flags that a verb does not have end with one sentence; values that look like them stay values."""

from __future__ import annotations

from importlib import import_module

import pytest

from yakvrt import bench_arguments, generate, plan, pull, tokenize
from yakvrt.__main__ import MODULES, VERBS
from yakvrt.cli_parsing import parse


def refused(verb: str, *argv: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        import_module(f"yakvrt.{MODULES.get(verb, verb)}").main(argv)


@pytest.mark.parametrize("flag", ["-nkvo", "-lv", "-mg", "-mu", "-sp", "-hello", "-n5", "-xyz=3", "-no"])
@pytest.mark.parametrize("verb", list(VERBS))
def test_letters_after_a_dash_are_no_values(verb: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(verb, flag, "1")
    shown = capsys.readouterr()
    name = flag.partition("=")[0]
    assert shown.err == f"yakvrt: error: unknown flag {name} (see yakvrt {verb} --help)\n"
    assert shown.out == ""


@pytest.mark.parametrize(
    ("argv", "instead"),
    [
        ("-p hi -ngl 99", "-ngl: all layers run on --device"),
        ("--n-gpu-layers=99 -p hi", "--n-gpu-layers: all layers run on --device"),
        ("-fa on", "-fa: attention is always fused, leave it out"),
        ("-cnv", "-cnv: a conversation is python -m yakvrt chat"),
        ("-st", "-st: python -m yakvrt generate answers one prompt"),
        ("-tb 2", "-tb: -t counts for prompts too"),
    ],
)
def test_flags_of_llama_cpp_are_told_what_takes_their_place(
    argv: str, instead: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused("generate", *argv.split())
    assert capsys.readouterr().err == f"yakvrt: error: unknown flag {instead} (see yakvrt generate --help)\n"


def test_a_flag_of_one_verb_is_unknown_to_another(capsys: pytest.CaptureFixture[str]) -> None:
    refused("generate", "-np", "2")
    assert "unknown flag -np" in capsys.readouterr().err


def test_long_and_broken_ones_take_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    refused("generate", "-a\nb" + "x" * 10_000)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert len(line) < 200


def test_values_stay_values() -> None:
    def args(*argv: str) -> dict[str, object]:
        return vars(parse(generate.build_parser(), argv))

    assert args("-p", "-x y")["prompt"] == "-x y"
    assert args("-p", "-not a flag")["prompt"] == "-not a flag"
    assert args("-p", "-")["prompt"] == "-"
    assert args("-p=-ngl")["prompt"] == "-ngl"
    assert args("--prompt=-ngl")["prompt"] == "-ngl"
    assert args("-n", "-1", "--seed", "-1")["max_tokens"] == -1
    assert args("-l=5-inf")["logit_bias"] == [(5, -float("inf"))]
    assert parse(pull.build_parser(), ["--", "-ngl"]).model == "-ngl"


def test_hf_repo_is_the_model() -> None:
    for module in (generate, plan, tokenize):
        for flag in ("-hf", "--hf-repo", "-m", "--model"):
            assert parse(module.build_parser(), [flag, "user/repo:Q8_0"]).model == "user/repo:Q8_0"
    assert parse(bench_arguments.build_parser(), ["-hf", "user/repo"]).model == [["user/repo"]]
    assert "-hf NAME" in generate.build_parser().format_help()
