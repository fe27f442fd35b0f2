"""Search texts by words and related words (BM25, without a model or network), or by vectors that a function of the caller returns."""

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING

from ...errors import ConfigurationError, imports_of

if TYPE_CHECKING:
    import bm25s
    import numpy as np


Vectors = Sequence[Sequence[float]]
Embed = Callable[[Sequence[str]], Vectors | Awaitable[Vectors]]
_SATURATION, _LENGTH_WEIGHT = 1.2, 0.75
_NAME_WEIGHT = 3
_AT_ONCE = 256  # texts in one call of `embed`: services accept only some thousands
_RELATED_WEIGHT = 0.4  # of a related word; with 0.5 it outranks the word itself in a query of the tests
_WORD = re.compile(r"[A-Z]{2,}s?(?![a-z])|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")
_ENDINGS = ("ations", "ation", "ings", "ing", "ers", "er", "ies", "ied", "ed", "es", "s", "e", "y")
_SHORTEST_STEM = 3
_EMPTY = frozenset(
    "a an and any are as at be by for from get how i in into is it its of on or that the this to use want what with you".split()  # noqa: SIM905
)

# Each line has related words in names and descriptions of tools and skills. A word can be in several lines.
_RELATED = """
api endpoint request rest
web url http https link site website page webpage html internet online address api request
fetch download load retrieve read request curl pull http
upload send push post put
crawl scrape browse fetch web
json parse decode deserialize
search find lookup query locate seek
save store write keep persist
delete remove erase drop clear
create make add new build generate
update change edit modify set
list show display enumerate
run execute call invoke start launch
stop end kill cancel terminate
convert transform change translate turn
compare diff difference
merge join combine concatenate
split divide separate
sort order rank
filter select choose
count number total sum frequency
average mean statistics median
calculate compute evaluate math arithmetic
plot chart graph draw visualize figure diagram
trend series time history
image picture photo
resize scale shrink enlarge smaller larger crop
table spreadsheet excel csv xlsx dataframe sheet
database sql query postgres sqlite
file document
folder directory path
text string word
summary summarize summarise shorten abstract digest
translate language german french spanish english chinese
email mail message send
chat message slack notify notification
invoice bill payment charge
customer client buyer
money currency price cost amount
weather forecast rain temperature
calendar event meeting appointment schedule
date time day clock
map location place coordinate geocode latitude longitude
compress zip archive tar gzip
encrypt hash cipher
password secret credential login
user account person member
error exception failure bug
log trace
test check verify validate
train fit learn
model classifier predict classify
outlier anomaly
clean tidy normalize
repository repo git github
commit branch git
issue ticket bug
code source program script
package library dependency module
network host port scan ping
ip dns domain host
audio sound speech voice
video movie film
pdf document page
"""


