"""Return a PowerPoint file with a chart.

python-pptx is part of `pip install 'aca-sessions[data]'`. Draw the chart into a
file, and put it on a slide in the same session. To start from your company's
template, upload it first and open it with `Presentation("template.pptx")`.
"""

from pathlib import Path

from aca_sessions import InteractiveSession

CODE = """
import matplotlib.pyplot as plt
from pptx import Presentation
from pptx.util import Inches

plt.plot([120, 135, 180], marker="o")
plt.savefig("chart.png", dpi=150)
plt.close()

deck = Presentation()
slide = deck.slides.add_slide(deck.slide_layouts[5])
slide.shapes.title.text = "Lamps sold"
slide.shapes.add_picture("chart.png", Inches(1), Inches(1.8), width=Inches(8))
deck.save("report.pptx")
"""

with InteractiveSession() as session:
    result = session.run(CODE).raise_for_error()
    print([file.path for file in result.files])
    Path("report.pptx").write_bytes(session.download_file("report.pptx"))

print(Path("report.pptx").read_bytes()[:2])

# prints:
# ['chart.png', 'report.pptx']
# b'PK'
