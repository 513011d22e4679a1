"""Teaching a model: from rows of data to an adapter, or to a model of its own.

rows of a file -> Sample (ids, and which of them are learnt) -> Pack (flat, with spans) -> states -> loss -> step
"""
