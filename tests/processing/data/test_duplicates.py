"""Duplicate captions against a comparison of all pairs."""

import random

from fastgoal.processing.data.duplicates import CaptionDuplicates, jaccard, word_runs


def test_near_duplicates_are_those_of_all_pairs():
    draw = random.Random(0)
    captions = []
    for number in range(300):
        words = draw.choices([f"w{n}" for n in range(60)], k=40)
        if number % 3 and captions:
            words = draw.choice(captions).split()
            for _ in range(draw.choice((0, 1, 2, 4, 9))):
                words[draw.randrange(len(words))] = f"x{draw.randrange(9)}"
        captions.append(" ".join(words))
    found = CaptionDuplicates(threshold=0.7)
    for start in range(0, len(captions), 64):
        found.add(captions[start : start + 64])
    near = found.near(lambda asked: [captions[number] for number in asked])

    # Every pair, and what hangs together by them.
    runs = [word_runs(caption) for caption in captions]
    group = list(range(len(captions)))
    for one in range(len(captions)):
        for other in range(one):
            if jaccard(runs[one], runs[other]) >= 0.7 and group[one] != group[other]:
                group = [group[other] if value == group[one] else value for value in group]
    expected = {}
    for number, value in enumerate(group):
        expected.setdefault(value, []).append(number)
    several = [members for members in expected.values() if len({captions[number] for number in members}) > 1]
    assert sorted(entry.rows for entry in near) == sorted(several)
    assert len(several) > 20
    for entry in near:
        assert entry.similarity == jaccard(*(runs[number] for number in entry.pair)) >= 0.7
    same = {}
    for number, caption in enumerate(captions):
        same.setdefault(caption, []).append(number)
    assert sorted(found.equal()) == sorted(members for members in same.values() if len(members) > 1)


def test_short_and_empty_captions_are_compared_too():
    found = CaptionDuplicates()
    captions = ["Dog", "dog!", "", "a cat", "A  cat.", "Ｄｏｇ", "", "a cat and"]
    found.add(captions)
    assert sorted(found.equal()) == [[0, 1, 5], [2, 6], [3, 4]]
    assert found.near(lambda asked: [captions[number] for number in asked]) == []
