"""Made-up records of four domains: films, doctors, products, organisations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from yakvrt.eval.tasks.synth_asides import person
from yakvrt.eval.tasks.synth_words import (
    ADJECTIVES,
    CITIES,
    FORMS,
    LAST_NAMES,
    NOUNS,
    PRODUCTS,
    PURPOSES,
    SPECIALTIES,
)

Record = dict[str, str]


@dataclass(frozen=True, slots=True)
class Domain:
    """A kind of record: three keys with their descriptions, `name` first, and how texts speak of a record.

    `draw` makes a record, its name perhaps one drawn before. Sentences are filled from a record and from
    {city}, {person} and {year}, which belong to other things than what the keys ask for.
    """

    one: str
    many: str
    keys: Mapping[str, str]
    draw: Callable[[Random], Record]
    sentences: tuple[str, ...]
    article: tuple[tuple[str, ...], ...]


def _film(rng: Random) -> Record:
    title = rng.choice(
        ("The {a} {n}", "{a} {n}", "A {a} {n}", "The {n} of {c}", "{n} in {c}", "The {n} and the {m}")
    )
    noun, other = rng.sample(NOUNS, 2)
    name = title.format(a=rng.choice(ADJECTIVES), n=noun, m=other, c=rng.choice(CITIES))
    return {"name": name, "director": person(rng), "year": str(rng.randint(1950, 2023))}


def _doctor(rng: Random) -> Record:
    return {"name": f"Dr. {person(rng)}", "specialty": rng.choice(SPECIALTIES), "city": rng.choice(CITIES)}


def _product(rng: Random) -> Record:
    model = f"{rng.choice(NOUNS)} {rng.choice('ABCDEFGKLMNPRSTVX')}{rng.randint(1, 99) * 10}"
    price = f"{rng.randint(9, 899)}.{rng.choice(('00', '49', '50', '90', '95', '99'))} euros"
    return {
        "name": f"{model} {rng.choice(PRODUCTS)}",
        "maker": f"{rng.choice(LAST_NAMES)} Works",
        "price": price,
    }


def _organisation(rng: Random) -> Record:
    name = f"{rng.choice(LAST_NAMES)} {rng.choice(FORMS)} for {rng.choice(PURPOSES)}"
    return {"name": name, "headquarters": rng.choice(CITIES), "founded": str(rng.randint(1850, 2020))}


DOMAINS = (
    Domain(
        "film",
        "films",
        {"name": "the film's title", "director": "who directed it", "year": "the year of its first release"},
        _film,
        (
            "{name}, which {director} directed, came to the cinemas in {year}; years later, a copy was shown"
            " in {city}.",
            "First released in {year}, {name} was directed by {director} and cut by {person}.",
            "Few remember that {director} directed {name}. It was released in {year}, although parts had been"
            " shot in {city} long before.",
            "The jury also honoured {name} ({year}). Its director, {director}, could not come to {city}.",
        ),
        (
            (
                "{name} is shown every winter in {city}, mostly to the same people.",
                "When {person} speaks of films, the talk soon comes to {name}.",
            ),
            (
                "{director} directed it, on a script that had lain in a drawer.",
                "The director, {director}, refused to cut a single scene.",
            ),
            (
                "The film was first released in {year} and found its public slowly.",
                "It came out in {year}, in four cinemas.",
            ),
        ),
    ),
    Domain(
        "doctor",
        "doctors",
        {
            "name": "the doctor's name with its title",
            "specialty": "the field of medicine",
            "city": "where they practise",
        },
        _doctor,
        (
            "{name} practises {specialty} in {city_of}; before that, {person} ran the same rooms.",
            "For {specialty}, patients in {city_of} are sent to {name}, who trained abroad until {year}.",
            "In {city_of}, {name} has a practice for {specialty}. A second one, in {city}, never came about.",
            "{name} works in {city_of}. The field is {specialty}, as the letter of {person} says.",
        ),
        (
            (
                "{name} is a name that patients pass on to each other.",
                "Asked for advice, {person} names {name} at once.",
            ),
            (
                "The field is {specialty}, and nothing else.",
                "After the studies, which ended in {year}, it was {specialty} from the first day.",
            ),
            (
                "The practice is in {city_of}, two streets from the station; the one in {city} was given up.",
                "Patients come to {city_of} for an appointment, some of them from {city}.",
            ),
        ),
    ),
    Domain(
        "product",
        "products",
        {
            "name": "the product's full name",
            "maker": "the firm that makes it",
            "price": "its price, with the currency",
        },
        _product,
        (
            "The {name} by {maker} costs {price}; {person} of the test team found it sturdy.",
            "{maker} sells the {name} for {price}. The stock in {city} was gone within days.",
            "At {price}, the {name} is no bargain, but {maker} has repaired every one of them since {year}.",
            "A reader from {city} asks about the {name}: it is made by {maker}, and its price is {price}.",
        ),
        (
            (
                "Our testers in {city} had the {name} on the bench for a month.",
                "The {name} was lent to {person}, who did not want to give it back.",
            ),
            (
                "It is made by {maker}, who took over the plant in {year}.",
                "The maker, {maker}, promises spare parts for ten years.",
            ),
            (
                "Shops ask {price} for it, with a cable.",
                "Its price is {price}, delivery not counted.",
            ),
        ),
    ),
    Domain(
        "organisation",
        "organisations",
        {
            "name": "its full name",
            "headquarters": "the city of its head office",
            "founded": "the year it was founded",
        },
        _organisation,
        (
            "Founded in {founded}, the {name} has its head office in {headquarters} and a depot in {city}.",
            "The {name}, of {headquarters}, was set up in {founded} on a bequest of {person}.",
            "With its head office in {headquarters}, the {name} has been at work since it was founded in"
            " {founded}; its statutes were changed in {year}.",
            "{person} left the {name} last month. It was founded in {founded}, with its head office in"
            " {headquarters}.",
        ),
        (
            (
                "The {name} has asked its members to {city} for the yearly meeting.",
                "Since {year}, {person} has chaired the {name}.",
            ),
            (
                "Its head office is in {headquarters}; the branch in {city} has two rooms.",
                "Letters go to the head office in {headquarters}.",
            ),
            (
                "It was founded in {founded}, by people who had met by chance.",
                "The year of its founding, {founded}, stands above the door.",
            ),
        ),
    ),
)


def draw_records(domain: Domain, number: int, rng: Random) -> list[Record]:
    """Records whose names differ, also when one would stand within another."""
    records: list[Record] = []
    while len(records) < number:
        record = domain.draw(rng)
        if all(
            record["name"] not in other["name"] and other["name"] not in record["name"] for other in records
        ):
            records.append(record)
    return records
