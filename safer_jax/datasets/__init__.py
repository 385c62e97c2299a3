"""One module or package per data set, each turning stored rows into `shapes.Record` (host code)."""


class DataError(ValueError):
    """A data set that cannot be read: says which file, what is wrong and what to do."""


class RowError(DataError):
    """One row that cannot be read; the others can, so a run may leave it out (`data.bad_rows`)."""
