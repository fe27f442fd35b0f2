"""Export what was done as a notebook.

A session object records its cells with their outputs, uploads, installed packages
and resets. `write_notebook` writes them as .ipynb, which opens in Jupyter and VS
Code, with uploads of up to 4 MB inside. `write_script` writes the cells alone as a
Python script. The latest 1,000 steps are kept, up to 32 MB. The notebook holds data
of the session: share it as you would the data.
"""

import json
from pathlib import Path

from aca_sessions import InteractiveSession

with InteractiveSession() as session:
    session.upload_file("data.csv", "city,people\nOslo,709\nBergen,291\n")
    session.run("import csv\nrows = list(csv.DictReader(open('data.csv')))")
    session.run("sum(int(row['people']) for row in rows)")
    session.write_notebook("analysis.ipynb")
    session.write_script("analysis.py")

for cell in json.loads(Path("analysis.ipynb").read_text())["cells"]:
    print(cell["cell_type"], "|", "".join(cell["source"]).splitlines()[0])
print(Path("analysis.py").read_text().strip())

# prints:
# markdown | `data.csv` was uploaded: 32 bytes. Jupyter does not write it: put it beside this notebook first.
# code | import csv
# code | sum(int(row['people']) for row in rows)
# # %% [markdown]
# # `data.csv` was uploaded: 32 bytes.
#
# # %%
# import csv
# rows = list(csv.DictReader(open('data.csv')))
#
# # %%
# sum(int(row['people']) for row in rows)
