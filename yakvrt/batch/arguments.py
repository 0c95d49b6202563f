"""The flags of batch."""

from __future__ import annotations

import argparse

from yakvrt.cli_arguments import add_model_arguments, add_sampling_arguments, at_least
from yakvrt.cli_parsing import Parser
from yakvrt.serve.slot_arguments import add_slot_arguments


def build_parser() -> argparse.ArgumentParser:
    """The verb's flags."""
    parser = Parser("batch", "Answer a file of requests in OpenAI's batch format; run again, it goes on.")
    parser.add_argument("input", metavar="IN", help="requests, one a line; - is stdin")
    parser.add_argument("output", metavar="OUT", help="results, in the order in which they come; - is stdout")
    add_slot_arguments(parser, parallel=8)
    ray = parser.add_argument_group("more than one machine").add_argument
    ray(
        "--ray",
        metavar="ADDR",
        help="workers on a Ray cluster: its address, auto for the one around, local for a new one here",
    )
    ray(
        "--workers",
        type=at_least(1, 4096),
        metavar="N",
        help="with --ray (one for each GPU; with --device cpu one for each machine)",
    )
    add_sampling_arguments(parser, logprobs=False)
    add_model_arguments(parser)
    # The device: the CPU, with --ray the cluster's GPUs where it has any. Nobody waits for the first answer.
    parser.set_defaults(device=None, warmup=False)
    return parser
