"""Tuned launch configurations: those that ship, the user's own, and what stands in for a gap.

A table is one JSON file per device, named by compute capability and multiprocessors
(``sm_90_132.json``); the shipped ones lie beside this module. Entries come from measurements
only: ``halfbyte tune`` writes them. A problem without an entry takes its nearest neighbour's tile,
and without a near one the formulas of the kernel families.
"""

from ..device.gpus import Device
from .files import load_tables, read_table, shipped_tables, table_name, write_entry
from .lookup import Found, Tables
from .schema import Entry, Table, entry, parse_table
from .tuning import tunings

__all__ = [
    "Device",
    "Entry",
    "Found",
    "Table",
    "Tables",
    "entry",
    "load_tables",
    "parse_table",
    "read_table",
    "shipped_tables",
    "table_name",
    "tunings",
    "write_entry",
]
