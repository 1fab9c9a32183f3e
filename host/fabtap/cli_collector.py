"""`fabtap collector ...`: run it, and see what its ports have counted."""
import asyncio
import logging
import sys

import typer

from fabtap import store
from fabtap.cli_options import LAB_DEFAULT, AsJson, LabFile, open_lab
from fabtap.collector import Collector, run_until_told, secrets_of_machines
from fabtap.lock import only_collector
from fabtap.screen import OUT, show_json, table

app = typer.Typer(no_args_is_help=True, help="Take events from the nodes and store each exactly once.")


@app.command()
def run(lab_file: LabFile = LAB_DEFAULT) -> None:
    """Listen on every machine's port, and at the broker, until stopped (Ctrl-C or SIGTERM)."""
    lab = open_lab(lab_file)
    secrets_of_machines(lab)  # asked before there is a database: a lab that can't start leaves nothing behind
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with only_collector(lab.database), store.Writer(lab.database) as writer:
        asyncio.run(run_until_told(Collector(lab, writer)))


@app.command()
def status(lab_file: LabFile = LAB_DEFAULT, as_json: AsJson = False) -> None:
    """Show what the database holds per node, and what the ports refused."""
    lab = open_lab(lab_file)
    journals = store.journals(lab.database)
    counts = store.port_counts(lab.database)
    if as_json:
        show_json({"journals": [{"node": found.node_id, "journal_id": found.journal_id.hex(), "watermark": found.watermark}
                                for found in journals], "refused": counts})
        return
    OUT.print(table("Journals", ("node", "journal", "events durable up to"),
                    [(found.node_id, found.journal_id.hex(), found.watermark) for found in journals],
                    right=("node", "events durable up to")))
    OUT.print(table("Refused on the ports", ("port", "what", "count"),
                    [(port, name, count) for port, names in sorted(counts.items()) for name, count in sorted(names.items())],
                    right=("count",)))
