"""A mutation fuzzer over every kind of file that the pack reads, and over curves: `python dev.py fuzz`.

`seeds.py` makes small valid inputs, `mutations.py` damages them (by their format with `json_edits.py`, `tensor_edits.py`,
`pickle_edits.py` and `gguf_edits.py`), `readers.py` reads them as the pack does, `guarded.py` does that in a process with limits,
`run.py` counts and keeps what failed.
"""
