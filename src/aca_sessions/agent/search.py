"""Search by words: BM25 over names and descriptions, in pure Python. No model, no network."""

import heapq
import math
import re
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence

Embed = Callable[[Sequence[str]], Awaitable[Sequence[Sequence[float]]]]
_SATURATION, _LENGTH_WEIGHT = 1.2, 0.75
_NAME_WEIGHT = 3
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")
_ENDINGS = ("ations", "ation", "ings", "ing", "ers", "er", "ies", "ied", "ed", "es", "s", "e", "y")
_SHORTEST_STEM = 3
_EMPTY = frozenset(
    "a an and any are as at be by for from get how i in into is it its of on or that the this to use want what with you".split()  # noqa: SIM905
)


class Index:
    """Texts by name, found by the words in them; a word in the name counts more."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        """Takes each text apart, once."""
        self._postings: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
        self._names = list(texts)
        counts = [Counter(words(text) + words(name) * _NAME_WEIGHT) for name, text in texts.items()]
        lengths = [counted.total() for counted in counts]
        average = sum(lengths) / len(lengths) if lengths else 1.0
        for place, counted in enumerate(counts):
            room = _SATURATION * (1 - _LENGTH_WEIGHT + _LENGTH_WEIGHT * lengths[place] / (average or 1.0))
            for word, count in counted.items():
                self._postings[word].append((place, count * (_SATURATION + 1) / (count + room)))

    def best(self, query: str, limit: int) -> list[str]:
        """The names of the texts that fit, the best first."""
        scores: defaultdict[int, float] = defaultdict(float)
        for word in set(words(query)):
            found = self._postings.get(word, [])
            rarity = math.log(1 + (len(self._names) - len(found) + 0.5) / (len(found) + 0.5))
            for place, weight in found:
                scores[place] += rarity * weight
        ranked = heapq.nsmallest(max(limit, 0), scores, key=lambda place: (-scores[place], self._names[place]))
        return [self._names[place] for place in ranked]


class MeaningIndex:
    """The same by meaning: texts and queries become vectors by a function that the caller gives."""

    def __init__(self, embed: Embed) -> None:
        """Knows no text yet; what a text became is kept."""
        self._embed = embed
        self._known: dict[str, Sequence[float]] = {}

    async def best(self, texts: Mapping[str, str], query: str, limit: int) -> list[str]:
        """The names of the texts that are nearest to the query, the best first."""
        wanted = [f"{name}: {text}" for name, text in texts.items()]
        new = [text for text in wanted if text not in self._known]
        if new:
            self._known.update(zip(new, await self._embed(new), strict=True))
        (asked,) = await self._embed([query])
        near = {name: _cosine(asked, self._known[text]) for name, text in zip(texts, wanted, strict=True)}
        return sorted(near, key=lambda name: -near[name])[: max(limit, 0)]


def words(text: str) -> list[str]:
    """The words of a text, cut at case and underscores, without endings and without those that say nothing."""
    found = [word.lower() for word in _WORD.findall(text)]
    return [_stem(word) for word in found if word not in _EMPTY]


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _SHORTEST_STEM:
            return word[: -len(ending)]
    return word


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    length = math.sqrt(sum(x * x for x in one)) * math.sqrt(sum(x * x for x in other))
    return sum(x * y for x, y in zip(one, other, strict=True)) / length if length else 0.0
