"""Requantises a GGUF file with llama.cpp, to time llama.cpp on the format it is fastest with.

python bench/requantize_llamacpp.py MODEL.Q4_1.gguf MODEL.Q4_0.gguf q4_0
python bench/bench_llamacpp.py --model MODEL.Q4_1.gguf --llama-file MODEL.Q4_0.gguf
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

TYPES = {"q4_0": 2, "q4_1": 3, "q8_0": 7, "f16": 1}


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(description="Requantise a GGUF file with llama.cpp.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("type", choices=TYPES)
    args = parser.parse_args()
    import llama_cpp as c

    params = c.llama_model_quantize_default_params()
    params.ftype = TYPES[args.type]
    params.allow_requantize = True
    if status := c.llama_model_quantize(str(args.source).encode(), str(args.target).encode(), params):
        print(f"llama.cpp could not requantise {args.source}: status {status}", file=sys.stderr)
        return 1
    sizes = {path.name: path.stat().st_size for path in (args.source, args.target)}
    print(json.dumps({"bench": "requantize_llamacpp", "type": args.type, "bytes": sizes}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
