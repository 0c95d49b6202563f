"""Sentences about nothing that is asked for: the rest of made-up documents."""

from __future__ import annotations

from random import Random

from yakvrt.eval.tasks.synth_words import CITIES, FIRST_NAMES, LAST_NAMES, NOUNS

OPENINGS = (
    "",
    "",
    "In {month}, ",
    "On {weekday}, ",
    "As in {year}, ",
    "According to {person}, ",
    "For once, ",
    "To the surprise of {person}, ",
    "Shortly before noon, ",
    "Despite the rain, ",
    "So far, ",
    "A day later, ",
)
CLAUSES = (
    "the meeting in {city} began {number} minutes late because the heating had failed",
    "{person} thanked the volunteers and asked for {number} more chairs",
    "the minutes of {year} were signed, and nothing else was decided",
    "rain kept most visitors away, so the hall in {city} stayed half empty",
    "a letter of {person} was read out and put on file under number {number}",
    "the {noun} committee looked at the accounts of {year} once more",
    "the rules of {year} were kept, whatever people in {city} may say",
    "those who wanted a copy had to write to {person}, not to the office",
    "the road to {city} was closed, which few had known",
    "of the {number} questions sent in, most were about parking",
    "it was {person} who proposed to move the archive to {city}",
    "the photographs of the {noun} were lost, but a catalogue of {year} lists them",
    "the train from {city} had {number} passengers and no heating",
    "{person} and {person2} could not agree on the colour of the {noun}",
    "the library of {city} lent out {number} books, nearly all of them about the sea",
    "nobody could say who had paid for the {noun} in the entrance",
    "the choir of {city} sang for {number} listeners and a dog",
    "{person} kept the keys of the {noun} room for years without knowing it",
    "the market moved from {city} to a field outside the town",
    "a storm took the roof of the school, and {number} pupils were taught in the church",
    "{person} wrote a long essay on the {noun}, which {person2} printed at a loss",
    "the bakery of {person} sold {number} loaves, more than ever since {year}",
    "the ferry to {city} ran every {number} minutes, at least on paper",
    "two strangers from {city} asked for the {noun} and left without a word",
    "the council put off the vote on the {noun} until {month}",
    "the bill of {person} came to {number} coins, which {person2} paid",
    "the old map shows {city} on the wrong side of the river",
    "{person} counted {number} swallows above the {noun}",
    "the clock in {city} stood still from {year} on, and trains ran all the same",
    "visitors took the {noun} for a gift of {person}, who had never seen it",
)
MONTHS = ("January", "March", "April", "May", "June", "August", "September", "October", "November")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")


def person(rng: Random) -> str:
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"


def fillers(rng: Random) -> dict[str, str]:
    """Names, places and numbers that no key asks for."""
    return {
        "person": person(rng),
        "person2": person(rng),
        "city": rng.choice(CITIES),
        "year": str(rng.randint(1930, 2023)),
        "noun": rng.choice(NOUNS).lower(),
        "number": str(rng.randint(12, 400)),
        "month": rng.choice(MONTHS),
        "weekday": rng.choice(WEEKDAYS),
    }


def asides(rng: Random, number: int) -> str:
    """That many sentences, as a paragraph."""
    return " ".join(_aside(rng, clause) for clause in rng.sample(CLAUSES, number))


def _aside(rng: Random, clause: str) -> str:
    text = rng.choice(OPENINGS).format(**fillers(rng)) + clause.format(**fillers(rng))
    return f"{text[0].upper()}{text[1:]}."
