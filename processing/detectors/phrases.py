"""The noun phrases of an English caption, as queries for an open-vocabulary detector.

This is a rule without a tagger: it splits a caption at punctuation, numbers and words that are not part of a noun
phrase (articles, prepositions, pronouns, verbs that captions use, adverbs), and takes the parts as phrases. It rather
gives too many phrases: a query for something that is not in the image costs little, but an object that is not asked for
is lost. Captions in other languages give useless phrases or none.
"""

import re

MAX_PHRASES = 16
# A longer run of words contains a verb that the rule does not know, or is not English.
MAX_WORDS = 5


def noun_phrases(caption: str, max_phrases: int = MAX_PHRASES) -> list[str]:
    """Return the first noun phrases of a caption, without repetitions, in order.

    They are in lower case and have 1 to 5 words without articles and numbers: "brown dog".
    """
    phrases: dict[str, None] = {}
    for run in _runs(_TOKEN.findall(caption.lower().replace("’", "'"))):
        # "The wall is white", "a man dressed in": not part of a phrase.
        while run and (run[-1] in ADJECTIVES or _is_participle(run[-1])):
            run.pop()
        if 1 <= len(run) <= MAX_WORDS and run[-1] not in PLACES:
            phrases[" ".join(run)] = None
    return list(phrases)[:max_phrases]


def _runs(tokens: list[str]) -> list[list[str]]:
    """Return runs of words, split at words that are not part of a noun phrase."""
    runs: list[list[str]] = [[]]
    previous = ""
    for token in tokens:
        run = runs[-1]
        # "A smiling woman" and "a large tiled roof", but "a man riding waves" and "is riding waves".
        describes = all(word in ADJECTIVES or _is_participle(word) for word in run) if run else previous in DETERMINERS
        describes = describes or "-" in token
        if _ends_phrase(token) or (_is_participle(token) and not describes):
            runs.append([])
        else:
            run.append(token)
        previous = token
    return runs


def _ends_phrase(token: str) -> bool:
    if not _WORD.fullmatch(token) or token in DETERMINERS or token in OTHER_WORDS or _CONTRACTION.search(token):
        return True
    return token.endswith("ly") and token not in NOT_ADVERBS


def _is_participle(word: str) -> bool:
    return word in PARTICIPLES or (word.endswith(("ing", "ed")) and word not in NOT_PARTICIPLES)


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


_TOKEN = re.compile(r"\w+(?:['-]\w+)*|[^\w\s]")
_WORD = re.compile(r"[^\W\d_]{2,}(?:['-][^\W\d_]+)*|[^\W\d_](?:['-][^\W\d_]+)+")
_CONTRACTION = re.compile(r"n't$|'(?:re|ve|ll|d|m)$|^(?:it|that|this|there|here|he|she|who|what|where|let|one)'s$")

DETERMINERS = _words(
    "a an the this that these those some any each every all both no another other several many few more most much",
    "various numerous different multiple enough either neither half certain such same own",
    "my your his her its our their whose one two three four five six seven eight nine ten eleven twelve dozen dozens",
    "hundred hundreds first second third single",
)
ADJECTIVES = _words(
    "red green blue yellow orange purple pink brown black white grey gray beige tan golden silver dark bright pale",
    "colorful colourful big large huge small little tiny tall short long wide narrow thick thin low high deep shallow",
    "old new young ancient modern vintage rustic antique traditional rusty dirty clean wet dry empty full open round",
    "square rectangular oval circular curved straight flat steep smooth rough soft hard heavy bare fluffy furry leafy",
    "wooden metallic plastic woolen ornate decorative simple plain elegant beautiful pretty lovely nice cute cozy",
    "cosy happy sunny cloudy snowy rainy foggy misty rocky sandy grassy muddy dusty dense lush busy quiet calm clear",
    "hot cold warm cool outdoor indoor urban rural main upper lower central nearby distant visible similar matching",
    "adjacent clustered additional entire whole overall available casual formal sleek shiny glossy transparent",
)
# Positions in an image, quantities, and other words that are not objects.
PLACES = _words(
    "image images picture pictures photo photos photograph photographs photography scene scenes view views shot",
    "background foreground middle center centre left right side sides top bottom front back corner corners edge edges",
    "end ends distance direction position area areas part parts portion section sections rest surroundings setting",
    "environment atmosphere ambiance mood appearance focus perspective angle contrast color colour colors colours",
    "group groups pair pairs couple row rows number lot lots set sets bunch collection variety series types type kind",
    "kinds piece pieces way time day something someone nothing everything anything everyone others it",
)
# Prepositions, conjunctions, pronouns, and verbs that are frequent in captions and rarely nouns.
OTHER_WORDS = _words(
    "of in on at by for with without from to into onto upon over under above below beneath underneath beside besides",
    "between among amongst amid around round about across along alongside through throughout toward towards against",
    "behind before after during near next inside outside within off out up down away past per via than as like unlike",
    "except despite atop plus and or but nor so yet if while when where whereas because although though since until",
    "which who whom what how why there here not only also just very too quite rather almost even still then now again",
    "ahead apart aside together perhaps maybe else both however i you he she it we they me him us them itself himself",
    "herself themselves",
    "is are was were be been being am has have had having do does did can could will would may might must shall should",
    "stands stand stood sits sit sat lies lie lay hangs hang leans lean shows show showcases showcase features depicts",
    "depict captures capture contains contain includes include wears wear wore holds hold carries carry rides ride",
    "looks look looked seems seem appears appear rises rise stretches stretch extends extend surrounds surround adorn",
    "adorns fills fill line walks walk runs run plays play eats eat flies fly grows grow makes make gives give adds",
    "add creates create casts reflects reflect suggests suggest indicates indicate says say reads waits wait sleeps",
    "jumps swims leads lead overlooks overlook dominates dominate comes come goes go gets get takes take keeps keep",
    "uses use helps provides provide consists consist remains remain rests serves serve enjoys enjoy talks talk",
    "smiles see sees observe observes notice notices find finds indoors outdoors",
)
# Past participles that do not end in "ed".
PARTICIPLES = _words("lit worn seen made held shown taken built hung drawn written strewn torn bent woven grown thrown")
NOT_PARTICIPLES = _words(
    "red bed beds shed sled seed weed reed feed tweed steed breed speed moped flowerbed seaweed bobsled seabed",
    "building ceiling railing clothing painting awning wing ring king string thing swing lighting siding flooring",
    "bedding evening morning spring sling earring wedding crossing landing parking dining living seating covering",
    "drawing dressing frosting icing topping stuffing wiring piping fencing paving molding moulding pudding dumpling",
    "duckling gosling sapling sibling shopping swimming sewing washing vending fishing sailing writing carving tubing",
    "netting matting carpeting tiling roofing scaffolding nothing something everything anything",
)
NOT_ADVERBS = _words("family butterfly dragonfly fly lily jelly belly curly woolly silly ugly hilly friendly")
