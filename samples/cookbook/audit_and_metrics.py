"""Record what sessions do: audit log and metrics.

`Audit:File` adds a JSON line to a file of mode 600 for each session, cell,
transfer, installation and refusal. Names are hashed. The code is recorded only with
`Audit:Code`. Metrics are OpenTelemetry's: they go where your program exports them,
and `aca-sessions serve --metrics` offers them to Prometheus. `on_event` reports
leases to your own program. [All fields and metrics](../guides/operating.md).
"""

import asyncio
import json
from pathlib import Path

from aca_sessions import Settings, open_pool


async def main() -> None:
    settings = Settings(Audit={"File": "audit.jsonl"})
    async with open_pool(settings, on_event=lambda one: print(one.kind)) as pool:
        async with pool.session("ann") as session:
            await session.upload_file("data.txt", b"12345")
            await session.run("6 * 7")
            await session.run("1 / 0")


asyncio.run(main())
for line in Path("audit.jsonl").read_text().splitlines():
    event = json.loads(line)
    print(event["event"], event.get("outcome"), event.get("bytes"))

# prints:
# leased
# released
# session_begun None None
# upload None 5
# cell succeeded None
# cell failed None
# session_ended None None
