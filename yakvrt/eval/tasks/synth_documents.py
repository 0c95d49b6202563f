"""Documents about made-up records: prose, tables, lists, cards; and documents about nothing of the kind."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from yakvrt.eval.tasks.synth_records import DOMAINS, Domain, Record, draw_records, person
from yakvrt.eval.tasks.synth_words import CITIES, NOUNS

TITLES = (
    "Notes from {city}",
    "Report {number}",
    "From the archive, part {number}",
    "Bulletin of {year}, {city}",
)
ASIDES = (
    "The meeting in {city} began late because the heating had failed again.",
    "{person} thanked the volunteers and asked for more chairs.",
    "Nothing else was decided that day, and the minutes were signed in {year}.",
    "Rain kept most visitors away, so the hall in {city} stayed half empty.",
    "A letter of {person} on this matter was read out and put on file.",
    "The {noun} committee will look at the accounts once more before the summer.",
    "Since {year} the rules have been the same, whatever people in {city} may say.",
    "Those who want a copy should write to {person}, not to the office.",
    "The road to {city} is closed on weekdays, which few had known.",
    "Of the {number} questions sent in, most were about parking.",
    "It was {person} who first proposed to move the archive to {city}.",
    "The photographs of the {noun} are lost, but the catalogue of {year} lists them.",
)


def fillers(rng: Random) -> dict[str, str]:
    """Names, places and numbers that no key asks for."""
    return {
        "person": person(rng),
        "city": rng.choice(CITIES),
        "year": str(rng.randint(1930, 2023)),
        "noun": rng.choice(NOUNS).lower(),
        "number": str(rng.randint(12, 400)),
    }


def title(rng: Random) -> str:
    return "## " + rng.choice(TITLES).format(**fillers(rng))


def asides(rng: Random, number: int) -> str:
    return " ".join(text.format(**fillers(rng)) for text in rng.sample(ASIDES, number))


def sentence(domain: Domain, record: Record, rng: Random) -> str:
    """A sentence that tells all three values of a record, and things that are none."""
    values = {**fillers(rng), **record}
    if "city" in record:  # a doctor's city, where sentences name another one as well
        values |= {
            "city_of": record["city"],
            "city": rng.choice([city for city in CITIES if city != record["city"]]),
        }
    return rng.choice(domain.sentences).format(**values)


def prose(domain: Domain, records: Sequence[Record], rng: Random) -> str:
    parts = [f"{asides(rng, 2)} {sentence(domain, record, rng)} {asides(rng, 1)}" for record in records]
    return "\n\n".join(parts)


def table(domain: Domain, records: Sequence[Record], rng: Random) -> str:
    """A Markdown table; its columns stand in any order, with one more of no use."""
    columns = [*domain.keys, "remarks"]
    rng.shuffle(columns)
    rows = [{**record, "remarks": f"see {rng.randint(2, 400)}"} for record in records]
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
    return asides(rng, 1) + "\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def bullets(domain: Domain, records: Sequence[Record], rng: Random) -> str:
    return "\n".join(f"- {sentence(domain, record, rng)}" for record in records) + f"\n\n{asides(rng, 1)}"


def cards(domain: Domain, records: Sequence[Record], rng: Random) -> str:
    lines = []
    for number, record in enumerate(records, 1):
        keys = list(domain.keys)
        rng.shuffle(keys)
        values = "\n".join(f"  {key}: {record[key]}" for key in keys)
        lines.append(f"{domain.one} {number}\n{values}\n  entered by: {person(rng)}")
    return "\n".join(lines) + f"\n\n{asides(rng, 1)}"


FORMS = (prose, table, bullets, cards)


def documents(domain: Domain, records: Sequence[Record], rng: Random) -> list[str]:
    """The records in their order, one to three to a document, the forms by turns."""
    written = []
    start, form = 0, rng.randrange(len(FORMS))
    while start < len(records):
        some = records[start : start + rng.randint(1, 3)]
        written.append(f"{title(rng)}\n\n{FORMS[form % len(FORMS)](domain, some, rng)}")
        start, form = start + len(some), form + 1
    return written


def distractor(but: Domain, rng: Random) -> str:
    """A document of asides, or about records of any domain but this one."""
    if rng.random() < 0.5:
        return f"{title(rng)}\n\n{asides(rng, 4)}\n\n{asides(rng, 4)}"
    other = rng.choice([domain for domain in DOMAINS if domain.one != but.one])
    return documents(other, draw_records(other, rng.randint(1, 3), rng), rng)[0]
