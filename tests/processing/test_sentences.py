"""Sentence splitting: hard captions with known answers, and the properties of spans on any text."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastgoal.processing.sentences import Sentence, split_sentences

# Each case is the list of sentences; the caption is the list joined by one space, unless a caption is given first.
JOINED_BY_SPACE = [
    ["A brown dog lies on a red couch.", "A cat sleeps beside it."],
    ["A brown dog lies on a red couch.", "A cat sleeps beside it"],
    ["A brown dog lies on a red couch"],
    ["Daytime."],
    # decimals and other full stops inside a token
    ["The board is 3.5 feet wide and costs $19.95 today.", "It leans on a wall."],
    ["It costs $19. 95 on the label.", "The label is green."],
    ["The site www.example.com is printed on it.", "Below is logo.png in small type."],
    ["Version 2.10.3 is on the screen.", "The screen is cracked."],
    ["The address reads info@Example.Com in white.", "Nothing else is legible."],
    # abbreviations inside a sentence
    ["Dr. Smith stands next to Mrs. Jones and Mr. Lee.", "They all smile."],
    ["The tower is approx. 30 m tall and ca. 100 years old.", "It is made of stone."],
    ["Some fruit, e.g. apples and pears, i.e. nothing sweet, is on the table.", "A knife lies there."],
    ["Shirt No. 5 is ahead of No. 12.", "Fig. 3 on the wall shows it."],
    ["The clock shows 9 a.m. in the left window.", "The right one shows 5 p.m. sharp."],
    ["A U.S. Navy ship is docked in Washington D.C. harbour.", "The sea is calm."],
    ["A portrait of J. K. Rowling hangs above George W. Bush.", "Both are framed."],
    ["St. Patrick's church stands on Mt. Vernon.", "The sky is grey."],
    ["Capt. Jones vs. Sgt. Miller vs. A Team is written on the poster.", "It is torn."],
    ["The plank is 6 in. wide and 4 ft. long, 10 lbs. heavy and 5 cm. thick.", "It is wet."],
    ["A 5 V. supply, a 12V. one and a 60 W. bulb lie at 120 W. Main Street.", "They are new."],
    ["The sign says open from 9 a.m. Monday to 5 p.m. Friday.", "The door is shut."],
    ["It was taken at 5 p.m. on Monday at 10 C. in the shade.", "The sun is low."],
    ["A book by J. R. R. Tolkien, one by J.K. Rowling and one by A. A. Milne lie here.", "All are old."],
    ["A. A. Milne sits by W. A. Mozart.", "I. A. Richards stands."],
    ["A trash can about 1. 5 feet tall (approx. The size of a dog) stands at www.Example.com here.", "It is green."],
    # abbreviations and letters at the end of a sentence
    ["The flag is that of the U.S. and the U.K.", "The pole is white."],
    ["It was taken at 5 p.m.", "The light is low."],
    ["It opens at 9 a.m.", "A man waits."],
    ["It closes at 5 P.M.", "Birds fly over it."],
    ["The supply gives 5 V.", "Cables hang from it."],
    ["The oven is at 180 C.", "The bread is at 25°C.", "Trees are behind it."],
    ["A wall is full of street art.", "Posters hang beside it."],
    ["The water is blue, the arrow says no.", "Fish swim below me.", '"Boats" pass.'],
    ["The steps lead to the U.S.", "Behind it is a flag."],
    ["It is in Los Angeles, CA.", "The house was built in 1990.", "3 cars are in front of it."],
    ["There are trees, bushes, etc.", "Birds fly over them."],
    ["The sign reads Main St.", "The pole under it is bent."],
    ["The answer on the card is no.", "The card is yellow."],
    ["The shadow falls on the letter F.", "A green rail is seen in front."],
    ["A smiley face is at the top of the U.", "White walls are behind it."],
    ["The dog is about 2 ft.", "Grass grows around it."],
    ["The cat is on the letter U.", "White walls are near the right side of the F.", "Rails are behind it."],
    ["There are 12.", "The last one is blue."],
    ["She sits in the sun.", "5 boats pass by."],
    # quotations and brackets
    ['The sign says "STOP."', "The road behind it is empty."],
    ['A sign that says "Wait. Look. Go." hangs on the gate.', "It is red."],
    ["“Stop!” she said to the dog.", "The dog sat down."],
    ['The bus is bound for "Main St."', "This bus is white."],
    ["A banner reads \"VANS 'OFF THE WALL.'\"", "A few people stand by it."],
    ['The sign reads "STOP.', "The road is empty.", 'A sign "GO" hangs.', "A dog sits."],
    ["It says “GO.", "The road is empty.", "A “STOP” sign hangs."],
    ['A 6" ruler lies here.', 'Some 12" pans are there.', "A cup stands."],
    ['The pan is 6".', 'A ruler is 12".', "A cup stands."],
    ['The sign says "LOOK. A DOG! " in white.', "It hangs."],
    ['The ad reads "Totally transparent charges.”', "In the background is a house."],
    ['The words "YOU / ROCK"! are painted on a stone.', "The stone is purple."],
    ['A poster reads "VOTE! ".', "Above it hangs a lamp."],
    ['A 6" ruler lies next to a 12" pan.', "Both are clean."],
    ["The banner reads 'Come in. A dog is here.' in blue.", "It flaps."],
    ["The dog (it is a poodle. A white one.) is asleep.", "The mat is green."],
    ["The boy wears a hat.", "(The hat is too big.)", "He laughs."],
    ["**Dogs.**", "5 dogs stand.", "It (a [small. Old] one) is red.", "«It. Sits» here."],
    ["'Tis a dog's life.", "It isn't the cat's."],
    # question and exclamation marks, ellipses
    ["What a view!!", "Is that a bear?!", "No, it is a dog."],
    ["The path leads on... and on into the woods.", "It is dark there."],
    ["The path leads on...", "Then it ends."],
    ["The path leads on…", "Then it ends."],
    ["A Yahoo! logo is on the cup.", "The cup is full."],
    # lists in one line
    ["1. A red car is parked.", "2. A blue car drives by.", "3. A bus stops."],
    ["1) A red car.", "2) A blue car."],
    ["(2) a bus.", "It is red."],
    ["On it: 1. A cup.", "2. A pen."],
    ["The board lists 1. Apples", "2. Pears", "3. Plums.", "The board is old."],
    ["The board lists 1. Eggs.", "2. The milk.", "3. Bread."],
    ["The desk has: 1. A cup;", "2. A pen;", "3. A book."],
    ["there are 1. a cup, 2. a pen, and 3. a book on the desk."],
    ["On the desk: 1. A cup, 2. A pen and 3. A book.", "The desk is old."],
    ["On the desk: 1. a red hat", "2. a blue coat"],
    ["The first is 1. A cup, 2. A pen and 3. A book."],
    ["The one on the left is 1.", "The other one has 2.", "Birds fly."],
    ["He wears number 1.", "Fans cheer for number 2.", "Cars pass."],
    ['The note reads "1. No running 2. No shouting" in red.', "It is torn."],
    ["The image shows: 1. A dog.", "2. A cat.", "3. A bird."],
    ["On the desk: 1) red hat", "2) blue coat", "3) green shoes."],
    ["The first shirt shows 1.", "The second shows 2.", "Both are red."],
    ["The gap is approx. 5.5in. wide.", "The wall is 20cm. high.", "It is old."],
    ["A. The left panel is red.", "B. The right panel is blue."],
    # no capitals, or spaces before the full stop
    ["the rope is 5 cm.", "the dog pulls it.", "it is about 2 m. long."],
    ["a dog sits on the mat.", "a cat is behind it.", "approx. five birds fly."],
    ["is it a dog?", "yes it is!", "it runs."],
    ["The dog sits on the mat .", "The cat is behind it ."],
    ["The dog sits.", "the cat is behind it."],
    ["The car is a 1995 model.", "#7 is on its door."],
    ["一只狗。"],
]
WITH_CAPTION = [
    ("the wall.The dog sits", ["the wall.", "The dog sits"]),
    ("The wall is red.the dog sits.A cat", ["The wall is red.", "the dog sits.", "A cat"]),
    ("It is 3.5 m.The dog is 2 m.It sits!Why?No", ["It is 3.5 m.", "The dog is 2 m.", "It sits!", "Why?", "No"]),
    ("A cup (white).The spoon", ["A cup (white).", "The spoon"]),
    ('He is on the wall."76" is on the door.', ["He is on the wall.", '"76" is on the door.']),
    ('It says "Go."The dog went.', ['It says "Go."', "The dog went."]),
    ('He is on the wall."GO NOW is on the door. A cat', ["He is on the wall.", '"GO NOW is on the door.', "A cat"]),
    ("A (white!).The spoon", ["A (white!).", "The spoon"]),
    ("Mr.Smith and U.S.A teams met e.g.Anna.", ["Mr.Smith and U.S.A teams met e.g.Anna."]),
    ("一只狗。一只猫！两只鸟", ["一只狗。", "一只猫！", "两只鸟"]),
    # line breaks
    ("First line\nSecond line", ["First line", "Second line"]),
    ("A dog sits\non the mat. It\nis brown.", ["A dog sits\non the mat.", "It\nis brown."]),
    ("A red car\na blue car\r\na bus", ["A red car", "a blue car", "a bus"]),
    ("A title\n\nof two paragraphs", ["A title", "of two paragraphs"]),
    ("Objects:\n- a red car.\n- a blue car\n* a bus", ["Objects:", "- a red car.", "- a blue car", "* a bus"]),
    ("1. a car\n2. a bus. It is red.\n10. a van", ["1. a car", "2. a bus.", "It is red.", "10. a van"]),
    ("• a car • a bus • a van", ["• a car", "• a bus", "• a van"]),
    ("• A car. It is red.\n• A bus. It is big.", ["• A car.", "It is red.", "• A bus.", "It is big."]),
    (f"The {'long ' * 12}line\nends. The end", [f"The {'long ' * 12}line\nends.", "The end"]),
    (f"A {'long ' * 12}line:\nred", [f"A {'long ' * 12}line:", "red"]),
    (f"A {'long ' * 12}line\nRed", [f"A {'long ' * 12}line", "Red"]),
    ("A dog,\na cat\na bird", ["A dog,\na cat", "a bird"]),
    ("A red • blue sign", ["A red • blue sign"]),
    ("1.\nA car stands.\n2.\nA bus waits.", ["1.\nA car stands.", "2.\nA bus waits."]),
    ("  A dog.  A cat.\t\n ", ["A dog.", "A cat."]),
    ("A dog.\u00a0A cat.\u2028A bird", ["A dog.", "A cat.", "A bird"]),
    ("A dog 🐕. A cat 😀! É è.", ["A dog 🐕.", "A cat 😀!", "É è."]),
    ("A dog. . A cat. ...", ["A dog. .", "A cat. ..."]),
    ("...", ["..."]),
    ("- .", ["- ."]),
    (".A dog.", [".A dog."]),
]


@pytest.mark.parametrize("expected", JOINED_BY_SPACE, ids=lambda expected: expected[0][:40])
def test_hard_captions(expected: list[str]) -> None:
    assert [sentence.text for sentence in split_sentences(" ".join(expected))] == expected


@pytest.mark.parametrize(("caption", "expected"), WITH_CAPTION, ids=[repr(c[:40]) for c, _ in WITH_CAPTION])
def test_hard_captions_with_their_own_spacing(caption: str, expected: list[str]) -> None:
    assert [sentence.text for sentence in split_sentences(caption)] == expected


def test_spans_of_a_known_caption() -> None:
    assert split_sentences(" A dog.  It sits ") == [Sentence("A dog.", 1, 7), Sentence("It sits", 9, 16)]


@pytest.mark.parametrize("caption", ["", " ", "\n\t \u00a0\u2028\r\n"])
def test_blank_captions_have_no_sentences(caption: str) -> None:
    assert split_sentences(caption) == []


def _check_spans(caption: str) -> None:
    sentences = split_sentences(caption)
    position = 0
    for sentence in sentences:
        assert sentence.start >= position
        assert not caption[position : sentence.start].strip()
        assert caption[sentence.start : sentence.end] == sentence.text == sentence.text.strip() != ""
        position = sentence.end
    assert not caption[position:].strip()


@given(st.text(max_size=200))
@example("\x1f.A\x85b")
@settings(max_examples=200, deadline=None)
def test_every_visible_character_is_in_exactly_one_sentence(caption: str) -> None:
    _check_spans(caption)


MARKS = "aAbT15 .!?…。\n\"'“”()[]-•,:;*#/@_"
WORDS = ["The", "dog", "U.S.", "e.g.", "No.", "1.", "(a)", " 3.5 ", "etc.", "www.x.com", "said", "🐕"]
BREAKS = ["  ", "...", "\r\n", "\n\n", ". ", '." ', "! ", "\u2028"]
PIECES = st.sampled_from([*MARKS, *WORDS, *BREAKS])


@given(st.lists(PIECES, max_size=60).map("".join))
@settings(max_examples=500, deadline=None)
def test_spans_of_text_full_of_marks(caption: str) -> None:
    _check_spans(caption)


SIMPLE = st.lists(
    st.sampled_from(["dog", "couch", "red", "stands", "behind", "window", "green"]), min_size=2, max_size=8
)


@given(st.lists(st.tuples(SIMPLE, st.sampled_from([".", "!", "?"])), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_plain_sentences_come_back(parts: list[tuple[list[str], str]]) -> None:
    expected = [" ".join(["The", *words]) + mark for words, mark in parts]
    assert [s.text for s in split_sentences(" ".join(expected))] == expected
    assert [s.text for s in split_sentences("".join(expected))] == expected


@pytest.mark.parametrize(
    "caption",
    [
        *("a." * 50_000, " " * 100_000 + "a", '"' * 50_000, "(" * 50_000 + ".", "A. " * 30_000, ". " * 50_000),
        *("a dog " * 17_000, '"a. ' * 10_000, '"a" ' * 10_000, "«a. " * 80_000, "‘a. " * 80_000, "“a. " * 80_000),
        "\n1. a" * 20_000,
    ],
)
def test_long_texts_take_little_time(caption: str) -> None:
    start = time.perf_counter()
    _check_spans(caption)
    assert time.perf_counter() - start < 20


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="`caption` must be a str, got list"):
        split_sentences(["A dog."])  # type: ignore[arg-type]


LANGUAGES = {
    "de": [
        "Ein roter Hund steht z. B. auf der Wiese.",
        "Die Katze sitzt seit dem 3. Mai bei Dr. Meier.",
        "„Komm her. Schnell!“ ruft er.",
        "Am Ende der Straße steht ein Haus.",
    ],
    "fr": [
        "Un chien rouge est couché sur l'herbe.",
        "La voiture n° 5 est garée devant la maison.",
        "« Bonjour ! » dit-il.",
        "Élise regarde le ciel.",
    ],
    "ar": ["كلب أحمر يقف على العشب.", "هل القطة تحت الأريكة؟", "طائران يطيران فوق المنزل."],
    "es": ["¿Dónde está el perro?", "El Sr. López camina.", "¡Mira!"],
    "ru": ["Собака стоит на траве.", "Кошка весит 3 кг. и спит.", "Конец."],
    "hi": ["यह एक लाल कुत्ता है।", "बिल्ली सोफे पर बैठी है।"],
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_other_languages(language):
    sentences = LANGUAGES[language]
    caption = " ".join(sentences)
    found = split_sentences(caption, language)
    assert [sentence.text for sentence in found] == sentences
    assert all(caption[sentence.start : sentence.end] == sentence.text for sentence in found)


def test_languages_without_spaces():
    sentences = ["红色的狗在草地上。", "猫坐在沙发下！", "旁边有两只鸟？", "结束。"]
    found = split_sentences("".join(sentences), "zh")
    assert [sentence.text for sentence in found] == sentences
    assert [sentence.start for sentence in found] == [0, 9, 16, 23]
    japanese = ["赤い犬が立っている。", "猫は座っている。"]
    assert [sentence.text for sentence in split_sentences("".join(japanese), "ja")] == japanese


def test_english_is_the_default_and_knows_no_german_abbreviation():
    caption = "Ein Hund steht usw. Danach kommt z. B. Anna."
    assert len(split_sentences(caption, "de")) < len(split_sentences(caption)) == len(split_sentences(caption, "en-GB"))


@pytest.mark.parametrize("language", ["", "german", "DE", "d", None, 5, "de_AT", "de-"])
def test_wrong_language_codes(language):
    with pytest.raises(ValueError, match=r"`language`"):
        split_sentences("A dog.", language)


@given(text=st.text(max_size=80), language=st.sampled_from([*LANGUAGES, "zh", "ja"]))
def test_spans_hold_in_any_language(text, language):
    found = split_sentences(text, language)
    assert "".join("".join(sentence.text.split()) for sentence in found) == "".join(text.split())
    assert all(text[sentence.start : sentence.end] == sentence.text for sentence in found)
