"""One module or package per data set, each turning stored rows into `shapes.Record` (host code)."""
