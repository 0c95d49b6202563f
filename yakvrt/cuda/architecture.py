"""The GPU architectures that kernels are compiled for."""

from __future__ import annotations

# `a` stands for instructions that only this generation has: wgmma and the bulk copies of Hopper
ARCHITECTURES = {
    "sm_80": (8, 0, ""),
    "sm_86": (8, 6, ""),
    "sm_89": (8, 9, ""),
    "sm_90a": (9, 0, "a"),
    "sm_100a": (10, 0, "a"),
    "sm_120a": (12, 0, "a"),
}
OLDEST = (8, 0)


def architectures(text: str) -> list[str]:
    """The names in a list with commas.

    Raises: ValueError for a name that is none.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    if unknown := [name for name in names if name not in ARCHITECTURES]:
        raise ValueError(f"there is no architecture {unknown[0]!r}: choose among {', '.join(ARCHITECTURES)}")
    return names


def architectures_for(capability: tuple[int, int]) -> list[str]:
    """Those whose cubins run on a GPU of this compute capability, the nearest first.

    A cubin runs on later GPUs of its generation, one of an `a` architecture on its own alone.
    """
    fitting = [
        (minor, name)
        for name, (major, minor, letter) in ARCHITECTURES.items()
        if (major, minor) == capability or (not letter and major == capability[0] and minor < capability[1])
    ]
    return [name for _, name in sorted(fitting, reverse=True)]
