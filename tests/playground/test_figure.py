"""The one test of the playground that `make test` runs. test_page.py has the others."""

import pytest

from .conftest import Playground

pytestmark = pytest.mark.slow
PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.title('people')\nplt.show()"


@pytest.mark.long
def test_a_cell_that_plots_shows_its_figure(playground: Playground) -> None:
    playground.run(PLOT)
    source, width, described = playground.page.wait(
        "(() => { const one = document.querySelector('.cell img'); return one?.naturalWidth && [one.src, one.naturalWidth, one.alt]; })()"
    )
    assert source.startswith("data:image/png;base64,")
    assert (width > 300, described) == (True, "Figure people")
    assert playground.state() == "kept"
