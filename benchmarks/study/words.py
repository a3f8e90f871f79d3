"""How the scenes of the study are told: sentences of the long captions, each split in wordings of its own."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from fastgoal.quickstart.drawing import DETAIL_WORDS, NUMBER_WORDS, Thing, article, enumerate_phrases

MAX_SENTENCES, MAX_WORDS = 15, 190

# What sentences are built of. `train` is also what `base` scenes have, whose long captions nobody reads.
SUBJECTS = {
    "train": ("There {is} {x}", "One can find {x}", "We see {x}", "The picture shows {x}"),
    "validation": ("Here {is} {x}", "It has {x}"),
    "test": ("You can see {x}", "Look at {x}"),
}
FOLLOW_UPS = {
    "train": ("The {x} {is} {d}.", "Here the {x} {is} {d}."),
    "validation": ("We see the {x} {is} {d}.",),
    "test": ("You can see the {x} {is} {d}.", "Look, the {x} {is} {d}."),
}
RELATIONS = {
    "train": ("The {a} {is} {r} the {b}.", "We see the {a} {r} the {b}."),
    "validation": ("Here the {a} {is} {r} the {b}.",),
    "test": ("Look, the {a} {is} {r} the {b}.", "You can see the {a} {r} the {b}."),
}
WHOLES = {
    "train": ("The picture shows {n} things on {b} background.", "There are {n} things in front of {b} wall."),
    "validation": ("Here are {n} things on {b} background.",),
    "test": ("You can see {n} things in front of {b} wall.", "Look at {n} things on {b} background."),
}
SURROUNDINGS = {
    "plain": ("Nothing is behind the things.", "Behind the things is nothing."),
    "ruled": ("Lines are behind the things.", "Behind the things are lines."),
    "dotted": ("Small points are behind the things.", "Behind the things are small points."),
    "floored": ("The things are above a floor.", "Below the things is a floor."),
}
LIGHT_WORDS = {
    "bright": ("The light is bright.", "It is a bright picture."),
    "dim": ("The light is dim.", "It is a dim picture."),
}


@dataclass(frozen=True)
class Plan:
    """What a scene shows, before it is drawn and told; attributes as those of the scene.

    Attributes:
        size: Width and height in pixels.
        seed: Of what is drawn at random.
        words: How many words long captions have for each detail, 1 to 3.
        relations: How many relations to other things follow the sentences about each thing. With 0, up to two
            relations follow all of these sentences, and captions are shortened.
    """

    size: tuple[int, int]
    background: str
    texture: str
    light: str
    things: tuple[Thing, ...]
    seed: str
    words: int
    relations: int = 0
    twin_of: int | None = None


def describe(plan: Plan, rng: random.Random, wording: str) -> tuple[list[str], list[tuple[int, ...]]]:
    """Sentences of the caption in their order, and the things each one speaks of."""
    things = plan.things
    paper = f"{article(plan.background)} {plan.background}"
    whole = [(rng.choice(WHOLES[wording]).format(n=NUMBER_WORDS[len(things)], b=paper), ())]
    if rng.random() < 0.5:
        whole.append((rng.choice(SURROUNDINGS[plan.texture]), ()))
    if rng.random() < 0.5:
        whole.append((rng.choice(LIGHT_WORDS[plan.light]), ()))

    told: list[tuple[str, tuple[int, ...]]] = []
    for index in rng.sample(range(len(things)), len(things)):
        told.extend((sentence, (index,)) for sentence in _about(things[index], rng, plan.words, wording))
        others = [number for number in range(len(things)) if number != index] if plan.relations else []
        for other in rng.sample(others, min(plan.relations, len(others))):
            told.extend(_relate(things, index, other, rng, wording))
    if plan.relations:
        parts = [*whole, *told]
        return [sentence for sentence, _ in parts], [spoken for _, spoken in parts]
    related: list[tuple[str, tuple[int, ...]]] = []
    for _ in range(rng.choice((0, 1, 1, 2))):
        a, b = rng.sample(range(len(things)), 2) if len(things) > 1 else (0, 0)
        related.extend(_relate(things, a, b, rng, wording))
    parts = [*whole, *told, *related] if rng.random() < 0.7 else [*told, *related, *whole]
    # Long captions lose what matters least: relations, then what is said of the last things.
    while len(parts) > MAX_SENTENCES or sum(len(sentence.split()) for sentence, _ in parts) > MAX_WORDS:
        spare = related.pop() if related else told.pop()
        parts.remove(spare)
    return [sentence for sentence, _ in parts], [spoken for _, spoken in parts]


def _relate(
    things: Sequence[Thing], a: int, b: int, rng: random.Random, wording: str
) -> list[tuple[str, tuple[int, ...]]]:
    """The sentence about how two things lie to each other; none for things of the same name."""
    if (things[a].shape, things[a].color) == (things[b].shape, things[b].color):
        return []
    frame = rng.choice(RELATIONS[wording])
    relation = rng.choice(relations(things[a], things[b]))
    return [(frame.format(a=_noun(things[a]), b=_noun(things[b]), r=relation, **_verb(things[a])), (a, b))]


def _about(thing: Thing, rng: random.Random, words: int, wording: str) -> list[str]:
    """One or two sentences that tell every detail of a thing."""
    told = details(thing, rng, words, wording)
    later = told.pop() if len(told) > 1 and rng.random() < 0.4 else None
    subject = rng.choice(SUBJECTS[wording]).format(x=with_article(thing), **_verb(thing))
    sentences = [f"{subject} {enumerate_phrases(told)}."]
    if later is not None:
        sentences.append(rng.choice(FOLLOW_UPS[wording]).format(x=_noun(thing), d=later, **_verb(thing)))
    return sentences


def details(thing: Thing, rng: random.Random, words: int, wording: str) -> list[str]:
    """Phrases for pattern, outline and mark in random order, worded as a split does, or as `any` of them.

    They are told in one of so many `words` of long captions, or with 0 in the plain ones.
    """

    def pick(**choices: Sequence[str]) -> str:
        return rng.choice([phrase for split in choices if wording in (split, "any") for phrase in choices[split]])

    def say(word: str) -> str:
        choices = DETAIL_WORDS.get(word, ())[:words]
        return rng.choice(choices) if len(choices) > 1 else [*choices, word][0]

    found = []
    if thing.second is None:
        found.append(pick(train=("in one flat colour",), validation=("without a pattern",), test=("plain all over",)))
    else:
        start = pick(
            train=("covered by", "decorated with"), validation=("filled with",), test=("painted with", "full of")
        )
        pattern = f"{article(say(thing.second))} {say(thing.second)} half"
        if thing.pattern != "halves":
            pattern = f"{say(thing.second)} {say(thing.pattern)}"
        found.append(f"{start} {pattern}")
    if thing.outline is not None:
        start = pick(train=("edged in", "framed in"), validation=("outlined in",), test=("bordered in", "rimmed in"))
        found.append(f"{start} {say(thing.outline)}")
    if thing.mark is not None:
        start = pick(train=("marked with", "bearing"), validation=("carrying",), test=("stamped with", "holding"))
        color, shape = (say(word) for word in thing.mark)
        found.append(f"{start} {article(color)} {color} {shape}")
    rng.shuffle(found)
    return found


def relations(a: Thing, b: Thing) -> list[str]:
    """What can be said of `a` before `b`."""
    (ax, ay, ar), (bx, by, br) = a.circle, b.circle
    found = []
    if abs(ax - bx) >= abs(ay - by):
        found.append("left of" if ax < bx else "right of")
    else:
        found.append("above" if ay < by else "below")
    if max(ar, br) > 1.25 * min(ar, br) and a.count == b.count:
        found.append("larger than" if ar > br else "smaller than")
    return found


def _noun(thing: Thing) -> str:
    plural = "es" if thing.shape.endswith("s") else "s"
    return f"{thing.color} {thing.shape}" + (plural if thing.count > 1 else "")


def with_article(thing: Thing) -> str:
    noun = _noun(thing)
    return f"{NUMBER_WORDS[thing.count]} {noun}" if thing.count > 1 else f"{article(noun)} {noun}"


def _verb(thing: Thing) -> dict[str, str]:
    return {"is": "is" if thing.count == 1 else "are"}
