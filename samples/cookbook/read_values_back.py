"""Read a value back as Python data.

`result.value` is the value of the last expression, if it is a number, text, bool or
None. For lists and dicts, let the cell end in JSON text. For a DataFrame, let it
write a file. Never unpickle what a session made: unpickling can run its code in
your process. Check the data as you would the body of a request, because code in the
session chose it. In notebooks, `%%session -o NAME` copies variables without pickle.
"""

import csv
import json

from aca_sessions import InteractiveSession

WRITE = """
import csv
csv.writer(open("totals.csv", "w")).writerows(totals.items())
"""  # or frame.to_csv("totals.csv")

with InteractiveSession() as session:
    session.run("totals = {'Oslo': 709, 'Bergen': 291}")
    print(session.run("sum(totals.values()) / 2").value)
    print(json.loads(session.run("import json; json.dumps(totals)").value))

    session.run(WRITE)
    print([*csv.reader(session.download_file("totals.csv").decode().splitlines())])

    print([(one.name, one.type) for one in session.variables()])  # what it has

# prints:
# 500.0
# {'Oslo': 709, 'Bergen': 291}
# [['Oslo', '709'], ['Bergen', '291']]
# [('totals', 'dict')]
