"""A list of records with a question and its answer, for bench_recall.py --gold.

    python bench/record_list.py --records 400 --seed 1 NAME

Writes NAME.txt, the prompt, and NAME.gold.txt, the answer; a record is about 40 tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

SYLLABLES = ["ba", "ko", "ri", "mel", "tan", "vo", "sha", "lu", "pen", "dor", "fi", "gra"]
CITIES = ["Bergen", "Cork", "Gdansk", "Leiden", "Lyon", "Porto", "Split", "Turku"]
GOODS = ["bolts", "cable", "ceramics", "coffee", "copper", "glass", "linen", "paper", "salt", "timber"]


def make(n_records: int, seed: int) -> tuple[str, str]:
    """The prompt and the answer. Names are unique; about one record in eight is asked for."""
    random = Random(seed)
    names: dict[str, None] = {}
    while len(names) < n_records:
        syllables = ["".join(random.choices(SYLLABLES, k=3)).capitalize() for _ in range(2)]
        names[" ".join(syllables)] = None
    city = random.choice(CITIES)
    lines, answer = [], ["Name\tAmount"]
    for number, name in enumerate(names):
        place, goods = random.choice(CITIES), random.choice(GOODS)
        amount = f"{random.randrange(100, 100_000) / 100:.2f} EUR"
        day = f"{random.randrange(1, 29):02}.{random.randrange(1, 13):02}.20{random.randrange(10, 25)}"
        lines.append(f"{number:05} | {name} | {place} | {goods} | {day} | {amount}")
        if place == city:
            answer.append(f"{name}\t{amount}")
    question = (
        f"List the name and the amount of every order from {city}, in the order of the list, as lines of "
        f"name, tab, amount, below the line {answer[0]!r}. Write nothing else."
    )
    head = "Orders: number | name | city | goods | date | amount"
    return "\n".join([head, *lines, "", question]), "\n".join(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description="A list of records, a question and its answer.")
    parser.add_argument("name", type=Path, metavar="NAME", help="writes NAME.txt and NAME.gold.txt")
    parser.add_argument("--records", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    prompt, answer = make(args.records, args.seed)
    for ending, text in ((".txt", prompt), (".gold.txt", answer)):
        args.name.with_name(args.name.name + ending).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
