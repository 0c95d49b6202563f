"""Documents about made-up records: prose, tables, lists, cards; and documents about nothing of the kind."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from yakvrt.eval.tasks.synth_asides import asides, fillers, person
from yakvrt.eval.tasks.synth_records import DOMAINS, Domain, Record, draw_records
from yakvrt.eval.tasks.synth_words import CITIES

TITLES = (
    "Notes from {city}",
    "Report {number}",
    "From the archive, part {number}",
    "Bulletin of {year}, {city}",
)


def title(rng: Random) -> str:
    return "## " + rng.choice(TITLES).format(**fillers(rng))


def told(texts: Sequence[str], record: Record, rng: Random) -> str:
    """One of the texts, filled with the record's values and with others that are none of them."""
    values = {**fillers(rng), **record}
    if "city" in record:  # a doctor's city, where texts name another one as well
        others = [city for city in CITIES if city != record["city"]]
        values |= {"city_of": record["city"], "city": rng.choice(others)}
    return rng.choice(texts).format(**values)


def article(domain: Domain, records: Sequence[Record], rng: Random) -> str:
    """A paragraph for each bit of a record, all of it told only when the last one is read."""
    bits = [told(texts, record, rng) for record in records for texts in domain.article]
    return "\n\n".join(f"{asides(rng, 1)} {bit} {asides(rng, 2)}" for bit in bits)


def prose(domain: Domain, records: Sequence[Record], rng: Random) -> str:
    parts = [f"{asides(rng, 2)} {told(domain.sentences, record, rng)} {asides(rng, 1)}" for record in records]
    return "\n\n".join(parts)


def table(domain: Domain, records: Sequence[Record], rng: Random) -> str:
    """A Markdown table; its columns stand in any order, with one more of no use."""
    columns = [*domain.keys, "remarks"]
    rng.shuffle(columns)
    rows = [{**record, "remarks": f"see {rng.randint(2, 400)}"} for record in records]
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
    return asides(rng, 1) + "\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def bullets(domain: Domain, records: Sequence[Record], rng: Random) -> str:
    return (
        "\n".join(f"- {told(domain.sentences, record, rng)}" for record in records) + f"\n\n{asides(rng, 1)}"
    )


def cards(domain: Domain, records: Sequence[Record], rng: Random) -> str:
    lines = []
    for number, record in enumerate(records, 1):
        keys = list(domain.keys)
        rng.shuffle(keys)
        values = "\n".join(f"  {key}: {record[key]}" for key in keys)
        lines.append(f"{domain.one} {number}\n{values}\n  entered by: {person(rng)}")
    return "\n".join(lines) + f"\n\n{asides(rng, 1)}"


FORMS = (article, table, prose, bullets, cards)


def documents(domain: Domain, records: Sequence[Record], rng: Random) -> list[str]:
    """The records in their order, one to three to a document (one to an article), the forms by turns."""
    written = []
    start, form = 0, rng.randrange(len(FORMS))
    while start < len(records):
        write = FORMS[form % len(FORMS)]
        some = records[start : start + (1 if write is article else rng.randint(1, 3))]
        written.append(f"{title(rng)}\n\n{write(domain, some, rng)}")
        start, form = start + len(some), form + 1
    return written


def distractor(but: Domain, records_percent: int, rng: Random) -> str:
    """A document about records of any domain but this one, with a chance in percent; else one of asides."""
    if rng.random() * 100 >= records_percent:
        return f"{title(rng)}\n\n{asides(rng, 4)}\n\n{asides(rng, 4)}"
    other = rng.choice([domain for domain in DOMAINS if domain.one != but.one])
    return documents(other, draw_records(other, rng.randint(1, 3), rng), rng)[0]