class WordIndex:
    """A search index that compares words. A word in the name of a text counts as much as three words in the text."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        """Store the texts. `texts` maps the name of each text to the text. The first search builds the index."""
        self._names = sorted(texts)  # texts with equal scores are sorted by name
        self._texts = texts

    @cached_property
    def _ranking(self) -> "bm25s.BM25 | None":
        return _build_ranking([words(self._texts[name]) + words(name) * _NAME_WEIGHT for name in self._names])

    def best(self, query: str, limit: int) -> list[str]:
        """Return the names of at most `limit` texts that have a word of the query or a related word, the best match first."""
        wanted = [*dict.fromkeys(words(query))]
        if self._ranking is None or not wanted:
            return []
        with imports_of("agents"):
            import numpy as np

        scores = np.sum([self._scores(self._ranking, word) for word in wanted], axis=0)
        ranked = (-scores).argsort(kind="stable")[: max(limit, 0)]
        return [self._names[place] for place in ranked if scores[place] > 0]

    def _scores(self, ranking: "bm25s.BM25", word: str) -> "np.ndarray":
        """Return the score of each text for one word of a query.

        It is the BM25 score of the word, or 0.4 times that of its related words (such as `fetch` for `download`) if that is higher.
        """
        scores: np.ndarray = ranking.get_scores([word])
        related = _related().get(word)
        return scores if related is None else scores.clip(min=_RELATED_WEIGHT * ranking.get_scores(related))


def _build_ranking(texts: list[list[str]]) -> "bm25s.BM25 | None":
    """Build a BM25 index of texts, each given as a list of words. Return None if no text has a word."""
    if not any(texts):
        return None
    with imports_of("agents"):
        import bm25s  # imports scipy, which takes a third of a second: only a program that searches waits for it

    ranking = bm25s.BM25(k1=_SATURATION, b=_LENGTH_WEIGHT)
    ranking.index(texts, show_progress=False)
    return ranking


class MeaningIndex:
    """A search index that compares meanings. The meaning of a text is a vector that a function of the caller returns."""

    def __init__(self, embed: Embed) -> None:
        """Store `embed`, a function that returns a vector for each text.

        Searches call it only for the query and for texts that the previous search did not include.
        """
        self._embed = embed
        self._vector_of: dict[str, np.ndarray] = {}
        self._texts: list[str] = []
        self._rows: np.ndarray | None = None

    async def best(self, texts: Mapping[str, str], query: str, limit: int) -> list[str]:
        """Return the names of at most `limit` texts, sorted by how near their vectors are to that of the query, the nearest first."""
        wanted = [f"{name}: {text}" for name, text in texts.items()]
        if not wanted:
            return []
        rows = self._rows if wanted == self._texts and self._rows is not None else await self._embed_texts(wanted)
        near = rows @ (await self._compute_vectors([query]))[0]
        names = list(texts)
        return [names[place] for place in (-near).argsort(kind="stable")[: max(limit, 0)]]

    async def _embed_texts(self, wanted: list[str]) -> "np.ndarray":
        with imports_of("agents"):
            import numpy as np

        known = self._vector_of  # a local name, because a concurrent search may replace the attribute
        new = [text for text in dict.fromkeys(wanted) if text not in known]
        for place in range(0, len(new), _AT_ONCE):
            some = new[place : place + _AT_ONCE]
            known = known | dict(zip(some, await self._compute_vectors(some), strict=True))
        self._vector_of = {text: known[text] for text in wanted}
        self._texts, self._rows = wanted, np.stack([known[text] for text in wanted])
        return self._rows

    async def _compute_vectors(self, texts: list[str]) -> "np.ndarray":
        """Call `embed` with texts. Return an array whose rows are their vectors, scaled to length 1.

        So the dot product of two rows is the similarity of their texts. Raise ConfigurationError if `embed` returns anything but one vector
        for each text.
        """
        with imports_of("agents"):
            import numpy as np  # only a program that searches waits for its import

        answered = await _call_embed(self._embed, texts)
        try:
            made = np.asarray(answered, dtype=float)
        except (ValueError, TypeError):
            made = None
        if made is None or made.ndim != 2 or len(made) != len(texts):
            got = "no such numbers" if made is None else f"an array of shape {made.shape}"
            advice = f"return a list of {len(texts)} lists of numbers"
            raise ConfigurationError(f"embed must return one vector for each of {len(texts)} texts, all of one length, got {got}: {advice}")
        lengths = np.linalg.norm(made, axis=1, keepdims=True)
        directions: np.ndarray = np.divide(made, lengths, out=np.zeros_like(made), where=lengths > 0)
        return directions


class Search:
    """Searches texts, by meaning if `embed` is given, otherwise by words. `set_texts` must be called first."""

    def __init__(self, embed: Embed | None = None) -> None:
        self._texts: dict[str, str] = {}
        self._words = WordIndex({})
        self._meaning = MeaningIndex(embed) if embed else None

    def set_texts(self, texts: Mapping[str, str]) -> None:
        """Replace the texts to search. `texts` maps the name of each text to the text."""
        self._texts = dict(texts)
        if self._meaning is None:
            self._words = WordIndex(self._texts)

    async def best(self, query: str, limit: int) -> list[str]:
        """Return the names of at most `limit` texts that match a query, the best match first."""
        if self._meaning is None:
            return self._words.best(query, limit)
        return await self._meaning.best(self._texts, query, limit)


async def _call_embed(embed: Embed, texts: list[str]) -> Vectors:
    """Call `embed` with texts and return the vectors. If it is not async, call it in a thread, so that it does not block the event loop."""
    if inspect.iscoroutinefunction(embed) or inspect.iscoroutinefunction(getattr(embed, "__call__", None)):  # noqa: B004
        answered = embed(texts)
    else:
        answered = await asyncio.to_thread(embed, texts)
    return await answered if inspect.isawaitable(answered) else answered


def words(text: str) -> list[str]:
    """Split a text into words, also inside names such as `readFile` and `read_file`.

    Return the words in lower case and without suffixes: `Loading` becomes `load`. Leave out common words such as "the".
    """
    found = [word.lower() for word in _WORD.findall(text)]
    return [_stem(word) for word in found if word not in _EMPTY]


@cache
def _related() -> dict[str, list[str]]:
    """Return a dict that maps each word to its related words, such as `download` to `fetch`.

    All words are in lower case and without suffixes, as `words` returns them.
    """
    related: dict[str, list[str]] = {}
    for line in _RELATED.strip().splitlines():
        group = [*dict.fromkeys(words(line))]
        for word in group:
            related[word] = [*dict.fromkeys([*related.get(word, []), *(other for other in group if other != word)])]
    return related


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _SHORTEST_STEM:
            return word[: -len(ending)]
    return word
