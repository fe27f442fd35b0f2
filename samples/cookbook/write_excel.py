"""Return an Excel file.

Code writes files into its working directory, /mnt/data. `result.files` names those
that a cell created or changed, and `download_file` returns the content of one.
Writing .xlsx needs openpyxl, which `pip install 'aca-sessions[data]'` adds to what
sessions see. A result holds no file's content: a model reads names and sizes only.
The file may contain formulas that the code chose: treat it as an upload from a
user.
"""

from pathlib import Path

from aca_sessions import InteractiveSession

CODE = """
import pandas as pd
sales = pd.DataFrame({"month": ["Jan", "Feb"], "sold": [120, 135]})
with pd.ExcelWriter("report.xlsx") as book:
    sales.to_excel(book, sheet_name="Sales", index=False)
    sales.describe().to_excel(book, sheet_name="Summary")
"""

with InteractiveSession() as session:
    result = session.run(CODE).raise_for_error()
    print([(file.path, file.kind) for file in result.files])
    Path("report.xlsx").write_bytes(session.download_file("report.xlsx"))

print(Path("report.xlsx").read_bytes()[:2])

# prints:
# [('report.xlsx', 'created')]
# b'PK'
