"""Test the search for tools and skills with a small labelled set: by words, and by meaning if the caller provides vectors."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from aca_sessions import AgentSession, SessionPool, tool
from aca_sessions.agent.library.search import MeaningIndex, WordIndex, words
from aca_sessions.errors import ConfigurationError

LABELLED = {
    "fetch_json": ("Fetch and parse JSON from a URL", ["download a web resource as json", "parse JSON of an address", "GET an API"]),
    "plot_series": ("Draw a line chart of a time series", ["plotting a chart", "draw series over time", "graph the trend"]),
    "send_invoice": ("Email an invoice to a customer", ["mail the customer an invoice", "sending invoices", "bill a client"]),
    "count_words": ("Count how often each word occurs in a text", ["word frequency count", "counting words", "words in a document"]),
    "resizeImage": ("Scale a picture to a width and height", ["resize images", "scale a picture", "make an image smaller"]),
    "read_excel": ("Load a sheet of an Excel workbook as a table", ["open an xlsx sheet", "loading Excel tables", "read a workbook"]),
    "merge_tables": ("Join two tables on a common column", ["merging tables", "join data on a column", "combine two tables"]),
    "detect_outliers": ("Find values of a column that are far from the others", ["outlier detection", "values far from others"]),
    "translate_text": ("Translate a text into another language", ["translation into German", "text in another language"]),
    "summarise_report": ("Shorten a long report to its main points", ["summary of a report", "main points of a long text"]),
    "convert_currency": ("Convert an amount between currencies at the rate of a day", ["currency conversion", "euro to dollar rate"]),
    "parse_logs": ("Group the lines of a log file by level and count errors", ["errors in log files", "parsing a log"]),
    "geocode": ("Coordinates of an address", ["latitude and longitude of an address", "coordinates for a street address"]),
    "weather_forecast": ("The weather of the next days in a city", ["will it rain in the city", "forecast the weather"]),
    "create_calendar_event": ("Add a meeting to the calendar", ["schedule a meeting", "new calendar event"]),
    "train_classifier": ("Train a classifier on labelled rows and report its accuracy", ["training a model on labels", "classify rows"]),
    "extract_pdf_text": ("The text of the pages of a PDF", ["text from a pdf", "extracting pages of PDFs"]),
    "zip_files": ("Compress files into one archive", ["compressing files", "make a zip archive"]),
    "query_database": ("Run a read-only SQL query against the sales database", ["sql query", "read sales from the database"]),
    "hash_password": ("Hash a password with a salt", ["password hashing", "salted hash"]),
}
QUERIES = [(name, query) for name, (_, queries) in LABELLED.items() for query in queries]


def recall(at: int) -> float:
    index = WordIndex({name: text for name, (text, _) in LABELLED.items()})
    return sum(name in index.best(query, at) for name, query in QUERIES) / len(QUERIES)


@pytest.mark.parametrize(("at", "found"), [(1, 46), (3, 47)])
def test_words_and_related_words_find_the_tool_that_was_meant(at: int, found: int) -> None:
    assert recall(at) >= found / 47


@pytest.mark.parametrize("query", ["http get", "download a web page"])
def test_fetching_from_a_url_is_found_by_words_that_it_does_not_share(query: str) -> None:
    assert WordIndex({"fetch_json": "Fetch and parse JSON from a URL"}).best(query, 5) == ["fetch_json"]
    assert WordIndex({name: text for name, (text, _) in LABELLED.items()}).best(query, 5)[0] == "fetch_json"


def test_an_exact_word_counts_more_than_related_words() -> None:
    assert WordIndex({"a": "Load a picture", "b": "Load an image"}).best("image", 5) == ["b", "a"]


def test_names_in_capitals_have_a_plural() -> None:
    assert words("PDFs and URLs of HTTPServers") == words("pdf url http server")


@pytest.mark.needs("semantic_kernel")
async def test_tools_and_skills_are_found_by_meaning(pool: SessionPool) -> None:
    from semantic_kernel.connectors.ai.embedding_generator_base import EmbeddingGeneratorBase

    from aca_sessions.integrations.semantic_kernel import embed_by

    class Letters(EmbeddingGeneratorBase):
        """A service whose vectors say which animals and vehicles a text names."""

        async def generate_embeddings(self, texts: list[str], settings: Any = None, **_: Any) -> np.ndarray:
            return np.array([[float("cat" in text or "kitten" in text), float("car" in text)] for text in texts])

    tools = [tool(name=name)(lambda: None) for name in ("brush_cat", "wash_car")]
    async with AgentSession(pool, tools=tools, embed=embed_by(Letters(ai_model_id="letters"))) as agent:
        await agent.add_skill("feed_cat", "def run(): pass", "Feeds")
        await agent.add_skill("drive_car", "def run(): pass", "Drives")
        inside = "[one['name'] for one in (*tools.search('kitten', limit=1), *skills.search('kitten', limit=1))]"
        assert (await agent.run(inside)).text == "['brush_cat', 'feed_cat']"
        assert [one["name"] for one in await agent.search_tools("my car")] == ["wash_car", "brush_cat"]
        assert [one["name"] for one in await agent.search_skills("my car")] == ["drive_car", "feed_cat"]


async def test_a_synchronous_function_may_make_the_vectors(pool: SessionPool) -> None:
    threads = set[int]()

    def embed(texts: Sequence[str]) -> list[list[float]]:
        threads.add(threading.get_ident())
        return [[float("cat" in text), float("car" in text)] for text in texts]

    async with AgentSession(pool, embed=embed) as agent:
        await agent.add_skill("feed_cat", "def run(): pass", "Feeds")
        await agent.add_skill("drive_car", "def run(): pass", "Drives")
        assert [one["name"] for one in await agent.search_skills("my car")] == ["drive_car", "feed_cat"]
    assert threading.get_ident() not in threads


async def test_each_text_is_embedded_once_and_in_batches() -> None:
    asked = list[int]()

    async def embed(texts: Sequence[str]) -> list[list[float]]:
        asked.append(len(texts))
        return [[float(len(text)), 1.0] for text in texts]

    index, texts = MeaningIndex(embed), {f"t{number}": "x" * number for number in range(600)}
    await index.best(texts, "query", 3)
    assert len(await index.best({**texts, "new": "y"}, "query", 3)) == 3
    assert asked == [256, 256, 88, 1, 1, 1]


@pytest.mark.parametrize("made", [[], [[1.0]], [[1.0], [1.0, 2.0]], [1.0, 2.0], [["a"], ["b"]]])
async def test_invalid_vectors_are_refused(made: Any) -> None:
    async def embed(texts: Sequence[str]) -> Any:
        return made

    with pytest.raises(ConfigurationError, match="one vector for each of 2 texts"):
        await MeaningIndex(embed).best({"one": "text", "other": "text"}, "query", 1)
